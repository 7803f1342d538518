package node

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine"
	"github.com/holdfast-storage/holdfast/internal/ask"
	"github.com/holdfast-storage/holdfast/node/agent"
	"github.com/holdfast-storage/holdfast/node/dataplane"
)

// pools opens pools by the engine, and serves their replicas by the data plane.
type pools struct {
	cluster    holdfast.ClusterID
	node       holdfast.NodeID
	bootID     string
	mountRoot  string
	memoryRoot string
	plane      *dataplane.Plane
}

func (n *Node) newPools(cluster holdfast.ClusterID, boot string, p *dataplane.Plane) *pools {
	return &pools{
		cluster: cluster, node: n.cfg.Agent.ID, bootID: boot,
		mountRoot: filepath.Join(n.cfg.RunDir, "pools"), memoryRoot: filepath.Join(n.cfg.RunDir, "memory"), plane: p,
	}
}

// Open implements agent.PoolOpener.
func (o *pools) Open(ctx context.Context, c agent.PoolConfig) (agent.Pool, error) {
	op := "open pool " + c.Path
	if c.ImageBytes > 0 {
		if err := makeImage(c.Path, c.ImageBytes); err != nil {
			return nil, holdfast.Wrap(op, err)
		}
	}
	open := engine.OpenOptions{Device: c.Path, Cluster: o.cluster, Node: o.node, MountRoot: o.mountRoot, MemoryRoot: o.memoryRoot, BootID: o.bootID}
	p, err := openPatiently(ctx, open)
	if errors.Is(err, holdfast.NotFound) && c.Format {
		_, err = engine.Format(ctx, engine.FormatOptions{Device: c.Path, Cluster: o.cluster, Node: o.node, MountRoot: o.mountRoot})
		if err == nil {
			p, err = openPatiently(ctx, open)
		}
	}
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	shown := &pool{Pool: p, plane: o.plane, served: map[holdfast.ReplicaID]handed{}}
	shown.about.Know(p.Info())
	return shown, nil
}

// openPatience bounds waiting for a pool that is in use: a killed predecessor is
// not gone at once, and a child of this process holds what was just closed
// between fork and exec.
const openPatience = 3 * time.Second

func openPatiently(ctx context.Context, o engine.OpenOptions) (*engine.Pool, error) {
	for deadline := time.Now().Add(openPatience); ; {
		p, err := engine.OpenPool(ctx, o)
		if !errors.Is(err, holdfast.InUse) || time.Now().After(deadline) {
			return p, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// makeImage makes a sparse file if there is none.
func makeImage(path string, bytes int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return holdfast.WrapKind("make image file", holdfast.Invalid, err)
	}
	return holdfast.WrapKind("make image file", holdfast.NoSpace, errors.Join(f.Truncate(bytes), f.Close()))
}

// Find implements agent.PoolOpener.
func (o *pools) Find(ctx context.Context) ([]string, error) {
	devices, err := blockDevices("/sys/class/block")
	if err != nil {
		return nil, err
	}
	var ours []string
	for _, d := range devices {
		if ctx.Err() != nil {
			return nil, holdfast.WrapKind("search for pools", holdfast.Unavailable, ctx.Err())
		}
		id, err := engine.Probe(ctx, d)
		if err == nil && id.Cluster == o.cluster && id.Node == o.node {
			ours = append(ours, d)
		}
	}
	return ours, nil
}

// blockDevices lists the devices that can be pools: disks and partitions that
// nothing is stacked on. Loop devices are left out, as those may be our own
// volumes, which must not be read here; images are listed in the configuration.
func blockDevices(sys string) ([]string, error) {
	entries, err := os.ReadDir(sys)
	if err != nil {
		return nil, holdfast.WrapKind("list block devices", holdfast.Unavailable, err)
	}
	var devices []string
	for _, e := range entries {
		name := e.Name()
		notDisk := func(prefix string) bool { return strings.HasPrefix(name, prefix) }
		if slices.ContainsFunc([]string{"loop", "ram", "zram", "nbd", "ublkb", "fd", "sr"}, notDisk) {
			continue
		}
		size, err := os.ReadFile(filepath.Join(sys, name, "size"))
		if err != nil || strings.TrimSpace(string(size)) == "0" {
			continue
		}
		if holders, err := os.ReadDir(filepath.Join(sys, name, "holders")); err == nil && len(holders) > 0 {
			continue
		}
		devices = append(devices, "/dev/"+strings.ReplaceAll(name, "!", "/"))
	}
	slices.Sort(devices)
	return devices, nil
}

// pool shows an engine pool as the agent wants it.
type pool struct {
	*engine.Pool
	plane *dataplane.Plane

	about ask.Question[holdfast.Pool]

	mu     sync.Mutex
	served map[holdfast.ReplicaID]handed

	asking sync.Mutex // guards the rest
	status map[holdfast.ReplicaID]dataplane.ReplicaStatus
	until  time.Time // how long status will do
}

// handed is a replica that was to be handed to the data plane.
type handed struct {
	volume  holdfast.VolumeID
	replica *engine.Replica // nil if it could not be
	err     error           // why
}

// Info adds what the data plane knows: which replicas are served no more, and
// whether the disk answers. It waits a bounded time for that.
func (p *pool) Info() holdfast.Pool {
	info, silent := p.about.Ask(p.Pool.Info)
	status := p.statuses()
	info.Failed = p.failed(status)
	if n := len(info.Failed); n > 0 && info.State != holdfast.PoolFailed {
		info.Message = fmt.Sprintf("%d of its replicas failed: replica %s: %s", n, info.Failed[0].ID, info.Failed[0].Why)
	}
	p.silence(&info, silent, status)
	return info
}

// failed are the replicas of this pool that are not served, by their ids.
func (p *pool) failed(status map[holdfast.ReplicaID]dataplane.ReplicaStatus) (out []holdfast.FailedReplica) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, h := range p.served {
		why := status[id].Failure
		if h.err != nil {
			why = h.err.Error()
		}
		if why != "" {
			out = append(out, holdfast.FailedReplica{ID: id, Volume: h.volume, Why: why})
		}
	}
	slices.SortFunc(out, func(x, y holdfast.FailedReplica) int { return strings.Compare(string(x.ID), string(y.ID)) })
	return out
}

// Remove implements agent.Pool.
func (p *pool) Remove(ctx context.Context, id holdfast.ReplicaID) error {
	err := p.Pool.Remove(ctx, id)
	if err == nil {
		p.mu.Lock()
		delete(p.served, id)
		p.mu.Unlock()
	}
	return err
}

// closePatience bounds waiting for the last tasks of a pool that is closed while
// the data plane goes on.
const closePatience = 30 * time.Second

// Close implements agent.Pool: the data plane lets go of the replicas first.
func (p *pool) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closePatience)
	defer cancel()
	p.mu.Lock()
	ids := slices.Sorted(maps.Keys(p.served))
	p.mu.Unlock()
	var errs []error
	for _, id := range ids {
		if err := p.plane.RemoveReplica(ctx, id); errors.Is(err, holdfast.Unavailable) {
			return err // its tasks are not done: nothing may be closed under them
		} else if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, p.Pool.Close())...)
}

func (p *pool) Create(ctx context.Context, r agent.Stored) error {
	if r.Origin != (agent.Origin{}) {
		return p.CreateFrom(ctx, engine.CloneOptions{Volume: r.Volume, Replica: r.Replica, SizeBytes: r.SizeBytes, Origin: r.Origin.Replica, Snapshot: r.Origin.Snapshot})
	}
	return p.Pool.Create(ctx, r.Volume, r.Replica, r.SizeBytes)
}

// usage is what the snapshots of an open replica take.
func (p *pool) usage(id holdfast.ReplicaID) []agent.SnapshotUsage {
	p.mu.Lock()
	r := p.served[id].replica
	p.mu.Unlock()
	if r == nil {
		return nil
	}
	var all []agent.SnapshotUsage
	for _, s := range r.Snapshots() {
		all = append(all, agent.SnapshotUsage{ID: s.ID, HeldBytes: s.HeldBytes, AllocatedBytes: s.AllocatedBytes})
	}
	return all
}

// Replicas implements agent.Pool. Which replicas a volume has here is known of
// those that were handed to the data plane, or failed to be: all that are there.
func (p *pool) Replicas(n agent.Named) ([]agent.Stored, error) {
	if n == (agent.Named{}) {
		infos, err := p.Pool.Replicas()
		if err != nil {
			return nil, err
		}
		status := p.ask()
		stored := make([]agent.Stored, 0, len(infos))
		for _, r := range infos {
			stored = append(stored, p.stored(r, status[r.Replica]))
		}
		return stored, nil
	}
	var stored []agent.Stored
	for _, id := range p.named(n) {
		info, err := p.Replica(id)
		switch {
		case errors.Is(err, holdfast.NotFound):
		case err != nil:
			return nil, err
		default:
			s, _ := p.plane.Replica(id)
			stored = append(stored, p.stored(info, s))
		}
	}
	return stored, nil
}

// named are the ids of the replicas that are named.
func (p *pool) named(n agent.Named) (ids []holdfast.ReplicaID) {
	if n.Replica != "" {
		return []holdfast.ReplicaID{n.Replica}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, h := range p.served {
		if h.volume == n.Volume {
			ids = append(ids, id)
		}
	}
	return ids
}

// statusShare is how many times longer what the data plane says of all replicas is
// used than it took to ask: it takes the lock of each, of thousands some milliseconds,
// and each creation asks. statusFor bounds it.
const (
	statusShare = 50
	statusFor   = 500 * time.Millisecond
)

// statuses is what the data plane said of all replicas lately; not to be changed.
func (p *pool) statuses() map[holdfast.ReplicaID]dataplane.ReplicaStatus {
	p.asking.Lock()
	defer p.asking.Unlock()
	began := time.Now()
	if began.Before(p.until) {
		return p.status
	}
	p.status = p.ask()
	now := time.Now()
	p.until = now.Add(min(statusFor, statusShare*now.Sub(began)))
	return p.status
}

// ask is what the data plane says of all replicas now.
func (p *pool) ask() map[holdfast.ReplicaID]dataplane.ReplicaStatus {
	all := map[holdfast.ReplicaID]dataplane.ReplicaStatus{}
	for _, s := range p.plane.Replicas() {
		all[s.Replica] = s
	}
	return all
}

// stored is a replica with what the data plane says of it.
func (p *pool) stored(r engine.ReplicaInfo, s dataplane.ReplicaStatus) agent.Stored {
	p.mu.Lock()
	if h := p.served[r.Replica]; h.err != nil {
		s.Failure = h.err.Error()
	}
	p.mu.Unlock()
	return agent.Stored{Volume: r.Volume, Replica: r.Replica, SizeBytes: r.SizeBytes,
		AllocatedBytes: r.AllocatedBytes, Promised: s.Promise.Epoch, Failure: s.Failure, Snapshots: p.usage(r.Replica)}
}

// Serve implements agent.Pool. One that is open is served already: only this
// opens replicas.
func (p *pool) Serve(_ context.Context, id holdfast.ReplicaID) error {
	h, err := p.serve(id)
	p.mu.Lock()
	defer p.mu.Unlock()
	if h.err = err; err == nil && h.replica == nil {
		h.replica = p.served[id].replica
	}
	p.served[id] = h
	return err
}

// serve gives no replica for one that is open already.
func (p *pool) serve(id holdfast.ReplicaID) (h handed, err error) {
	info, err := p.Replica(id)
	if err != nil {
		return h, holdfast.Wrap("serve replica "+string(id), err)
	}
	h.volume = info.Volume
	if info.Err != nil {
		return h, holdfast.Wrap("serve replica "+string(id), info.Err)
	}
	r, err := p.Open(id)
	if errors.Is(err, holdfast.InUse) {
		return h, nil
	}
	if err != nil {
		return h, err
	}
	if err := p.plane.AddReplica(h.volume, id, r); err != nil {
		return h, errors.Join(err, r.Close())
	}
	h.replica = r
	return h, nil
}

func (p *pool) Check(ctx context.Context, progress func(done, total int64)) ([]string, error) {
	problems, err := p.Pool.Check(ctx, progress)
	lines := make([]string, 0, len(problems))
	for _, x := range problems {
		lines = append(lines, x.String())
	}
	return lines, err
}
