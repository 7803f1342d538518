package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/join"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/node/device"
)

// Agent is one node's agent: New, Start, Run, Close, in this order. All other
// methods may be called from any goroutine between Start and Close.
type Agent struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	events  *events
	started time.Time

	registered     chan struct{} // closed after the first registration
	registeredOnce sync.Once

	// ops ends when the agent closes: operations that outlive their callers
	// live as long as this.
	ops    context.Context
	endOps context.CancelFunc
	work   sync.WaitGroup // operations' and volumes' goroutines
	attach join.Group[attachKey, string]
	detach join.Group[detachKey, struct{}]

	// Wake-ups, each of capacity 1.
	refreshSoon, purgeSoon, checkSoon chan struct{}

	mu         sync.Mutex
	lease      metadata.Lease
	node       holdfast.Node // as last registered
	pools      []*poolSlot
	volumes    map[holdfast.VolumeID]*slot
	upkeep     map[holdfast.VolumeID]*upkeep
	kept       map[holdfast.VolumeID]time.Time // until when its maintenance primary is kept, for a hold
	records    map[holdfast.VolumeID]holdfast.Record
	lacking    map[holdfast.VolumeID]bool // of the records, those that maintenance may be about
	creations  map[holdfast.ReplicaID]*turn
	operations map[holdfast.VolumeID][]*operation
	adopted    map[holdfast.VolumeID]bool // devices of a predecessor, not served yet
	reattached bool                       // the predecessor's volumes have been looked for
	closed     bool
}

// Addrs is where this node is reached, as it tells the others.
type Addrs struct {
	Data string // host:port of the replica server
	API  string // host:port of the gRPC services
}

// New makes an agent. The configuration is validated.
func New(cfg Config, deps Deps) (*Agent, error) {
	if cfg.Domain.Host == "" {
		cfg.Domain.Host = string(cfg.ID)
	}
	if cfg.Instance == "" {
		cfg.Instance = string(holdfast.NewReplicaID())
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	a := &Agent{
		cfg: cfg, deps: deps, log: deps.Log.With("node", string(cfg.ID)), events: newEvents(),
		started:     time.Now().UTC(),
		registered:  make(chan struct{}),
		refreshSoon: make(chan struct{}, 1), purgeSoon: make(chan struct{}, 1), checkSoon: make(chan struct{}, 1),
		volumes: map[holdfast.VolumeID]*slot{}, upkeep: map[holdfast.VolumeID]*upkeep{}, kept: map[holdfast.VolumeID]time.Time{},
		records: map[holdfast.VolumeID]holdfast.Record{}, creations: map[holdfast.ReplicaID]*turn{}, adopted: map[holdfast.VolumeID]bool{},
		operations: map[holdfast.VolumeID][]*operation{}, lacking: map[holdfast.VolumeID]bool{},
	}
	a.node = holdfast.Node{ID: cfg.ID, Domain: cfg.Domain}
	a.ops, a.endOps = context.WithCancel(context.Background())
	return a, nil
}

// Start takes the node's lease, takes over the devices that a predecessor left to
// the keeper, removes those that a killed one left behind without, opens the pools and adopts their replicas. After it, the data plane
// may answer: what is stored here is known. Errors: InUse when another process
// lives under this node's id; a pool that fails does not fail Start. On error,
// nothing is left open.
func (a *Agent) Start(ctx context.Context) error {
	if err := a.joinFirst(ctx); err != nil {
		return err
	}
	a.adoptDevices(ctx)
	cleaned, err := a.deps.FrontEnd.CleanOrphans(ctx)
	if err != nil {
		// What could not be removed is in nobody's way: new devices get new names.
		a.log.Warn("devices of a predecessor could not be removed", "err", err)
	}
	for _, id := range cleaned {
		a.note(id, "removed the device that a predecessor of this daemon left behind")
	}
	a.openPools(ctx)
	return nil
}

// Run registers the node and does its duties until ctx ends, which is no error.
// It fails with InUse when another process has taken over this node's id.
func (a *Agent) Run(ctx context.Context, at Addrs) error {
	a.mu.Lock()
	a.node.DataAddr, a.node.APIAddr = at.Data, at.API
	a.mu.Unlock()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return a.keepLease(ctx) })
	g.Go(func() error { a.keepRegistered(ctx); return nil })
	g.Go(func() error { a.keepPools(ctx); return nil })
	g.Go(func() error { a.keepPurging(ctx); return nil })
	g.Go(func() error { a.watch(ctx); return nil })
	g.Go(func() error { a.keepMaintaining(ctx); return nil })
	g.Go(func() error { a.keepScrubbing(ctx); return nil })
	return g.Wait()
}

// Close detaches what is not mounted. What is mounted loses its device with
// this process but stays granted to this node, so that the next daemon attaches
// it again. stopPlane is called when no device is left: it ends what the data
// plane still serves without giving it back. Then the pools are closed, and the
// lease is given back last. Call it when Run has returned.
func (a *Agent) Close(ctx context.Context, stopPlane func() error) error {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return nil
	}
	a.closed = true
	a.mu.Unlock()
	a.endOps()
	a.stopAllUpkeep()
	errs := []error{a.closeVolumes(ctx, nil)}
	errs = append(errs, stopPlane())
	a.work.Wait()
	errs = append(errs, a.closePools())
	a.mu.Lock()
	lease := a.lease
	a.mu.Unlock()
	if lease != nil {
		errs = append(errs, lease.Close())
	}
	return holdfast.Wrap("stop agent", errors.Join(errs...))
}

// Abandon ends the agent without giving anything back, as near to a crash as a
// process can do to itself: what it had is free for others when the lease has
// run out. It is Close otherwise.
func (a *Agent) Abandon(stopPlane func() error) error {
	devices, open := a.abdicate()
	if !open {
		return nil
	}
	errs := []error{stopPlane()}
	a.stopAllUpkeep()
	for _, d := range devices {
		errs = append(errs, d.Abort())
	}
	a.work.Wait()
	errs = append(errs, a.closePools())
	return holdfast.Wrap("abandon agent", errors.Join(errs...))
}

// abdicate ends the agent's operations and names the devices that it has. open is
// false when it had been closed before.
func (a *Agent) abdicate() (devices []device.Device, open bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, false
	}
	a.closed = true
	for _, s := range a.volumes {
		if s.dev != nil {
			devices = append(devices, s.dev)
		}
	}
	a.endOps()
	return devices, true
}

// note writes an event down, for the log and for inspect.
func (a *Agent) note(id holdfast.VolumeID, what string) {
	a.events.add(id, what)
	a.log.Info(what, "volume", string(id))
}

// Note adds what happened to a volume to its events: the data plane's word.
func (a *Agent) Note(id holdfast.VolumeID, what string) { a.note(id, what) }

// spawn runs f as one of the agent's goroutines; false when it is closing.
func (a *Agent) spawn(f func()) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	a.work.Add(1)
	go func() {
		defer a.work.Done()
		f()
	}()
	return true
}

// wake asks a loop to look now.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits for d or the end of ctx; false when ctx has ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// every calls f now, then after each interval and each wake-up, until ctx ends.
func every(ctx context.Context, d time.Duration, soon <-chan struct{}, f func()) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		f()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-soon:
		}
	}
}
