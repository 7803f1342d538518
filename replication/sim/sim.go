package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

const (
	clusterID = holdfast.ClusterID("sim")
	volumeID  = holdfast.VolumeID("vol")
)

// Config describes a run.
type Config struct {
	Seed      uint64
	Hosts     int   // 3 to 7
	Volumes   int   // that share them; 0: one
	Replicas  int   // on the first hosts
	Blocks    int64 // size of the volume
	HotBlocks int64 // that are written most
	Unaligned bool  // also requests that are not made of whole blocks
	MinInSync int
	Depth     int           // operations at once
	Faults    time.Duration // how long faults happen
	Heal      time.Duration // how long afterwards everything must be well again
	Protocol  replication.Config
	Scrubs    bool // it is scrubbed all the time, with flipped bits if it has three replicas
	Crowded   bool // nodes have room for repairs by primaries elsewhere only now and then
	Limits    bool // the volume gets limits for how long its I/O waits, and loses them
	Drowsy    bool // its users often ask for nothing for a while
	Probes    bool // nodes are probed for volumes at rest
	Trace     bool
	Snapshots bool // taken, deleted and restored at random
	// Kinds names the faults; empty: all.
	Kinds []string
	// Only names the choices that are not left out; nil: none is.
	Only map[Choice]bool
}

// Default is a run of a virtual minute, its shape drawn from the seed.
func Default(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 7))
	hosts := 3 + rng.IntN(3)
	protocol := replication.Config{
		SilentAfter: time.Duration(1+rng.IntN(6)) * time.Second,
		ReadWindow:  time.Duration(1+rng.IntN(2)) * time.Second,
		IOTimeout:   time.Duration(1+rng.IntN(10)) * time.Second,
	}
	cfg := Config{Seed: seed, Protocol: protocol, Hosts: hosts, Replicas: 2 + rng.IntN(2), Blocks: 64, HotBlocks: 8 + rng.Int64N(24),
		Depth: 1 + rng.IntN(8), Faults: 55 * time.Second, Heal: 60 * time.Second, Unaligned: rng.IntN(3) == 0, MinInSync: 1}
	if rng.IntN(4) == 0 {
		cfg.MinInSync = 2
	}
	if rng.IntN(4) == 0 {
		cfg.HotBlocks, cfg.Depth = 4+rng.Int64N(4), 8 // writes that overlap
	}
	more := rand.New(rand.NewPCG(seed, 11)) // of its own: what came later does not change the shapes above
	cfg.Limits = more.IntN(3) == 0
	cfg.Scrubs = more.IntN(4) == 0
	if more.IntN(3) == 0 {
		cfg.Protocol.SlowPolicy, cfg.Protocol.SlowFactor, cfg.Protocol.SlowDifference = holdfast.SlowDrop, 3, 5*time.Millisecond
		cfg.Protocol.SlowFor, cfg.Protocol.SlowHoldOff = time.Duration(1+more.IntN(3))*time.Second, time.Second
	}
	cfg.repairs()
	cfg.rests()
	cfg.widen(rand.New(rand.NewPCG(seed, 12)))
	cfg.Snapshots = more.IntN(2) == 0
	if more.IntN(3) > 0 {
		cfg.Kinds = few(more)
	}
	if seed%2 == 0 {
		cfg.stageOnly(seed/2, more)
	} else {
		cfg.Crowded = rand.New(rand.NewPCG(seed, 13)).IntN(3) == 0
	}
	return cfg
}

// widen adds nodes without replicas, and volumes.
func (c *Config) widen(rng *rand.Rand) {
	c.Hosts += max(0, rng.IntN(5)-2)
	c.Volumes = 1 + max(0, rng.IntN(5)-2)
}

// repairs draws how repairs go: also so slowly, and in so small pieces, that they
// are interrupted in the middle.
func (c *Config) repairs() {
	rng := rand.New(rand.NewPCG(c.Seed, 8))
	c.Protocol.RepairChunk = holdfast.BlockSize << rng.IntN(7)
	c.Protocol.ProgressEvery = 50*time.Millisecond + time.Duration(rng.Int64N(int64(time.Second)))
	if rng.IntN(3) > 0 {
		c.Protocol.RepairRate = 16<<10 + rng.Int64N(64<<10)
		c.Protocol.RepairChunk = holdfast.BlockSize << rng.IntN(4)
		c.Heal += time.Minute // one of a whole volume takes a third of that; several follow each other (seed 6080117)
	}
}

// Result is what a run did.
type Result struct {
	Operations int
	Attached   int
	Faults     map[string]int
	Epochs     holdfast.Epoch
	Virtual    time.Duration
	Coverage   Coverage
	Choices    []Choice       // all that were made
	Snapshots  map[string]int // taken, restored, cut by command
	Trace      []string
	Err        error
}

// cluster is one volume of a run.
type cluster struct {
	*site
	number    int
	id        holdfast.VolumeID
	cfg       Config
	w         *world
	meta      *meta
	devs      []*device // attached, as far as their users know
	attaching bool
	attached  int
	history   []*op
	values    value
	replicas  int // made so far
	ends      []*end
	onServe   func()
	hushed    bool  // nothing is asked until a replica is dropped
	survivor  *host // its connections break when another replica is dropped
	snapped   int   // how often they did

	stormSteps int
	stormUntil time.Duration // many requests at once, mostly for one block
	spot       int64         // that block
	lullUntil  time.Duration // no requests, but for scenes'
	damaged    bool          // replicas differ on purpose
	hotOnly    bool          // most of the volume is not to be used
	keepUntil  time.Duration // replicas that leave are not taken away before
	losses     int           // power losses so far
	bounded    int           // operations before this one belong to earlier primaries
	lossSeen   int           // of which the history knows
	quiet      bool
	stageUntil time.Duration // nobody but a scene does anything
	acting     string        // the scene that was begun last
	playing    string        // the one that had the stage last
	onPromote  func()        // called once, when a promotion is to be committed; its outcome is not known for a while
	faults     map[string]int
	lastEnd    error // of a primary
	rolledBack bool  // the metadata store was
	covered    Coverage
	drops      map[holdfast.ReplicaID]drop
	answers    [replication.MsgTypeEnd][replication.StatusEnd]int
	snaps      snapWatch
}

// newCluster is one more volume of a site.
func newCluster(cfg Config, s *site) *cluster {
	c := &cluster{site: s, number: len(s.volumes), id: volumeID, cfg: cfg, w: s.w, faults: map[string]int{}, covered: Coverage{}, drops: map[holdfast.ReplicaID]drop{}}
	if c.number > 0 {
		c.id += holdfast.VolumeID(strconv.Itoa(c.number))
	}
	c.meta = &meta{site: s, c: c, swaps: c.first()}
	c.stormSteps = c.first()
	s.volumes = append(s.volumes, c)
	return c
}

// Run runs one seed.
func Run(cfg Config) (res Result) {
	if cfg.Scrubs && may(cfg.Kinds, "scrub") {
		return RunScrub(cfg, cfg.Replicas > 2 && may(cfg.Kinds, "flip")).Result
	}
	w := newWorld(&cfg, 1)
	s := newSite(w, cfg.Hosts)
	defer func() {
		if r := recover(); r != nil {
			res = s.result(panicError(r))
		}
	}()
	for _, x := range cfg.beside() {
		newCluster(x, s).build()
	}
	s.power()
	for _, c := range s.volumes {
		c.drive()
	}
	s.volumes[0].fault()
	for _, c := range s.volumes {
		if cfg.Snapshots {
			c.snapshotting()
			c.cfg.Heal *= 12 // a repair goes in stages, each of which may look at everything, one replica after the other, at 16 KiB/s (seed 4103397)
		}
	}
	w.runUntil(cfg.Faults, nil)
	return s.result(s.judge())
}

// errRefused is an allowed end: a replica has seen another history than a metadata
// store that was rolled back knows. It says so, and an operator has to decide.
var errRefused = errors.New("refused after a rollback")

// judge goes through what must be true in the end. If the volume is refused, that
// is what was answered before.
func (c *cluster) judge(err error, steps ...func() error) error {
	if errors.Is(err, errRefused) {
		c.hit("end", err.Error())
		return c.check()
	}
	for _, step := range steps {
		if err == nil {
			err = step()
		}
	}
	return err
}

func (c *cluster) result(err error) Result {
	return Result{Operations: len(c.history), Attached: c.attached, Faults: c.faults, Epochs: c.meta.rec.Epoch, Virtual: c.w.now, Coverage: c.coverage(),
		Snapshots: c.snaps.counts, Choices: c.w.choices, Trace: c.w.trace, Err: err}
}

// panicError is what a run says that came to a panic: a check that was made on the
// way, or one of the machines' own.
func panicError(r any) error {
	if err, ok := r.(violation); ok {
		return err
	}
	return violation{panicked, fmt.Sprintf("panic: %v\n%s", r, debug.Stack())}
}

func (c *cluster) build() {
	size := c.cfg.Blocks * holdfast.BlockSize
	c.snaps = snapWatch{cutAt: map[string]time.Duration{}, content: map[holdfast.SnapshotID][]value{}, counts: map[string]int{}}
	rec := holdfast.Record{Version: holdfast.RecordVersion, ID: c.id, Name: "vol", Phase: holdfast.PhaseReady, SizeBytes: size, Epoch: 1, Revision: 1,
		Spec: holdfast.Spec{SizeBytes: size, Replicas: c.cfg.Replicas, MinInSync: c.cfg.MinInSync}.WithDefaults()}
	for i, m := range c.machines {
		h := &host{c: c, machine: m}
		m.hosts = append(m.hosts, h)
		// Each volume has its replicas on other machines, two of which it shares.
		if i = (i + len(c.machines) - c.number%len(c.machines)) % len(c.machines); i < c.cfg.Replicas {
			h.disk, h.replicaID = newDisk(size), holdfast.ReplicaID(fmt.Sprintf("r%d", i))
			rec.Replicas = append(rec.Replicas, holdfast.Replica{ID: h.replicaID, Node: h.id, Pool: "p", State: holdfast.InSync, Since: 1})
		}
		c.meta.hosts = append(c.meta.hosts, h)
	}
	c.meta.rec, c.replicas = rec, c.cfg.Replicas
}

// power starts all machines.
func (s *site) power() {
	for _, m := range s.machines {
		m.start()
	}
}

func (c *cluster) host(id holdfast.NodeID) *host {
	return c.meta.host(id)
}

// lossAt notes in the history, when a new primary begins to serve, that power
// was lost since the last one: what was not flushed may be gone. A live primary
// never gets such a note (invariant 9).
func (c *cluster) lossAt(*device) {
	if c.onServe != nil {
		c.onServe()
	}
	for _, o := range c.history[c.bounded:] {
		if o.open {
			o.ret = c.w.now // its primary is fenced: it can not happen any more
		}
	}
	c.bounded = len(c.history)
	if c.losses == c.lossSeen {
		return
	}
	c.lossSeen = c.losses
	c.history = append(c.history, &op{kind: opLoss, call: c.w.now, ret: c.w.now, ok: true})
}

// healed ends all faults and waits until everything is well.
func (c *cluster) healed() error { return c.settled(c.endFaults()) }

// settled waits until everything is well: the volume serves, all replicas are in
// sync, nothing is open.
func (c *cluster) settled(start time.Duration) error {
	well := func() bool {
		rec := c.meta.rec
		return len(c.devs) == 1 && c.snapsWell() && rec.Healthy() && len(rec.Replicas) == rec.Spec.Replicas && rec.SizeBytes >= rec.Spec.SizeBytes && c.devs[0].p.Phase() == "serving" &&
			rec.Primary != nil && rec.Primary.Grant == c.devs[0].p.Grant()
	}
	// Who was paused has to see first what happened meanwhile (seed 70039475: it
	// took a snapshot that had been deleted).
	awake := start
	for _, m := range c.machines {
		awake = max(awake, m.pausedUntil)
	}
	c.w.runUntil(start+c.cfg.Heal, func() bool { return well() && c.w.now > awake+2*time.Second })
	if !well() && c.rolledBack && errors.Is(c.lastEnd, replication.ErrRolledBack) && len(c.devs) == 0 {
		return errRefused
	}
	if !well() {
		return violation{notWell, fmt.Sprintf("not well %v after the faults ended: %s", c.cfg.Heal, c.stuck())}
	}
	c.quiet = true
	c.w.runUntil(c.w.now+20*time.Second, c.idle) // a stuck disk may take as long
	if !c.idle() {
		return violation{notAnswered, fmt.Sprintf("operations are never answered: %s", c.stuck())}
	}
	c.w.runUntil(c.w.now+3*time.Second, nil)
	return nil
}

// idle says whether every operation was answered, and whether what failed by the
// volume's limit has ended for the protocol, too: until then replicas may differ.
func (c *cluster) idle() bool {
	for _, d := range c.devs {
		if len(d.ops) > 0 || d.p.Status().InFlight > 0 {
			return false
		}
	}
	return true
}

func (c *cluster) stuck() string {
	var s strings.Builder
	fmt.Fprintf(&s, "record epoch %d primary %s %s; attaching %v, %d devices\n", c.meta.rec.Epoch, primaryName(c.meta.rec), states(c.meta.rec), c.attaching, len(c.devs))
	for _, h := range c.meta.hosts {
		if h.primary != nil {
			fmt.Fprintf(&s, "  %s: %+v\n", h.id, h.primary.Status())
		}
	}
	return s.String()
}
