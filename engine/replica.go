package engine

import (
	"errors"
	"path"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// meta is the sealed file of what a replica is and what it knows of its losses.
type meta struct {
	Volume   holdfast.VolumeID  `json:"volume"`
	Replica  holdfast.ReplicaID `json:"replica"`
	MapSince holdfast.Epoch     `json:"mapSince"`
	Suspects []holdfast.Extent  `json:"suspects,omitempty"`
	Opens    uint64             `json:"opens"` // how often it was opened
	Progress *Progress          `json:"progress,omitempty"`
	// Losses counts the openings that found that something may have been lost.
	Losses uint64 `json:"losses,omitempty"`
	// Memory is the id of the memory that has what the files of tail and change
	// maps lack; "" when it was closed in good order: they lack nothing. Version 3
	// says that there is one.
	Memory string `json:"memory,omitempty"`
	// Version 2 is written for a replica that has what follows, which a release
	// that does not know it would damage.
	Snapshots []snapshotMeta `json:"snapshots,omitempty"` // oldest first
	NextFile  uint64         `json:"nextFile,omitempty"`  // number of the next snapshot's file
	Origin    *originMeta    `json:"origin,omitempty"`    // of a clone that depends on it
}

func (m meta) sealVersion() int {
	switch {
	case m.Memory != "":
		return 3
	case len(m.Snapshots) > 0 || m.NextFile > 0 || m.Origin != nil:
		return 2
	}
	return 1
}

// Replica is an open replica.
type Replica struct {
	pool *Pool
	id   holdfast.ReplicaID
	dir  string
	boot string

	// mu is held for reading by every operation, and for writing where nothing
	// else may run: growing, removing maps, closing.
	mu     sync.RWMutex
	closed bool
	size   atomic.Int64

	data        disk.File // the chain's
	chain       *chain
	intents     *intents
	memory      memory
	tail        *tail
	changes     *changes
	flusher     flusher
	idleFlushes uint64 // see the constant; tests use less
	doneStep    int64  // likewise
	failed      atomic.Pointer[failure]
	// floor is the lowest grant whose writes are taken; raised under mu, so that
	// no write of an older one is under way afterwards.
	floor atomic.Uint64

	// durable serializes what replaces promise, record and meta; state guards
	// their values, which are those on disk.
	durable sync.Mutex
	state   sync.Mutex
	meta    meta
	promise Promise
	record  holdfast.Record
}

type failure struct{ err error }

// openReplica opens the files and decides what may have been lost.
func openReplica(p *Pool, id holdfast.ReplicaID) (*Replica, error) {
	r := &Replica{pool: p, id: id, dir: replicaPath(id), idleFlushes: idleFlushes, doneStep: doneStep}
	r.flusher.cond.L = &r.flusher.mu
	if err := r.readSealedFiles(); err != nil {
		return nil, err
	}
	err := r.openGuarded()
	if err != nil {
		return nil, errors.Join(err, r.closeFiles())
	}
	return r, nil
}

func (r *Replica) openGuarded() (err error) {
	defer r.guard("open", &err, debug.SetPanicOnFault(true))
	return r.openFiles()
}

// guard is deferred by everything that uses mapped files, with what
// debug.SetPanicOnFault(true) gave: a page that the disk does not give or take any
// more is a fault of the processor, which would end the process with all the
// volumes that it serves. Here it fails this replica.
func (r *Replica) guard(op string, err *error, before bool) {
	debug.SetPanicOnFault(before)
	p := recover()
	if p == nil {
		return
	}
	fault, ok := p.(interface {
		error
		Addr() uintptr // only a fault has it
	})
	if !ok {
		panic(p)
	}
	*err = r.fail(op+": use a mapped file", fault)
}

func (r *Replica) file(name string) string { return path.Join(r.dir, name) }

func (r *Replica) readSealedFiles() error {
	fs := r.pool.fs
	if _, err := fs.List(r.dir); err != nil {
		return err
	}
	if err := readSealed(fs, r.file(metaFile), "replica", &r.meta); err != nil {
		return mustBeSound(err)
	}
	if r.meta.Replica != r.id {
		return errorf(r.file(metaFile), holdfast.Corrupt, "it is of replica %q", r.meta.Replica)
	}
	if err := readSealed(fs, r.file(promiseFile), "promise", &r.promise); err != nil {
		return mustBeSound(err)
	}
	if err := readSealed(fs, r.file(recordFile), "record", &r.record); err != nil && !errors.Is(err, holdfast.NotFound) {
		return err
	}
	r.floor.Store(uint64(r.promise.Grant))
	return nil
}

// mustBeSound makes the absence of a file that must be there kind Corrupt.
func mustBeSound(err error) error {
	if errors.Is(err, holdfast.NotFound) {
		return corrupt("a file that every replica has is missing", err)
	}
	return err
}

func (r *Replica) openFiles() error {
	var err error
	if r.chain, err = r.pool.acquire(r.id); err != nil {
		return err
	}
	r.data = r.chain.data
	info, err := r.data.Stat()
	if err != nil {
		return err
	}
	size := info.SizeBytes
	if r.size.Store(size); size <= 0 || size%blockSize != 0 {
		return errorf(r.file(dataFile), holdfast.Corrupt, "its size of %d bytes is no multiple of %d", size, blockSize)
	}
	return r.recover()
}

func (r *Replica) writeMeta(m meta) error {
	return writeSealed(r.pool.fs, r.file(metaFile), "replica", m)
}

// ID is the replica's identity.
func (r *Replica) ID() holdfast.ReplicaID { return r.id }

// Volume is the volume that it is a replica of.
func (r *Replica) Volume() holdfast.VolumeID { return r.meta.Volume }

// State is what the replica is known to hold. It does no I/O, and waits for none.
func (r *Replica) State() State {
	size := r.size.Load()
	xs, all := r.tail.extents()
	if all {
		xs = merge(append(xs, r.intents.extents(size)...))
	}
	r.state.Lock()
	defer r.state.Unlock()
	s := State{Promise: r.promise, Record: r.record.Clone(), SizeBytes: size, Tail: xs,
		Suspects: slices.Clone(r.meta.Suspects), MapSince: r.meta.MapSince, Boot: r.boot}
	if g := r.meta.Progress; g != nil {
		s.Progress = Progress{Since: g.Since, Parts: slices.Clone(g.Parts)}
	}
	return s
}

// Err is why the replica has failed; nil if it has not.
func (r *Replica) Err() error {
	if f := r.failed.Load(); f != nil {
		return f.err
	}
	return nil
}

// fail makes an error final, and gives it kind Corrupt: what is on the disk is
// unknown from here on.
func (r *Replica) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	f := &failure{corrupt(op+" of replica "+string(r.id), err)}
	r.failed.CompareAndSwap(nil, f)
	r.pool.broken.Store(true)
	return f.err
}

// failUnlessFull is fail, but a full disk is no failure.
func (r *Replica) failUnlessFull(op string, err error) error {
	if holdfast.KindOf(err) == holdfast.NoSpace {
		return holdfast.Wrap(op+" of replica "+string(r.id), err)
	}
	return r.fail(op, err)
}

// usable says whether the replica may be used; mu is held.
func (r *Replica) usable(op string) error {
	if r.closed {
		return errorf(op+" of replica "+string(r.id), holdfast.Unavailable, "it is closed")
	}
	if f := r.failed.Load(); f != nil {
		return corrupt(op+": the replica has failed earlier", f.err)
	}
	return nil
}

// check is usable, and checks a range of bytes.
func (r *Replica) check(op string, off, n int64) error {
	if err := r.usable(op); err != nil {
		return err
	}
	switch {
	case off%blockSize != 0 || n%blockSize != 0 || off < 0 || n <= 0:
		return errorf(op+" of replica "+string(r.id), holdfast.Invalid, "%d bytes at %d are not whole blocks of %d", n, off, blockSize)
	}
	if size := r.size.Load(); off > size || n > size-off {
		return errorf(op+" of replica "+string(r.id), holdfast.OutOfRange, "%d bytes at %d are not within its %d bytes", n, off, size)
	}
	return nil
}

// Close makes everything durable and closes the replica; closing twice does
// nothing. A replica that has failed is closed as it is.
func (r *Replica) Close() error {
	r.durable.Lock()
	defer r.durable.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	var err error
	saved := r.failed.Load() == nil
	if saved {
		if err = r.quiesce(); err == nil {
			err = r.save()
		}
		saved = err == nil
	}
	err = errors.Join(err, r.closeFiles())
	if saved {
		err = errors.Join(err, r.memory.forget())
	}
	r.pool.mu.Lock()
	delete(r.pool.open, r.id)
	r.pool.mu.Unlock()
	return holdfast.Wrap("close replica "+string(r.id), err)
}

// quiesce flushes everything and clears all intents that can go. No write is
// under way.
func (r *Replica) quiesce() error {
	n := r.flusher.begun.Add(1)
	if err := r.data.Sync(); err != nil {
		return r.fail("flush", err)
	}
	if err := r.changes.sync(); err != nil {
		return r.fail("sync change maps", err)
	}
	r.intents.clear(n, 0, r.tail.regions)
	if err := r.intents.save(); err != nil {
		return r.fail("save intents", err)
	}
	return r.failUnlessFull("save what snapshots hold", r.chain.saveHeld(r.meta.Opens))
}

// save puts what is in memory alone into the files, durably, and then says so in
// meta; after quiesce.
func (r *Replica) save() error {
	f, err := r.pool.fs.Open(r.file(tailFile), 0)
	if err == nil {
		err = errors.Join(r.tail.save(f), f.Close())
	}
	if err != nil {
		return r.fail("save the tail", err)
	}
	m := r.meta
	m.Memory = ""
	return r.failUnlessFull("save", r.setMeta(m))
}

func (r *Replica) closeFiles() error {
	var errs []error
	if r.changes != nil {
		errs = append(errs, r.changes.close())
	}
	if r.tail != nil {
		errs = append(errs, r.tail.close())
	}
	if r.intents != nil {
		errs = append(errs, r.intents.f.Close())
	}
	if r.chain != nil {
		errs = append(errs, r.pool.discharge(r.chain))
	}
	return errors.Join(errs...)
}
