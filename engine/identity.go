package engine

import (
	"path"
	"strings"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// The names of a pool's files.
const (
	identityFile = "holdfast.json"
	lockFile     = "lock"
	mountedFile  = "mounted"
	replicasDir  = "replicas"
	newPrefix    = ".new-"
	gonePrefix   = ".gone-"

	metaFile     = "meta"
	dataFile     = "data"
	recordFile   = "record"
	promiseFile  = "promise"
	intentFile   = "intent"
	tailFile     = "tail"
	changesDir   = "changes"
	snapshotsDir = "snapshots"
	heldFile     = "held"
	ownedFile    = "owned"
)

// Identity says whose pool it is; written once, when it is formatted.
type Identity struct {
	Cluster holdfast.ClusterID `json:"cluster"`
	Node    holdfast.NodeID    `json:"node"` // where it was formatted
	Pool    holdfast.PoolID    `json:"pool"`
}

func (id Identity) validate() error {
	for _, part := range [][2]string{{"cluster", string(id.Cluster)}, {"pool", string(id.Pool)}} {
		if !safeName(part[1]) {
			return errorf("check pool identity", holdfast.Invalid, "the %s id %q cannot be used: 1 to %d letters, digits, '_' and '-' are needed", part[0], part[1], holdfast.MaxIDBytes)
		}
	}
	return holdfast.ValidateNodeID(id.Node)
}

// safeName says whether an id can be a path component.
func safeName(s string) bool {
	const ok = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
	return s != "" && len(s) <= holdfast.MaxIDBytes && strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune(ok, r) }) < 0
}

// decodeIdentity reads an identity file's content; kind Corrupt if it is none.
func decodeIdentity(data []byte) (Identity, error) {
	var id Identity
	if err := unseal("pool", data, &id); err != nil {
		return Identity{}, err
	}
	if err := id.validate(); err != nil {
		return Identity{}, corrupt("decode pool", err)
	}
	return id, nil
}

// FormatFS makes a filesystem (a directory for trying out, a disk in memory) a
// pool. It must be empty; one that was made by an earlier call for the same
// cluster is adopted, and its identity returned. Durable on return.
func FormatFS(fs disk.FS, id Identity) (Identity, error) {
	op := "format pool " + string(id.Pool)
	if err := id.validate(); err != nil {
		return Identity{}, err
	}
	entries, err := fs.List(".")
	if err != nil {
		return Identity{}, holdfast.Wrap(op, err)
	}
	for _, e := range entries {
		switch {
		case e.Name == identityFile:
			return adopt(fs, id)
		case e.Name == "lost+found", e.Name == lockFile, e.Name == mountedFile, e.Name == replicasDir && e.Dir,
			disk.IsTemporary(e.Name): // of a Format that did not finish
		default:
			return Identity{}, errorf(op, holdfast.Exists, "%q is there and is not Holdfast's; only an empty disk or directory can become a pool", e.Name)
		}
	}
	if err := disk.MkdirIfMissing(fs, replicasDir); err != nil {
		return Identity{}, holdfast.Wrap(op, err)
	}
	// The identity comes last: with it the pool is finished.
	if err := writeSealed(fs, identityFile, "pool", id); err != nil {
		return Identity{}, holdfast.Wrap(op, err)
	}
	return id, nil
}

// adopt checks that an existing pool is of the same cluster.
func adopt(fs disk.FS, want Identity) (Identity, error) {
	id, err := readIdentity(fs)
	if err != nil {
		return Identity{}, err
	}
	if err := id.ofCluster(want.Cluster); err != nil {
		return Identity{}, err
	}
	return id, fs.SyncDir(".")
}

func (id Identity) ofCluster(cluster holdfast.ClusterID) error {
	if id.Cluster == cluster {
		return nil
	}
	return errorf("adopt pool "+string(id.Pool), holdfast.Denied,
		"it belongs to cluster %s, this is cluster %s; if its data is not needed any more, wipe the disk first (wipefs --all)", id.Cluster, cluster)
}

func readIdentity(fs disk.FS) (Identity, error) {
	data, err := disk.ReadFile(fs, identityFile, 1<<20)
	if err != nil {
		return Identity{}, holdfast.Wrap("read the pool's identity", err)
	}
	return decodeIdentity(data)
}

func replicaPath(rep holdfast.ReplicaID) string { return path.Join(replicasDir, string(rep)) }
