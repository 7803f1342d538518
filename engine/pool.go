package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// FSOptions says how to open a pool on a filesystem that is there already.
type FSOptions struct {
	FS      disk.FS
	Cluster holdfast.ClusterID
	Node    holdfast.NodeID // this one; may be empty
	// Memory is a filesystem in the machine's memory for this pool alone: it
	// outlives the process, and nothing else has to. nil: this process's own, so that
	// a killed process is to the replicas as if they had lost their power.
	Memory disk.FS
	// BootID identifies the boot of the host: when it is another one than that
	// of the last writes, what they wrote may be lost.
	BootID string
	// ReserveBytes is the space kept free for metadata; 0 for the default.
	ReserveBytes int64
	// SnapshotPercent is how much of the pool the snapshots of open replicas may
	// refer to; 0 for no limit but the reserve.
	SnapshotPercent int
	// Device is what Info shows; it is not opened.
	Device string
}

// Pool is an open pool.
type Pool struct {
	fs     disk.FS
	memory disk.FS
	id     Identity
	node   holdfast.NodeID // where it is open; "" if not told
	device string
	bootID string
	// instance is what the writes since its last change can only be lost with:
	// the boot, or the mounting of a pool that is mounted here.
	instance string
	mounting string // "" for a pool that is not mounted here
	space    space
	// snapshots bounds what they take.
	snapshots share
	lock      disk.File
	release   func() error // unmounts; may be nil
	broken    atomic.Bool  // a replica has failed

	admin  sync.Mutex // one at a time makes, opens, lists or removes replicas
	mu     sync.Mutex // guards what follows; never held over I/O
	open   map[holdfast.ReplicaID]*Replica
	chains map[holdfast.ReplicaID]*chain
	clones map[holdfast.ReplicaID]dependence // that depend on an origin
	closed bool
}

// OpenFS opens a pool made by FormatFS. Kinds: NotFound when there is no pool,
// Denied for another cluster's, InUse when another process has it open.
func OpenFS(o FSOptions) (*Pool, error) {
	if o.BootID == "" || len(o.BootID) > maxInstance/2 {
		return nil, errorf("open pool", holdfast.Invalid, "a boot id of 1 to %d bytes is needed", maxInstance/2)
	}
	id, err := readIdentity(o.FS)
	if err != nil {
		return nil, holdfast.Wrap("open pool", err)
	}
	if err := id.ofCluster(o.Cluster); err != nil {
		return nil, err
	}
	if o.Memory == nil {
		o.Memory = disk.NewMem(1 << 50)
	}
	p := &Pool{fs: o.FS, memory: o.Memory, id: id, node: o.Node, device: o.Device, bootID: o.BootID, instance: o.BootID,
		open: map[holdfast.ReplicaID]*Replica{}, chains: map[holdfast.ReplicaID]*chain{}, clones: map[holdfast.ReplicaID]dependence{}}
	if err := p.start(o.ReserveBytes, o.SnapshotPercent); err != nil {
		if p.lock != nil {
			_ = p.lock.Close()
		}
		return nil, holdfast.Wrap("open pool "+string(id.Pool), err)
	}
	return p, nil
}

func (p *Pool) start(reserve int64, percent int) error {
	var err error
	if p.lock, err = p.fs.Open(lockFile, disk.Create|disk.Lock); err != nil {
		if errors.Is(err, holdfast.InUse) {
			return errorf("lock", holdfast.InUse, "another process has the pool open; stop it first")
		}
		return err
	}
	u, err := p.fs.Usage()
	if err != nil {
		return err
	}
	if reserve == 0 {
		reserve = defaultReserve(u.TotalBytes)
	}
	p.space.fs, p.space.reserve = p.fs, reserve
	p.snapshots.limit = u.TotalBytes / 100 * int64(percent)
	return p.tidy()
}

// tidy finishes what a killed Create or Remove left. Invariant 8: a directory
// named .new- was never finished, as the rename is what finishes it, and one
// named .gone- was given up by Remove; nothing else is touched.
func (p *Pool) tidy() error {
	// A rename that is visible need not be durable yet.
	if err := p.fs.SyncDir(replicasDir); err != nil {
		return err
	}
	entries, err := p.fs.List(replicasDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name, newPrefix) || strings.HasPrefix(e.Name, gonePrefix) {
			if err := disk.RemoveAll(p.fs, path.Join(replicasDir, e.Name)); err != nil {
				return err
			}
			continue
		}
		// One that cannot be read cannot be opened either, and depends on nothing.
		var m meta
		if readSealed(p.fs, path.Join(replicasDir, e.Name, metaFile), "replica", &m) == nil && m.Origin != nil {
			p.depends(m.Replica, dependence{m.Origin.Replica, m.Origin.Snapshot})
		}
	}
	return p.tidyMemory(entries)
}

// tidyMemory removes the memory of replicas that are not here any more.
func (p *Pool) tidyMemory(replicas []disk.Entry) error {
	pieces, err := p.memory.List(".")
	for _, x := range pieces {
		if !slices.ContainsFunc(replicas, func(e disk.Entry) bool { return e.Name == x.Name }) {
			err = errors.Join(err, disk.RemoveAll(p.memory, x.Name))
		}
	}
	return err
}

// Identity says whose pool it is.
func (p *Pool) Identity() Identity { return p.id }

// Info describes the pool for the node's registration.
func (p *Pool) Info() holdfast.Pool {
	info := holdfast.Pool{ID: p.id.Pool, Device: p.device, State: holdfast.PoolOnline}
	u, err := p.fs.Usage()
	if err == nil {
		_, err = readIdentity(p.fs) // usage is known also of a filesystem that has shut down
	}
	if err != nil {
		info.State, info.Message = holdfast.PoolFailed, err.Error()
		return info
	}
	info.TotalBytes, info.FreeBytes = u.TotalBytes, max(0, u.FreeBytes-p.space.reserve)
	if info.FreeBytes < minBudget {
		info.State, info.Message = holdfast.PoolFull, "new space is refused: delete volumes or move replicas away"
	}
	if p.node != "" && p.node != p.id.Node && info.Message == "" {
		info.Message = "it was formatted on node " + string(p.id.Node)
	}
	if !p.broken.Load() {
		return info
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(p.open)) {
		if err := p.open[id].Err(); err != nil {
			info.Message = fmt.Sprintf("replica %s failed: %v", id, err)
		}
	}
	return info
}

// Create makes a replica of sizeBytes, all of it a hole; durable on return. When
// the same one is there, it returns nil. Kinds: Exists for another volume's or
// another size; Invalid; NoSpace.
func (p *Pool) Create(ctx context.Context, vol holdfast.VolumeID, rep holdfast.ReplicaID, sizeBytes int64) error {
	op := "create replica " + string(rep)
	p.admin.Lock()
	defer p.admin.Unlock()
	if err := p.usable(ctx); err != nil {
		return holdfast.Wrap(op, err)
	}
	if there, err := p.present(vol, rep, sizeBytes); there || err != nil {
		return holdfast.Wrap(op, err)
	}
	return holdfast.Wrap(op, p.make(rep, meta{Volume: vol, Replica: rep}, sizeBytes))
}

// present says whether the replica is there already, durably; kind Invalid or
// Exists when it cannot be made.
func (p *Pool) present(vol holdfast.VolumeID, rep holdfast.ReplicaID, sizeBytes int64) (bool, error) {
	const op = "look for it"
	switch {
	case !safeName(string(vol)) || !safeName(string(rep)):
		return false, errorf(op, holdfast.Invalid, "the volume id %q or the replica id cannot be a file's name", vol)
	case sizeBytes <= 0 || sizeBytes%blockSize != 0 || sizeBytes > holdfast.MaxVolumeBytes:
		return false, errorf(op, holdfast.Invalid, "a size of %d bytes is not possible; a positive multiple of %d is needed", sizeBytes, blockSize)
	}
	info, err := p.describe(rep)
	switch {
	case errors.Is(err, holdfast.NotFound):
		return false, nil
	case err != nil:
		return false, err
	case info.Volume != vol || info.SizeBytes < sizeBytes:
		return false, errorf(op, holdfast.Exists, "it exists, of volume %s with %d bytes", info.Volume, info.SizeBytes)
	}
	return true, p.fs.SyncDir(replicasDir)
}

// make makes a replica's directory, durably.
func (p *Pool) make(rep holdfast.ReplicaID, m meta, sizeBytes int64) error {
	const op = "make its files"
	if avail, err := p.space.available(); err != nil {
		return holdfast.Wrap(op, err)
	} else if avail <= 0 {
		return errorf(op, holdfast.NoSpace, "the pool has no space left beyond its reserve")
	}
	tmp := path.Join(replicasDir, newPrefix+string(rep))
	err := disk.RemoveAll(p.fs, tmp)
	if err == nil {
		err = p.build(tmp, m, sizeBytes)
	}
	if err != nil {
		return holdfast.Wrap(op, errors.Join(err, disk.RemoveAll(p.fs, tmp)))
	}
	return holdfast.Wrap(op, errors.Join(p.fs.Rename(tmp, replicaPath(rep)), p.fs.SyncDir(replicasDir)))
}

// build makes all files of a replica in dir, durably.
func (p *Pool) build(dir string, m meta, size int64) error {
	for _, d := range []string{dir, path.Join(dir, changesDir), path.Join(dir, snapshotsDir)} {
		if err := p.fs.Mkdir(d); err != nil {
			return err
		}
	}
	type step struct {
		name string
		make func(f disk.File) error
	}
	steps := []step{
		{dataFile, func(f disk.File) error { return errors.Join(f.Truncate(size), f.Sync()) }},
		{intentFile, func(f disk.File) error { return writeIntents(f, p.instance, size) }},
		{tailFile, makeTail},
	}
	if o := m.Origin; o != nil {
		n := granulesOf(o.SizeBytes) * blockSize
		steps = append(steps, step{ownedFile, func(f disk.File) error { return errors.Join(f.Truncate(n), f.Sync()) }})
	}
	for _, s := range steps {
		f, err := p.fs.Open(path.Join(dir, s.name), disk.Create|disk.Exclusive)
		if err != nil {
			return err
		}
		if err := errors.Join(s.make(f), f.Close()); err != nil {
			return err
		}
	}
	if err := writeSealed(p.fs, path.Join(dir, promiseFile), "promise", Promise{}); err != nil {
		return err
	}
	return writeSealed(p.fs, path.Join(dir, metaFile), "replica", m)
}

func makeTail(f disk.File) error {
	mem := make([]byte, tailSize)
	encodeTailHeader(mem)
	_, err := f.WriteAt(mem, 0, false)
	return errors.Join(err, f.Sync())
}

// Open opens a replica. Kinds: NotFound; InUse when it is open already; Corrupt
// when what must be sound is not.
func (p *Pool) Open(rep holdfast.ReplicaID) (*Replica, error) {
	op := "open replica " + string(rep)
	p.admin.Lock()
	defer p.admin.Unlock()
	if err := p.usable(context.Background()); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if !safeName(string(rep)) {
		return nil, errorf(op, holdfast.NotFound, "there is no such replica on pool %s", p.id.Pool)
	}
	if p.opened(rep) != nil {
		return nil, errorf(op, holdfast.InUse, "it is open already")
	}
	r, err := openReplica(p, rep)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[rep] = r
	return r, nil
}

// opened is the open replica of that id; nil if it is not open.
func (p *Pool) opened(rep holdfast.ReplicaID) *Replica {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open[rep]
}

// Replicas lists the pool's replicas by id; one that cannot be read has Err set.
func (p *Pool) Replicas() ([]ReplicaInfo, error) {
	p.admin.Lock()
	defer p.admin.Unlock()
	if err := p.usable(context.Background()); err != nil {
		return nil, err
	}
	entries, err := p.fs.List(replicasDir)
	if err != nil {
		return nil, holdfast.Wrap("list replicas", err)
	}
	var infos []ReplicaInfo
	for _, e := range entries {
		if !e.Dir || !safeName(e.Name) {
			continue
		}
		info, err := p.describe(holdfast.ReplicaID(e.Name))
		info.Replica, info.Err = holdfast.ReplicaID(e.Name), err
		infos = append(infos, info)
	}
	return infos, nil
}

// Replica describes one of the pool's replicas; kind NotFound when there is none of
// that id. One that cannot be read has Err set.
func (p *Pool) Replica(rep holdfast.ReplicaID) (ReplicaInfo, error) {
	op := "look for replica " + string(rep)
	p.admin.Lock()
	defer p.admin.Unlock()
	if err := p.usable(context.Background()); err != nil {
		return ReplicaInfo{}, holdfast.Wrap(op, err)
	}
	if !safeName(string(rep)) {
		return ReplicaInfo{}, errorf(op, holdfast.NotFound, "there is no such replica on pool %s", p.id.Pool)
	}
	info, err := p.describe(rep)
	if errors.Is(err, holdfast.NotFound) {
		return ReplicaInfo{}, holdfast.Wrap(op, err)
	}
	info.Replica, info.Err = rep, err
	return info, nil
}

// describe reads what a replica is; NotFound when there is no directory of it.
func (p *Pool) describe(rep holdfast.ReplicaID) (ReplicaInfo, error) {
	if _, err := p.fs.List(replicaPath(rep)); err != nil {
		return ReplicaInfo{}, err
	}
	var m meta
	if err := readSealed(p.fs, path.Join(replicaPath(rep), metaFile), "replica", &m); err != nil {
		return ReplicaInfo{}, corrupt("read "+metaFile, err)
	}
	f, err := p.fs.Open(path.Join(replicaPath(rep), dataFile), 0)
	if err != nil {
		return ReplicaInfo{}, corrupt("read "+dataFile, err)
	}
	st, err := f.Stat()
	return ReplicaInfo{Volume: m.Volume, Replica: rep, SizeBytes: st.SizeBytes, AllocatedBytes: st.AllocatedBytes},
		errors.Join(err, f.Close())
}

// Remove removes a replica's data: the caller has a tombstone that names it
// (invariant 8). Nil when it is not there; kind InUse when it is open.
func (p *Pool) Remove(ctx context.Context, rep holdfast.ReplicaID) error {
	op := "remove replica " + string(rep)
	p.admin.Lock()
	defer p.admin.Unlock()
	if err := p.usable(ctx); err != nil {
		return holdfast.Wrap(op, err)
	}
	if p.opened(rep) != nil {
		return errorf(op, holdfast.InUse, "it is open; close it first")
	}
	if !safeName(string(rep)) {
		return nil
	}
	if err := p.dependent(rep, ""); err != nil {
		return holdfast.Wrap(op, err)
	}
	gone := path.Join(replicasDir, gonePrefix+string(rep))
	err := p.fs.Rename(replicaPath(rep), gone)
	if err != nil && !errors.Is(err, holdfast.NotFound) {
		return holdfast.Wrap(op, err)
	}
	if err := p.fs.SyncDir(replicasDir); err != nil {
		return holdfast.Wrap(op, err)
	}
	p.independent(rep)
	p.space.forget()
	return holdfast.Wrap(op, errors.Join(disk.RemoveAll(p.fs, gone), disk.RemoveAll(p.memory, string(rep))))
}

// Close closes the replicas that are open, and the pool; a mounted one is
// unmounted. Closing twice does nothing.
func (p *Pool) Close() error {
	p.admin.Lock()
	defer p.admin.Unlock()
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	open := slices.Sorted(maps.Keys(p.open))
	replicas := make([]*Replica, len(open))
	for i, id := range open {
		replicas[i] = p.open[id]
	}
	p.mu.Unlock()
	var errs []error
	for _, r := range replicas {
		errs = append(errs, r.Close())
	}
	// What failed to close may not be durable: then this mounting is not over.
	if p.mounting != "" && errors.Join(errs...) == nil && !p.broken.Load() {
		errs = append(errs, endMounting(p.fs, p.mounting))
	}
	errs = append(errs, p.lock.Close())
	if p.release != nil {
		errs = append(errs, p.release())
	}
	return holdfast.Wrap("close pool "+string(p.id.Pool), errors.Join(errs...))
}

func (p *Pool) usable(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errorf("pool "+string(p.id.Pool), holdfast.Unavailable, "it is closed")
	}
	if err := ctx.Err(); err != nil {
		return holdfast.WrapKind("pool "+string(p.id.Pool), holdfast.Unavailable, err)
	}
	return nil
}

// closeAll closes everything, and gives all errors.
func closeAll(cs ...io.Closer) error {
	var errs []error
	for _, c := range cs {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
