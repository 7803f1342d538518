package agent_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/node/agent"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/replication"
)

// The fakes stand in for disks, the network and the kernel; the metadata store is
// the real one in memory, and grants are the real replication.Grant.

type fakePlane struct {
	node  holdfast.NodeID
	store metadata.Store

	mu      sync.Mutex
	replica map[holdfast.ReplicaID]bool
	open    map[holdfast.VolumeID]*fakeVolume
	opens   int
	block   chan struct{} // Open waits for it if set
	refused error         // Open fails with it if set
	log     []string      // order of what matters across parts
}

func (p *fakePlane) Open(ctx context.Context, id holdfast.VolumeID, o agent.OpenOptions) (agent.Volume, error) {
	p.mu.Lock()
	p.opens++
	block, refused := p.block, p.refused
	if v := p.open[id]; v != nil && !v.hasEnded() {
		p.mu.Unlock()
		return nil, holdfast.E("open", holdfast.Other, "the test's plane was asked to open a volume twice")
	}
	p.mu.Unlock()
	if refused != nil {
		return nil, refused
	}
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return nil, holdfast.WrapKind("open", holdfast.Unavailable, ctx.Err())
		}
	}
	rec, err := p.store.Volume(ctx, string(id))
	if err != nil {
		return nil, err
	}
	alive := false
	if rec.Primary != nil {
		if alive, err = p.store.Alive(ctx, rec.Primary.Node); err != nil {
			return nil, err
		}
	}
	next, err := replication.Grant(rec, replication.GrantRequest{Self: p.node, Kind: o.Kind, HolderAlive: alive, Force: o.Force})
	if err != nil {
		return nil, err
	}
	if next, err = p.store.SwapVolume(ctx, next); err != nil {
		return nil, err
	}
	v := &fakeVolume{plane: p, id: id, size: next.SizeBytes, ended: make(chan struct{})}
	p.mu.Lock()
	p.open[id] = v
	p.mu.Unlock()
	return v, nil
}

func (p *fakePlane) RemoveReplica(_ context.Context, id holdfast.ReplicaID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, "plane lets go of "+string(id))
	delete(p.replica, id)
	return nil
}

func (p *fakePlane) volume(id holdfast.VolumeID) *fakeVolume {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open[id]
}

func (p *fakePlane) note(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.log = append(p.log, what)
}

func (p *fakePlane) history() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.log)
}

func (p *fakePlane) refuse(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused = err
}

func (p *fakePlane) opened() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opens
}

type fakeVolume struct {
	plane *fakePlane
	id    holdfast.VolumeID

	mu      sync.Mutex
	size    int64
	resized func(int64)
	ended   chan struct{}
	err     error
	stuck   error // Release fails with it
	scrub   replication.ScrubStatus
	endless bool // a scrub does not end by itself
	held    string
	block   bool // Hold waits for its caller to go
}

func (v *fakeVolume) Submit(r *replication.Request) { r.Done(r, nil) }

func (v *fakeVolume) SizeBytes() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.size
}

func (v *fakeVolume) Release(ctx context.Context) error {
	v.mu.Lock()
	stuck := v.stuck
	v.mu.Unlock()
	if stuck != nil {
		return stuck
	}
	if v.hasEnded() {
		return nil
	}
	for {
		rec, err := v.plane.store.Volume(ctx, string(v.id))
		if err != nil {
			return err
		}
		if rec.Primary != nil && rec.Primary.Node == v.plane.node {
			rec.Primary = nil
			if _, err = v.plane.store.SwapVolume(ctx, rec); errors.Is(err, holdfast.Busy) {
				continue
			}
		}
		v.plane.note("released " + string(v.id))
		v.end(nil)
		return err
	}
}

func (v *fakeVolume) Abort() {
	v.plane.note("aborted " + string(v.id))
	v.end(holdfast.E("serve", holdfast.Unavailable, "aborted"))
}

func (v *fakeVolume) setStuck(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.stuck = err
}

func (v *fakeVolume) end(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	select {
	case <-v.ended:
	default:
		v.err = err
		close(v.ended)
	}
}

func (v *fakeVolume) hasEnded() bool {
	select {
	case <-v.ended:
		return true
	default:
		return false
	}
}

func (v *fakeVolume) Ended() <-chan struct{} { return v.ended }

func (v *fakeVolume) Err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.err
}

func (v *fakeVolume) OnResize(f func(int64)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.resized = f
}

func (v *fakeVolume) Status() replication.PrimaryStatus {
	v.mu.Lock()
	defer v.mu.Unlock()
	return replication.PrimaryStatus{Scrub: v.scrub}
}

func (v *fakeVolume) Scrub(id string, _ holdfast.ReplicaID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.scrub = replication.ScrubStatus{ID: id, State: replication.ScrubDone, Blocks: 5, Mismatches: 2, Healed: 2}
	if v.endless {
		v.scrub.State = replication.ScrubRunning
	}
}

func (v *fakeVolume) CancelScrub() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.scrub.State = replication.ScrubCancelled
}

func (v *fakeVolume) setEndless() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.endless = true
}

func (v *fakeVolume) grow(size int64) {
	v.mu.Lock()
	v.size = size
	f := v.resized
	v.mu.Unlock()
	f(size)
}

type fakeFrontEnd struct {
	plane *fakePlane
	mu    sync.Mutex
	made  int
	fail  error
	open  map[holdfast.VolumeID]*fakeDevice
}

func (f *fakeFrontEnd) Name() string { return "fake" }

func (f *fakeFrontEnd) Open(_ context.Context, o device.Options, _ device.Backend) (device.Device, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	f.made++
	d := &fakeDevice{front: f, id: o.Volume, path: fmt.Sprintf("/dev/fake%d", f.made), size: o.SizeBytes}
	f.open[o.Volume] = d
	return d, nil
}

func (f *fakeFrontEnd) CleanOrphans(context.Context) ([]holdfast.VolumeID, error) { return nil, nil }

func (f *fakeFrontEnd) device(id holdfast.VolumeID) *fakeDevice {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.open[id]
}

type fakeDevice struct {
	front *fakeFrontEnd
	id    holdfast.VolumeID
	path  string

	mu      sync.Mutex
	size    int64
	mounted bool
	aborted bool
	gone    bool
}

func (d *fakeDevice) Path() string { return d.path }

func (d *fakeDevice) Grow(_ context.Context, size int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.size = size
	return nil
}

func (d *fakeDevice) Close(context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mounted {
		return holdfast.E("close device", holdfast.InUse, "it is mounted on /mnt")
	}
	d.gone = true
	d.front.plane.note("closed device of " + string(d.id))
	return nil
}

func (d *fakeDevice) Abort() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone, d.aborted = true, true
	return nil
}

func (d *fakeDevice) mount(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mounted = on
}

func (d *fakeDevice) isAborted() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.aborted
}

type fakePool struct {
	plane *fakePlane
	mu    sync.Mutex
	info  holdfast.Pool
	data  map[holdfast.ReplicaID]agent.Stored
}

func (p *fakePool) Info() holdfast.Pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.info
}

func (p *fakePool) Create(_ context.Context, r agent.Stored) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.data[r.Replica] = r
	return nil
}

func (p *fakePool) Replicas(n agent.Named) (of []agent.Stored, _ error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.data {
		if (n.Volume == "" || n.Volume == s.Volume) && (n.Replica == "" || n.Replica == s.Replica) {
			of = append(of, s)
		}
	}
	return of, nil
}

func (p *fakePool) Serve(_ context.Context, id holdfast.ReplicaID) error {
	p.plane.mu.Lock()
	defer p.plane.mu.Unlock()
	p.plane.replica[id] = true
	return nil
}

func (p *fakePool) Remove(_ context.Context, id holdfast.ReplicaID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.plane.note("pool removes " + string(id))
	delete(p.data, id)
	return nil
}

func (p *fakePool) Check(_ context.Context, progress func(done, total int64)) ([]string, error) {
	progress(1, 1)
	return []string{"a problem"}, nil
}

func (p *fakePool) Close() error { p.plane.note("pool closed"); return nil }

func (p *fakePool) holds(id holdfast.ReplicaID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.data[id]
	return ok
}

// fakePools has one pool per path.
type fakePools struct {
	mu    sync.Mutex
	pools map[string]*fakePool
	found []string
	hangs map[string]chan struct{} // until it is closed, opening the pool does not end
}

func (o *fakePools) Open(_ context.Context, c agent.PoolConfig) (agent.Pool, error) {
	if hangs := o.hangs[c.Path]; hangs != nil {
		<-hangs
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if p := o.pools[c.Path]; p != nil {
		return p, nil
	}
	return nil, holdfast.E("open pool "+c.Path, holdfast.Corrupt, "its superblock cannot be read")
}

func (o *fakePools) Find(context.Context) ([]string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.found), nil
}

func (o *fakePools) put(path string, p *fakePool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pools[path] = p
}
