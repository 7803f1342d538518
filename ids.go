package holdfast

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"unicode"
	"unicode/utf8"
)

// Typed identities: lower-case hexadecimal where Holdfast makes them, chosen by
// the operator for nodes. They are safe as a path component and as a part of a
// metadata key.
type (
	// ClusterID names one cluster; pools remember it and refuse another's.
	ClusterID string
	// NodeID names one node; chosen by the operator (default: its host name).
	NodeID string
	// PoolID names one pool, wherever its disk turns up.
	PoolID string
	// VolumeID names one volume: 32 hexadecimal digits.
	VolumeID string
	// ReplicaID names one replica; never used again for another one, so that a
	// tombstone names exactly one copy of data. 32 hexadecimal digits.
	ReplicaID string
	// SnapshotID names one snapshot: 32 hexadecimal digits.
	SnapshotID string
)

// DriverName is the name that the CSI identity service answers with.
const DriverName = "csi.holdfast.dev"

// Limits of names and sizes. Names stay well below the 80 bytes that Mesos'
// percent-encoded paths leave room for when they are plain ASCII; 128 bytes is
// the CSI specification's bound on strings, inclusive, which csi-sanity uses up.
const (
	MaxNameBytes = 128
	MaxIDBytes   = 63
	// BlockSize is the unit of writes, change maps and torn writes, in bytes.
	BlockSize = 4096
	// RegionSize is the unit of the intent log, in bytes.
	RegionSize = 4 << 20
	// MinVolumeBytes and MaxVolumeBytes bound a volume's logical size.
	MinVolumeBytes = 1 << 20
	MaxVolumeBytes = 64 << 40
	// MaxReplicas bounds the replicas of one volume.
	MaxReplicas = 7
)

func newHexID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// NewVolumeID makes a random volume identity.
func NewVolumeID() VolumeID { return VolumeID(newHexID()) }

// NewReplicaID makes a random replica identity.
func NewReplicaID() ReplicaID { return ReplicaID(newHexID()) }

// NewSnapshotID makes a random snapshot identity.
func NewSnapshotID() SnapshotID { return SnapshotID(newHexID()) }

// NewPoolID makes a random pool identity.
func NewPoolID() PoolID { return PoolID(newHexID()) }

// NewClusterID makes a random cluster identity.
func NewClusterID() ClusterID { return ClusterID(newHexID()) }

// ValidateName says whether a volume's name can be used: 1 to MaxNameBytes
// bytes of valid UTF-8, without '/', control characters or leading dots or
// dashes. The error is of kind Invalid and says what to change.
func ValidateName(name string) error {
	const op = "validate name"
	switch {
	case name == "":
		return E(op, Invalid, "a name is needed; it is empty")
	case len(name) > MaxNameBytes:
		return E(op, Invalid, fmt.Sprintf("the name has %d bytes; at most %d are allowed", len(name), MaxNameBytes))
	case !utf8.ValidString(name):
		return E(op, Invalid, "the name is not valid UTF-8")
	case name[0] == '.' || name[0] == '-':
		return E(op, Invalid, fmt.Sprintf("the name %q begins with %q; begin it with a letter, digit or underscore", name, name[:1]))
	}
	for _, r := range name {
		if r == '/' || unicode.IsControl(r) {
			return E(op, Invalid, fmt.Sprintf("the name %q contains %q; slashes and control characters are not allowed", name, r))
		}
	}
	return nil
}

// ValidateNodeID says whether a node's identity can be used: 1 to MaxIDBytes of
// letters, digits, '.', '_' and '-', beginning with a letter or digit.
func ValidateNodeID(id NodeID) error {
	const op = "validate node id"
	if id == "" || len(id) > MaxIDBytes {
		return E(op, Invalid, fmt.Sprintf("the node id %q has %d bytes; 1 to %d are allowed", id, len(id), MaxIDBytes))
	}
	for i, r := range string(id) {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || r != '.' && r != '_' && r != '-') {
			return E(op, Invalid, fmt.Sprintf("the node id %q contains %q; use letters, digits, '.', '_' and '-', and begin with a letter or digit", id, r))
		}
	}
	return nil
}
