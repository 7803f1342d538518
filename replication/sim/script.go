package sim

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
)

// Script is a cluster in which only what its user says happens: no random
// faults, no random I/O. Times within the cluster still come from the seed, so a
// story should hold under several. The history is checked as that of a random
// run is.
type Script struct {
	c         *cluster
	last      map[holdfast.NodeID]*device // the newest primary there, also when it has ended
	snapshots []holdfast.Record
}

// NewScript builds a cluster; Faults and Kinds of cfg mean nothing to it.
func NewScript(cfg Config) *Script {
	w := newWorld(&cfg, 1)
	c := newCluster(cfg, newSite(w, cfg.Hosts))
	c.meta.calm = true
	c.build()
	c.power()
	return &Script{c: c, last: map[holdfast.NodeID]*device{}}
}

// Now is the virtual time, Trace what happened so far, Record what the metadata
// store holds.
func (s *Script) Now() time.Duration      { return s.c.w.now }
func (s *Script) Trace() []string         { return s.c.w.trace }
func (s *Script) Record() holdfast.Record { return s.c.meta.rec.Clone() }

// Run lets time pass; Until as well, at most for d, until something is true.
func (s *Script) Run(d time.Duration) { s.Until(d, func() bool { return false }) }

// Until lets time pass until something is true, at most for d.
func (s *Script) Until(d time.Duration, is func() bool) bool {
	seen := false
	look := func() bool {
		s.notePrimaries()
		seen = seen || is()
		return seen
	}
	if !look() {
		s.c.w.runUntil(s.c.w.now+d, look)
	}
	return seen
}

func (s *Script) notePrimaries() {
	for _, h := range s.c.meta.hosts {
		if h.device != nil {
			s.last[h.id] = h.device
		}
	}
}

// Nodes lists all.
func (s *Script) Nodes() []holdfast.NodeID {
	var ids []holdfast.NodeID
	for _, h := range s.c.meta.hosts {
		ids = append(ids, h.id)
	}
	return ids
}

// Attach asks for the grant once. result, which may be nil, is told nil when the
// volume is served.
func (s *Script) Attach(id holdfast.NodeID, force bool, result func(error)) {
	h := s.c.host(id)
	h.attach(force, func(d *device) {
		var err error
		switch {
		case d == nil:
			err = errors.New("the volume is not granted")
		case !d.gone:
			s.c.devs = append(s.c.devs, d)
			s.c.attached++
		}
		if result != nil {
			result(err)
		}
	})
}

// Release detaches.
func (s *Script) Release(id holdfast.NodeID) {
	if p := s.c.host(id).primary; p != nil {
		p.Release()
	}
}

// Status is that of the newest primary on a node; false if there never was one.
func (s *Script) Status(id holdfast.NodeID) (replication.PrimaryStatus, bool) {
	s.notePrimaries()
	d := s.last[id]
	if d == nil {
		return replication.PrimaryStatus{}, false
	}
	return d.p.Status(), true
}

// Serving says whether a node's process lives and its primary serves.
func (s *Script) Serving(id holdfast.NodeID) bool {
	h := s.c.host(id)
	return h.up && h.primary != nil && h.primary.Status().State == "serving"
}

// Access is one I/O, in whole blocks.
type Access struct {
	Op            replication.Op
	FUA           bool
	First, Blocks int64
}

// IO is an I/O that was begun.
type IO struct {
	Access
	Done bool
	Err  error
	op   *op
}

// Same says whether what was read of block b is what w wrote there; a nil w
// stands for zeros.
func (r *IO) Same(b int64, w *IO) bool {
	for i := range int64(blockCells) {
		var want value
		if w != nil {
			want = w.op.value + value((b-w.First)*blockCells+i)
		}
		if r.op.got[(b-r.First)*blockCells+i] != want {
			return false
		}
	}
	return true
}

// Submit begins an I/O on the newest primary of a node.
func (s *Script) Submit(id holdfast.NodeID, a Access) (*IO, error) {
	s.notePrimaries()
	d := s.last[id]
	if d == nil {
		return nil, fmt.Errorf("the volume never was attached to %s", id)
	}
	o := &op{first: a.First * blockCells, cells: a.Blocks * blockCells, call: s.c.w.now, open: true, fua: a.FUA}
	r := &replication.Request{Op: a.Op, FUA: a.FUA, Offset: a.First * holdfast.BlockSize, Length: a.Blocks * holdfast.BlockSize}
	switch a.Op {
	case replication.OpRead:
		o.kind, r.Buf = opRead, buf.Get(int(r.Length))
	case replication.OpWrite:
		o.kind, r.Buf = opWrite, buf.Get(int(r.Length))
		s.c.values += value(o.cells)
		o.value = s.c.values - value(o.cells) + 1
		clear(r.Buf.B)
		for i := range o.cells {
			binary.LittleEndian.PutUint64(r.Buf.B[i*cellSize:], o.value+value(i))
		}
	case replication.OpTrim:
		o.kind = opTrim
	default:
		o.kind = opFlush
		o.first, o.cells = 0, 0
	}
	io := &IO{Access: a, op: o}
	r.Done = func(r *replication.Request, err error) {
		io.Done, io.Err = true, err
		d.answered(o, r, err)
	}
	s.c.history = append(s.c.history, o)
	if !d.gone {
		d.ops = append(d.ops, o)
	}
	d.submit(o, r)
	return io, nil
}

// Loss is what of the unflushed writes a power loss takes.
type Loss uint8

// The losses: the process alone dies, the seed decides block by block, all that
// was not flushed goes.
const (
	LoseNothing Loss = iota
	LoseSome
	LoseAll
)

// Kill ends a node's process, with its power or without.
func (s *Script) Kill(id holdfast.NodeID, loss Loss) {
	h := s.c.host(id)
	if loss == LoseAll && h.up && h.disk != nil {
		h.store.kill()
		copy(h.disk.live, h.disk.safe)
		clear(h.disk.dirty)
	}
	h.kill(loss != LoseNothing)
}

// Start begins a new life of a node's process.
func (s *Script) Start(id holdfast.NodeID) { s.c.restart(s.c.host(id)) }

// Link makes or breaks one direction between two nodes.
func (s *Script) Link(from, to holdfast.NodeID, works bool) {
	h, o := s.c.host(from), s.c.host(to)
	if works {
		delete(h.cutTo, o.machine)
		return
	}
	h.cutTo[o.machine] = true
}

// Metadata makes the store reachable or not, for one node or for all ("").
func (s *Script) Metadata(id holdfast.NodeID, works bool) {
	if id == "" {
		s.c.meta.out = !works
		return
	}
	s.c.host(id).noMeta = !works
}

// Snapshot keeps what the metadata store holds; Rollback restores the newest one
// that was kept, with its old revision or, as etcd's restore can do, above all
// that anybody has seen.
func (s *Script) Snapshot() { s.snapshots = append(s.snapshots, s.Record()) }

// Rollback restores the newest snapshot.
func (s *Script) Rollback(bump bool) {
	rev := s.c.meta.rec.Revision
	s.c.meta.rec = s.snapshots[len(s.snapshots)-1].Clone()
	if bump {
		s.c.meta.rec.Revision = rev + 1000
	}
	s.c.logf("meta: rolled back to epoch %d", s.c.meta.rec.Epoch)
}

// Trouble is what a node can have for a while.
type Trouble uint8

// The troubles: the whole process stands still, its disk takes up to three
// seconds for everything, its disk does nothing.
const (
	Paused Trouble = iota
	SlowDisk
	StuckDisk
)

// Afflict gives a node some trouble for d from now on.
func (s *Script) Afflict(id holdfast.NodeID, t Trouble, d time.Duration) {
	h := s.c.host(id)
	*[]*time.Duration{&h.pausedUntil, &h.slowUntil, &h.stuckUntil}[t] = s.c.w.now + d
}

// Full fills a node's pool, or frees space in it.
func (s *Script) Full(id holdfast.NodeID, full bool) { s.c.host(id).fill(full) }

// Break makes every access to a node's disk fail.
func (s *Script) Break(id holdfast.NodeID) { s.c.host(id).disk.failed = true }

// Change is what the controller does to the record.
func (s *Script) Change(what string, f func(*holdfast.Record)) {
	s.c.change(what, func(r *holdfast.Record) bool { f(r); return true })
}

// AddReplica makes an empty replica on a node, and names it in the record.
func (s *Script) AddReplica(id holdfast.NodeID) {
	s.c.replicas++
	rep := holdfast.Replica{ID: holdfast.ReplicaID(fmt.Sprintf("r%d", s.c.replicas)), Node: id, Pool: "p", State: holdfast.New}
	s.Change("add "+string(rep.ID), func(r *holdfast.Record) {
		s.c.host(id).add(rep.ID, r.SizeBytes)
		r.Replicas = append(r.Replicas, rep)
	})
}

// RemoveReplica takes a node's replica, which is not in sync, out of the record
// and away.
func (s *Script) RemoveReplica(id holdfast.NodeID) {
	s.Change("remove the replica on "+string(id), func(r *holdfast.Record) {
		for i, x := range r.Replicas {
			if x.Node == id {
				r.Replicas = append(r.Replicas[:i], r.Replicas[i+1:]...)
				break
			}
		}
	})
	s.c.host(id).remove()
}

// OnDisk says whether a node's disk holds in block b what w wrote (nil: zeros).
func (s *Script) OnDisk(id holdfast.NodeID, b int64, w *IO) bool {
	d := s.c.host(id).disk
	return d != nil && (&IO{op: &op{got: d.live}}).Same(b, w)
}

// Equal compares the in-sync replicas, which must have nothing under way.
func (s *Script) Equal() error { return s.c.equal() }

// Finish ends all troubles and brings all nodes back, attaches the volume if it
// is not, waits until everything is well, and checks the whole history.
func (s *Script) Finish() error {
	next := 0
	var keep func()
	keep = func() {
		if len(s.c.devs) == 0 && !s.c.attaching {
			s.c.moveTo(s.c.meta.hosts[next%len(s.c.meta.hosts)], false)
			next++
		}
		s.c.w.after(300*time.Millisecond, keep)
	}
	keep()
	if err := s.c.healed(); err != nil {
		return err
	}
	return s.Check()
}

// Linearizable checks the history so far; Check also that the in-sync replicas
// are equal.
func (s *Script) Linearizable() error { return s.c.check() }

// Check checks the history and the replicas.
func (s *Script) Check() error {
	if err := s.c.check(); err != nil {
		return err
	}
	return s.c.equal()
}
