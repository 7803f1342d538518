// Package layout is how metadata is written down: the keys, and the JSON form
// of every value. Both stores use it, so that what is true of one is true of
// the other.
//
// All keys stand under one prefix, /holdfast/v1/ unless configured otherwise:
//
//	volumes/<id>        holdfast.Record, version 1, 2 once it was scrubbed, 3 with snapshots
//	names/<escaped>     the volume id that has this name, plain text
//	nodes/<id>          holdfast.Node, version 1
//	alive/<id>          the instance that holds the node's lease, plain text; leased
//	tombstones/<id>     holdfast.Tombstone by replica id, version 1
//	groups/<escaped>    holdfast.Group, a group snapshot by its name, version 1
//	claims/<escaped>    the owner of a snapshot's name, plain text
//	schedules/<escaped> holdfast.Schedule by name, version 1
//	leader              the leading controller's name, plain text; leased
//	cluster             {"version":1,"id":"…"}
//
// What a user or an orchestrator chose (names, ids to look up) is escaped as in
// a URL's path, so that any UTF-8 makes exactly one key and no slash gets in.
//
// It promises that what Encode wrote Decode reads, and that Decode refuses, with
// kind Corrupt, a version or a member that it does not know (writing such a
// value back would lose it), an id that is not the key's, and what Validate
// refuses. A member added to a value means a new version. It is pure and owns
// no goroutine.
package layout

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/holdfast-storage/holdfast"
)

// DefaultPrefix is where the keys stand when nothing else is configured.
const DefaultPrefix = "/holdfast/v1/"

// Folders and single keys, below the prefix.
const (
	Volumes    = "volumes/"
	Names      = "names/"
	Nodes      = "nodes/"
	Alive      = "alive/"
	Tombstones = "tombstones/"
	Claims     = "claims/"
	Schedules  = "schedules/"
	LeaderKey  = "leader"
	ClusterKey = "cluster"
)

// TombstoneVersion is the version of a tombstone's JSON form. History: 1.
const TombstoneVersion = 1

// ClusterVersion is the version of the cluster's JSON form. History: 1.
const ClusterVersion = 1

// VolumeKey is where a volume's record is.
func VolumeKey(id holdfast.VolumeID) string { return Volumes + url.PathEscape(string(id)) }

// NameKey is where a name's owner is.
func NameKey(name string) string { return Names + url.PathEscape(name) }

// NodeKey is where a node's registration is.
func NodeKey(id holdfast.NodeID) string { return Nodes + url.PathEscape(string(id)) }

// AliveKey is where a node's lease is.
func AliveKey(id holdfast.NodeID) string { return Alive + url.PathEscape(string(id)) }

// TombstoneKey is where a replica's tombstone is.
func TombstoneKey(id holdfast.ReplicaID) string { return Tombstones + url.PathEscape(string(id)) }

// ClaimKey is where the owner of a claimed name is.
func ClaimKey(name string) string { return Claims + url.PathEscape(name) }

// ScheduleKey is where a schedule is.
func ScheduleKey(name string) string { return Schedules + url.PathEscape(name) }

// ID is the last, unescaped part of a key in a folder; the part as it stands
// when it is not escaped properly.
func ID(key, folder string) string {
	part := strings.TrimPrefix(key, folder)
	if id, err := url.PathUnescape(part); err == nil {
		return id
	}
	return part
}

// CheckID refuses an id that makes no key of its own: kind Invalid.
func CheckID(op, what, id string) error {
	if id == "" {
		return holdfast.E(op, holdfast.Invalid, "the "+what+" is empty")
	}
	return nil
}

// EncodeRecord checks a record that is about to be stored and gives its JSON.
// The error is of kind Invalid.
func EncodeRecord(r holdfast.Record) ([]byte, error) {
	op := "encode record of volume " + string(r.ID)
	if err := r.Validate(); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	if err := holdfast.ValidateName(r.Name); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	return encode(op, r)
}

// DecodeRecord reads a stored record. The error is of kind Corrupt.
func DecodeRecord(key string, value []byte, revision int64) (holdfast.Record, error) {
	var r holdfast.Record
	if err := decode(key, value, &r, holdfast.RecordVersion, holdfast.RecordVersionScrub, holdfast.RecordVersionSnapshots, holdfast.RecordVersionWaiting, holdfast.RecordVersionLimits); err != nil {
		return holdfast.Record{}, err
	}
	if err := r.Validate(); err != nil {
		return holdfast.Record{}, holdfast.WrapKind("decode "+key, holdfast.Corrupt, err)
	}
	if VolumeKey(r.ID) != key {
		return holdfast.Record{}, corrupt(key, fmt.Sprintf("it holds the record of volume %q", r.ID))
	}
	r.Revision = revision
	return r, nil
}

// EncodeNode checks a registration that is about to be stored and gives its
// JSON. The error is of kind Invalid.
func EncodeNode(n holdfast.Node) ([]byte, error) {
	op := "encode node " + string(n.ID)
	if err := holdfast.ValidateNodeID(n.ID); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if n.Version != holdfast.NodeVersion {
		return nil, holdfast.E(op, holdfast.Invalid, fmt.Sprintf("it has version %d; this release writes version %d", n.Version, holdfast.NodeVersion))
	}
	return encode(op, n)
}

// DecodeNode reads a stored registration. The error is of kind Corrupt.
func DecodeNode(key string, value []byte, revision int64) (holdfast.Node, error) {
	var n holdfast.Node
	if err := decode(key, value, &n, holdfast.NodeVersion); err != nil {
		return holdfast.Node{}, err
	}
	if NodeKey(n.ID) != key {
		return holdfast.Node{}, corrupt(key, fmt.Sprintf("it holds the registration of node %q", n.ID))
	}
	n.Revision = revision
	return n, nil
}

// EncodeSchedule checks a schedule that is about to be stored and gives its JSON.
// The error is of kind Invalid.
func EncodeSchedule(x holdfast.Schedule) ([]byte, error) {
	op := "encode schedule " + x.Name
	if err := x.Validate(); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	return encode(op, x)
}

// DecodeSchedule reads a stored schedule. The error is of kind Corrupt.
func DecodeSchedule(key string, value []byte, revision int64) (holdfast.Schedule, error) {
	var x holdfast.Schedule
	if err := decode(key, value, &x, holdfast.ScheduleVersion); err != nil {
		return holdfast.Schedule{}, err
	}
	if err := x.Validate(); err != nil {
		return holdfast.Schedule{}, holdfast.WrapKind("decode "+key, holdfast.Corrupt, err)
	}
	if ScheduleKey(x.Name) != key {
		return holdfast.Schedule{}, corrupt(key, fmt.Sprintf("it holds schedule %q", x.Name))
	}
	x.Revision = revision
	return x, nil
}

type storedTombstone struct {
	Version int `json:"version"`
	holdfast.Tombstone
}

// KeyValue is one key with its value.
type KeyValue struct {
	Key   string
	Value []byte
}

// EncodeTombstones gives keys and JSON of tombstones. With keeps, the record
// that they are stored together with, it refuses to bury what that still names.
// The error is of kind Invalid.
func EncodeTombstones(ts []holdfast.Tombstone, keeps *holdfast.Record) ([]KeyValue, error) {
	var out []KeyValue
	seen := map[holdfast.ReplicaID]bool{}
	for _, t := range ts {
		op := "encode tombstone of replica " + string(t.Replica)
		if t.Replica == "" || t.Volume == "" || t.Node == "" {
			return nil, holdfast.E(op, holdfast.Invalid, "a tombstone names a replica, its volume and its node")
		}
		if keeps != nil && keeps.Replica(t.Replica) != nil {
			return nil, holdfast.E(op, holdfast.Invalid, "the record of volume "+string(keeps.ID)+" still names the replica; take it out first")
		}
		data, err := encode(op, storedTombstone{TombstoneVersion, t})
		if err != nil {
			return nil, err
		}
		if !seen[t.Replica] {
			out = append(out, KeyValue{TombstoneKey(t.Replica), data})
		}
		seen[t.Replica] = true
	}
	return out, nil
}

// DecodeTombstone reads a stored tombstone. The error is of kind Corrupt.
func DecodeTombstone(key string, value []byte) (holdfast.Tombstone, error) {
	var t storedTombstone
	if err := decode(key, value, &t, TombstoneVersion); err != nil {
		return holdfast.Tombstone{}, err
	}
	if TombstoneKey(t.Replica) != key {
		return holdfast.Tombstone{}, corrupt(key, fmt.Sprintf("it holds the tombstone of replica %q", t.Replica))
	}
	return t.Tombstone, nil
}

type storedCluster struct {
	Version int                `json:"version"`
	ID      holdfast.ClusterID `json:"id"`
}

// EncodeCluster gives the cluster key's JSON.
func EncodeCluster(id holdfast.ClusterID) ([]byte, error) {
	return encode("encode cluster", storedCluster{ClusterVersion, id})
}

// DecodeCluster reads the cluster key. The error is of kind Corrupt.
func DecodeCluster(value []byte) (holdfast.ClusterID, error) {
	var c storedCluster
	if err := decode(ClusterKey, value, &c, ClusterVersion); err != nil {
		return "", err
	}
	if c.ID == "" {
		return "", corrupt(ClusterKey, "it names no cluster")
	}
	return c.ID, nil
}

func encode(op string, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	return b, holdfast.WrapKind(op, holdfast.Invalid, err)
}

// decode looks at the version before anything else: only then is it known what
// the rest means.
func decode(key string, value []byte, into any, versions ...int) error {
	var v struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(value, &v); err != nil {
		return holdfast.WrapKind("decode "+key, holdfast.Corrupt, err)
	}
	if !slices.Contains(versions, v.Version) {
		return corrupt(key, fmt.Sprintf("it has version %d; this release reads %d", v.Version, versions))
	}
	d := json.NewDecoder(bytes.NewReader(value))
	d.DisallowUnknownFields()
	return holdfast.WrapKind("decode "+key, holdfast.Corrupt, d.Decode(into))
}

func corrupt(key, msg string) error { return holdfast.E("decode "+key, holdfast.Corrupt, msg) }
