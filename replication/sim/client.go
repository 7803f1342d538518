package sim

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
)

// device is an attached volume in one life of its primary.
type device struct {
	c    *cluster
	h    *host
	p    *replication.Primary
	gone bool
	ops  []*op // not yet answered

	// What was last noted for the coverage.
	phase, wait string
	scrub       replication.ScrubState
	stages      map[holdfast.ReplicaID]string
}

// op is one entry of the history.
type op struct {
	kind  opKind
	first int64 // cell
	cells int64
	value value   // written to every cell of it: value+index
	got   []value // read
	vals  []value // written, if they do not follow from value
	call  time.Duration
	ret   time.Duration
	ok    bool // answered without error
	open  bool // not answered
	fua   bool // durable when answered
}

type opKind uint8

const (
	opRead opKind = iota
	opWrite
	opTrim
	opFlush
	opLoss // power loss may have undone what was not flushed
)

func (k opKind) String() string {
	return [...]string{"read", "write", "trim", "flush", "loss"}[k]
}

// lost marks everything open as never answered: it may have happened or not.
func (d *device) lost() {
	if d.gone {
		return
	}
	d.gone = true
	d.ops = nil
	d.c.devs = slices.DeleteFunc(d.c.devs, func(x *device) bool { return x == d })
}

// issue starts a random operation.
func (d *device) issue() {
	if d.gone || !d.h.up || d.h.pausedUntil > d.c.w.now || len(d.ops) > d.c.cfg.Depth {
		return
	}
	w := d.c.w
	o := d.place()
	x := w.rng.Float64()
	if d.changes()*2 > d.c.cfg.Depth {
		x *= 0.4 // where writes wait, reads still show what is old
	}
	switch {
	case x < 0.40:
		o.kind = opRead
	case x < 0.80:
		o.kind, o.fua = opWrite, w.chance(0.15)
	case x < 0.88:
		o.kind = opTrim
	default:
		o.kind, o.first, o.cells = opFlush, 0, 0
	}
	d.start(o)
}

// start begins an operation.
func (d *device) start(o *op) {
	r := &replication.Request{Offset: o.first * cellSize, Length: o.cells * cellSize, FUA: o.fua}
	switch o.kind {
	case opRead:
		r.Op, r.Buf = replication.OpRead, buf.Get(int(r.Length))
	case opWrite:
		r.Op, r.Buf = replication.OpWrite, buf.Get(int(r.Length))
		d.c.values += 8 * blockCells
		o.value = d.c.values
		for i := range o.cells {
			cell := r.Buf.B[i*cellSize:][:cellSize]
			clear(cell)
			binary.LittleEndian.PutUint64(cell, o.value+value(i))
		}
	case opTrim:
		r.Op = replication.OpTrim
	default:
		r.Op = replication.OpFlush
	}
	r.Done = func(r *replication.Request, err error) { d.answered(o, r, err) }
	d.c.history = append(d.c.history, o)
	d.ops = append(d.ops, o)
	d.c.logf("%s: %v", d.h.id, o)
	if d.h.resting && d == d.h.device {
		d.c.hit("rest", "ended by a "+o.kind.String())
	}
	d.submit(o, r)
}

// submit hands a request over. One that is refused on the spot never happens, and
// nobody may ever see anything of it.
func (d *device) submit(o *op, r *replication.Request) {
	done, at := r.Done, true
	r.Done = func(r *replication.Request, err error) {
		if at && err != nil {
			o.cells = 0
		}
		done(r, err)
	}
	d.p.Submit(r)
	at = false
}

func (o *op) String() string {
	if o.kind == opFlush || o.kind == opLoss {
		return o.kind.String()
	}
	s := fmt.Sprintf("%s of cells %d to %d", o.kind, o.first, o.first+o.cells-1)
	switch {
	case o.kind == opWrite:
		s += fmt.Sprintf(": %d", o.value)
	case o.got != nil:
		s += fmt.Sprintf(": %d", o.got)
	}
	return s
}

// changes counts the open operations that are not reads.
func (d *device) changes() int {
	n := 0
	for _, o := range d.ops {
		if o.kind != opRead {
			n++
		}
	}
	return n
}

// place chooses where an operation goes: mostly whole blocks that are hot,
// sometimes the volume's last ones, which may just have been added.
func (d *device) place() *op {
	w := d.c.w
	blocks := d.p.SizeBytes() / holdfast.BlockSize
	first, n := w.rng.Int64N(min(blocks, d.c.cfg.HotBlocks)), int64(1)
	if d.c.stormUntil > w.now && d.c.spot < blocks && w.chance(0.8) {
		first = d.c.spot
	} else if !d.c.hotOnly && w.chance(0.1) {
		first = w.rng.Int64N(blocks)
	} else if w.chance(0.03) {
		first = blocks - 1 - w.rng.Int64N(4)
	}
	if w.chance(0.2) {
		n = 1 + w.rng.Int64N(min(4, blocks-first))
	}
	o := &op{first: first * blockCells, cells: n * blockCells, call: w.now, open: true}
	if d.c.cfg.Unaligned && w.chance(0.3) {
		o.first += w.rng.Int64N(blockCells)
		o.cells = 1 + w.rng.Int64N((first+n)*blockCells-o.first)
	}
	return o
}

func (d *device) answered(o *op, r *replication.Request, err error) {
	if d.gone {
		r.Buf.Release()
		return // the process that asked is gone too
	}
	for i, x := range d.ops {
		if x == o {
			d.ops = append(d.ops[:i], d.ops[i+1:]...)
			break
		}
	}
	if err == nil {
		o.ok, o.open, o.ret = true, false, d.c.w.now
		d.c.acknowledged(d, o)
		if o.kind == opRead {
			for i := range o.cells {
				o.got = append(o.got, binary.LittleEndian.Uint64(r.Buf.B[i*cellSize:]))
			}
		}
	}
	r.Buf.Release()
	if d.c.w.keep {
		d.c.logf("%s: answered (%v): %v", d.h.id, err, o)
	}
}

// drive keeps operations going on whatever devices there are: a cut-off one goes
// on as long as it thinks it may.
func (c *cluster) drive() {
	w := c.w
	c.every(streamSteps, 0, func(n int) time.Duration {
		pause, burst := w.between(0, 60*time.Millisecond), 1
		if w.chance(0.15) {
			burst = c.cfg.Depth
		}
		if c.cfg.Drowsy && w.chance(0.03) {
			pause = w.between(100*time.Millisecond, 6*time.Second)
		}
		c.request(ChoiceRequest, n, burst)
		c.atRest()
		return pause
	})
	c.every(streamOwner, 0, func(n int) time.Duration {
		pause := w.between(10*time.Millisecond, 500*time.Millisecond)
		h := c.meta.hosts[w.rng.IntN(len(c.meta.hosts))]
		switch {
		case c.staged(), c.detachedWork(), c.attaching:
		case len(c.devs) == 0:
			c.moveTo(h, w.chance(0.1))
		case !c.quiet && c.may("move"):
			w.perhaps(Choice{ChoiceMove, n, 0}, 0.03, func() {
				c.faults["move"]++
				c.moveTo(h, w.chance(0.1))
			})
		}
		return pause
	})
}

// request has one of the devices asked for something, several times.
func (c *cluster) request(kind ChoiceKind, n, times int) {
	if len(c.devs) == 0 || c.quiet || c.staged() || c.lullUntil > c.w.now {
		return
	}
	d := c.devs[c.w.rng.IntN(len(c.devs))]
	for i := range times {
		c.w.choose(Choice{kind, n, i}, d.issue)
	}
}

// moveTo attaches the volume to a host, as an orchestrator would that believes
// it is free there, or by force.
func (c *cluster) moveTo(h *host, force bool) {
	w := c.w
	c.attaching = true
	h.attach(force, func(d *device) {
		c.attaching = false
		if d == nil || d.gone {
			return
		}
		c.devs = append(c.devs, d)
		c.attached++
	})
	life := h.life
	w.after(20*time.Second, func() { // the process that attached may have died
		if c.attaching && (h.life != life || h.primary == nil) {
			c.attaching = false
		}
	})
}
