package replication

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// Config is what a primary works with. The zero durations mean the defaults of
// DefaultConfig.
type Config struct {
	Cluster holdfast.ClusterID
	Self    holdfast.NodeID
	// Record is the volume's record in which Self has just been granted.
	Record holdfast.Record
	// Absent are nodes that the metadata store counts as dead: a take-over does
	// not wait long for the replicas there.
	Absent []holdfast.NodeID
	// PriorQuiet says that nobody under an older grant answers reads any more: the
	// record named, until this grant, one that Self had served under (or had been
	// granted with the same knowledge), and the process that did so is gone. Then
	// the take-over need not wait for a read window to pass.
	PriorQuiet bool

	SilentAfter  time.Duration // a replica that says nothing for so long is dropped
	ReconnectFor time.Duration // one whose connection broke has so long to be back, unless I/O waits and its process is gone
	AbsentAfter  time.Duration // a take-over waits so long for replicas on absent nodes
	ReadWindow   time.Duration // reads need every in-sync replica heard from within it
	PingEvery    time.Duration
	// RestAfter is after how long without a request a volume that is well rests, and
	// RestPing how often its replicas are asked then whether they live. A RestPing up to
	// PingEvery keeps it from resting.
	RestAfter    time.Duration
	RestPing     time.Duration
	RedialEvery  time.Duration // between attempts to reach an in-sync replica
	RepairRetry  time.Duration // between attempts to repair another one
	IOTimeout    time.Duration // a living replica that keeps one write for so long is dropped
	NoSpaceRetry time.Duration // between attempts to write to a full pool
	SwapRetry    time.Duration // between attempts to reach the metadata store
	SnapshotHold time.Duration // writes are held for so long at most for a snapshot
	// RepairRate bounds repair traffic of this volume in bytes a second; 0 does
	// not bound it.
	RepairRate  int64
	RepairDepth int // chunks copied at once
	// RepairChunk is how much is locked and copied at once, in bytes; smaller
	// pieces are copied together up to as much. Default RepairChunk.
	RepairChunk int64
	// SmallRepair is up to how many bytes a repair goes ahead of its turn.
	SmallRepair int64
	// ProgressEvery is how often the progress of a repair is made durable.
	ProgressEvery time.Duration
	// ScrubRate bounds what a scrub of this volume reads of each replica, in bytes
	// a second; 0 does not bound it.
	ScrubRate int64

	// SlowPolicy is what is done about a slow replica where the volume's spec does
	// not say. One is slow that answers writes SlowFactor times and at least
	// SlowDifference later than the fastest other, for SlowFor. One that is dropped
	// for it is not repaired for SlowHoldOff, longer each time.
	SlowPolicy     holdfast.SlowPolicy
	SlowFactor     float64
	SlowDifference time.Duration
	SlowFor        time.Duration
	SlowHoldOff    time.Duration
}

// RepairChunk is how much of a volume is read or written by one message of a
// repair, in bytes.
const RepairChunk = 256 << 10

// DefaultConfig has the default times.
func DefaultConfig() Config {
	return Config{
		SilentAfter: 2 * time.Second, ReconnectFor: 500 * time.Millisecond, AbsentAfter: 400 * time.Millisecond, ReadWindow: 2 * time.Second, PingEvery: 400 * time.Millisecond,
		RestAfter: 2 * time.Second, RestPing: 30 * time.Second,
		RedialEvery: 150 * time.Millisecond, RepairRetry: time.Second, IOTimeout: 10 * time.Second,
		NoSpaceRetry: 500 * time.Millisecond, SwapRetry: 300 * time.Millisecond, SnapshotHold: 2 * time.Second,
		RepairRate: 200 << 20, RepairDepth: 2, ScrubRate: 32 << 20,
		SlowPolicy: holdfast.SlowReport, SlowFactor: 5, SlowDifference: 20 * time.Millisecond, SlowFor: 30 * time.Second, SlowHoldOff: 5 * time.Minute,
		RepairChunk: RepairChunk, SmallRepair: 64 << 20, ProgressEvery: 5 * time.Second,
	}
}

func (c *Config) fill() {
	d := DefaultConfig()
	set := func(v *time.Duration, def time.Duration) {
		if *v == 0 {
			*v = def
		}
	}
	set(&c.SilentAfter, d.SilentAfter)
	set(&c.ReconnectFor, d.ReconnectFor)
	set(&c.AbsentAfter, d.AbsentAfter)
	set(&c.ReadWindow, d.ReadWindow)
	set(&c.PingEvery, d.PingEvery)
	set(&c.RestAfter, d.RestAfter)
	set(&c.RestPing, d.RestPing)
	set(&c.RedialEvery, d.RedialEvery)
	set(&c.RepairRetry, d.RepairRetry)
	set(&c.IOTimeout, d.IOTimeout)
	set(&c.NoSpaceRetry, d.NoSpaceRetry)
	set(&c.SwapRetry, d.SwapRetry)
	set(&c.SlowDifference, d.SlowDifference)
	set(&c.SlowFor, d.SlowFor)
	set(&c.SlowHoldOff, d.SlowHoldOff)
	if !c.SlowPolicy.Known() {
		c.SlowPolicy = d.SlowPolicy
	}
	if c.SlowFactor == 0 {
		c.SlowFactor = d.SlowFactor
	}
	set(&c.SnapshotHold, d.SnapshotHold)
	if c.RepairDepth == 0 {
		c.RepairDepth = d.RepairDepth
	}
	if c.RepairChunk == 0 {
		c.RepairChunk = d.RepairChunk
	}
	if c.SmallRepair == 0 {
		c.SmallRepair = d.SmallRepair
	}
	set(&c.ProgressEvery, d.ProgressEvery)
}

// Ports are the interfaces through which a primary acts.
type Ports struct {
	Clock   Clock
	Dialer  Dialer
	Records Records
	Events  Events
	Repairs RepairGate // may be nil
	// Outsiders may be nil: then only replicas that the record names are heard.
	Outsiders Outsiders
}

// phase is where a primary is in its life.
type phase uint8

const (
	connecting  phase = iota // greeting the in-sync replicas
	reconciling              // making their tails equal
	serving
	releasing // nothing new; in flight finishes, then the grant goes back
	ended
)

func (s phase) String() string {
	return [...]string{"connecting", "reconciling", "serving", "releasing", "ended"}[s]
}

// Primary is the state machine that serves one volume's I/O under one grant.
type Primary struct {
	cfg    Config
	ports  Ports
	phase  phase
	served bool  // it has served: the in-sync replicas were made equal
	err    error // why it ended

	rec   holdfast.Record // the newest record known, always with our grant
	epoch holdfast.Epoch  // under which messages go out
	grant holdfast.Epoch
	size  int64

	peers    []*peer // one per replica in the record, in its order
	attempts uint64
	slots    uint32 // bits in use by peers

	locks    rangeLock
	seq      uint64
	inflight []*write // in order of seq; done ones are cut from the front
	backlog  []*Request
	flush    flusher
	readers  readers
	member   membership
	takeover takeover
	repairs  pacer
	scrubs   scrubs
	limit    limiter
	snaps    snapshots
	rest     rest
	silent   bool // the replicas were told that we answer no reads any more

	startedAt time.Duration
	lastTick  time.Duration
	woke      time.Duration // when this process went on after its last pause
	slowBegan time.Duration // the present window for finding slow replicas
	waits     waits         // what I/O waits for
	growth    waits         // what the volume's growth waits for
	counters  Counters
}

// NewPrimary makes the machine; Start sets it going.
func NewPrimary(cfg Config, ports Ports) *Primary {
	cfg.fill()
	p := &Primary{cfg: cfg, ports: ports, rec: cfg.Record.Clone(), epoch: cfg.Record.Epoch,
		grant: cfg.Record.Primary.Grant, size: cfg.Record.SizeBytes}
	p.repairs.rate, p.repairs.chunk = cfg.RepairRate, cfg.RepairChunk
	p.scrubs.pace.rate, p.scrubs.pace.chunk = cfg.ScrubRate, RepairChunk
	return p
}

// Start begins the take-over.
func (p *Primary) Start() {
	now := p.now()
	p.startedAt, p.lastTick, p.slowBegan = now, now, now
	p.syncPeers()
	p.takeover.begun = now
	for _, t := range p.peers {
		p.dial(t)
	}
	if p.ports.Outsiders != nil {
		p.takeover.asking = true
		p.ports.Outsiders.Ask()
	}
}

func (p *Primary) now() time.Duration { return p.ports.Clock.Now() }

func (p *Primary) changed(format string, args ...any) {
	if p.ports.Events.Changed != nil {
		p.ports.Events.Changed(fmt.Sprintf(format, args...))
	}
}

// Submit takes a request; its Done is called when it is over.
func (p *Primary) Submit(r *Request) {
	p.rest.asked = p.now()
	if err := p.admissible(r); err != nil {
		r.Done(r, err)
		return
	}
	r.at = p.awake()
	if p.hopeless(r) {
		r.Done(r, p.tooLong())
		return
	}
	if p.held(r) || len(p.backlog) > 0 {
		p.backlog = append(p.backlog, r)
		return
	}
	p.begin(r)
}

// admissible refuses what can never be done.
func (p *Primary) admissible(r *Request) error {
	op := func() string { return "I/O on volume " + p.rec.Name }
	switch {
	case p.phase == ended && p.err != nil:
		return p.err
	case p.phase == ended || p.phase == releasing:
		return holdfast.E(op(), holdfast.Unavailable, "the volume is being detached")
	case r.Op == OpFlush:
		return nil
	case r.Offset < 0 || r.Length <= 0 || r.Offset > p.size || r.Length > p.size-r.Offset:
		return holdfast.E(op(), holdfast.OutOfRange, fmt.Sprintf("bytes %d to %d are outside of the volume's %d", r.Offset, r.Offset+r.Length, p.size))
	case (r.Op == OpRead || r.Op == OpWrite) && (r.Buf == nil || int64(len(r.Buf.B)) != r.Length):
		return holdfast.E(op(), holdfast.Invalid, "the buffer does not have the request's length")
	}
	return nil
}

// held says whether a request must wait before it begins.
func (p *Primary) held(r *Request) bool {
	if p.phase != serving {
		return true
	}
	// Writes and flushes do not begin while a replica is being dropped, nor
	// while fewer replicas than minInSync are in sync, nor while a snapshot is
	// being taken.
	return r.Op != OpRead && (p.member.losing != 0 || p.snaps.hold != nil || !p.mayAck())
}

// begin starts a request.
func (p *Primary) begin(r *Request) {
	switch r.Op {
	case OpRead:
		p.beginRead(r)
	case OpFlush:
		p.flush.waiting = append(p.flush.waiting, r)
		p.kickFlush()
	default:
		p.beginWrite(r)
	}
}

// admit begins what was held back, in order, as far as it may.
func (p *Primary) admit() {
	for len(p.backlog) > 0 && !p.held(p.backlog[0]) {
		r := p.backlog[0]
		p.backlog[0] = nil
		p.backlog = p.backlog[1:]
		p.begin(r)
	}
	if len(p.backlog) == 0 {
		p.backlog = nil
	}
}

// Tick is the event that some time has passed; called about every 50 ms, but see
// Rests.
func (p *Primary) Tick() {
	if p.phase == ended {
		return
	}
	now := p.now()
	p.stir()
	if now-p.lastTick > p.cfg.SilentAfter/2 {
		// This process was paused, not the replicas: their silence is ours.
		p.limit.asleep += now - p.lastTick
		p.woke = now
		p.resetSlow(now)
		for _, t := range p.peers {
			t.heard = now
			if t.downSince != 0 {
				t.downSince = max(t.downSince, now-p.cfg.SilentAfter/2)
			}
		}
	}
	p.lastTick = now
	calm := p.calm(now)
	for _, t := range p.peers {
		p.tickPeer(t, calm, now)
	}
	p.tickWrites(now)
	p.tickTakeover(now)
	p.tickMembership(now)
	p.settle()
	p.prune()
	p.tickRepairs(now)
	p.tickScrub(now)
	p.tickSlow(now)
	p.tickSnapshots(now)
	p.admit()
	p.retryReads()
	p.tickLimit()
	p.finishRelease()
	p.noteWaits(now)
}

// OnRecord is the event that the metadata store has shown a record, in a watch
// or otherwise. Older ones are ignored.
func (p *Primary) OnRecord(rec holdfast.Record) {
	if p.phase == ended || rec.Revision <= p.rec.Revision {
		return
	}
	p.adopt(rec)
}

// OnDeleted is the event that the record is gone.
func (p *Primary) OnDeleted() {
	p.end(holdfast.E("serve volume "+p.rec.Name, holdfast.Fenced, "the volume was deleted"))
}

// Release gives the volume back: what is in flight finishes, the grant goes out
// of the record, then Events.Ended is called with nil.
func (p *Primary) Release() {
	if p.phase == ended || p.phase == releasing {
		return
	}
	p.phase = releasing
	p.endHold(p.holdError(holdfast.Unavailable, "it is being detached"))
	p.failBacklog(holdfast.E("I/O on volume "+p.rec.Name, holdfast.Unavailable, "the volume is being detached"))
	p.finishRelease()
}

// Abort ends at once: all requests fail, the record keeps our grant.
func (p *Primary) Abort() {
	p.end(holdfast.E("serve volume "+p.rec.Name, holdfast.Unavailable, "the device was removed by force"))
}

// finishRelease goes on with a release once nothing is in flight.
func (p *Primary) finishRelease() {
	if p.phase != releasing || !p.idle() {
		return
	}
	if p.member.losing == 0 {
		p.settle() // also those that have reconnected since
		p.prune()
	}
	if p.member.losing != 0 || p.settled() {
		p.plan()
	}
}

// idle says whether no request is under way. A failed write has nobody left who
// waits for it; the next primary makes its range the same everywhere.
func (p *Primary) idle() bool {
	return !slices.ContainsFunc(p.inflight, func(w *write) bool { return !w.failed }) && p.readers.n == 0 && p.flush.idle() && !p.locks.wanted()
}

// fallSilent tells the replicas that no read will be answered any more, whatever
// becomes of the release: so the next primary need not wait for that.
func (p *Primary) fallSilent() {
	for _, t := range p.peers {
		if t.up && !p.silent {
			p.ask(t, &Message{Type: MsgQuiet}, func(*Message) {})
		}
	}
	p.silent = true
}

// end answers everything that is open with err (or Unavailable after a clean
// release) and stops for good.
func (p *Primary) end(err error) {
	if p.phase == ended {
		return
	}
	p.phase, p.err = ended, err
	p.endHold(p.holdError(holdfast.Unavailable, "it is not served here any more"))
	for _, t := range p.peers {
		p.hangUp(t)
	}
	p.failBacklog(err)
	p.failWrites(err)
	p.failReads(err)
	p.flush.fail(err)
	if p.ports.Events.Ended != nil {
		p.ports.Events.Ended(err)
	}
}

func (p *Primary) failBacklog(err error) {
	rs := p.backlog
	p.backlog = nil
	if err == nil {
		err = holdfast.Unavailable
	}
	for _, r := range rs {
		r.Done(r, err)
	}
}
