package poll

import (
	"runtime"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/replication"
)

// process is what a device's requests go to, in virtual time.
type process struct {
	asked uint64
	now   time.Duration
}

func (p *process) Submit(*replication.Request) { p.asked++ }
func (p *process) Asked() uint64               { return p.asked }

// oneProcessor is what it takes for anybody to look.
func oneProcessor(t *testing.T) {
	t.Helper()
	runtime.GOMAXPROCS(1)
	t.Cleanup(runtime.SetDefaultGOMAXPROCS)
}

func newPoller() (*process, *Poller) {
	b := &process{}
	p := New(b)
	p.now = func() time.Duration { return b.now }
	return b, p
}

// ask has n requests come, each so long after the answer to the one before.
func (b *process) ask(p *Poller, n int, gap time.Duration) {
	for range n {
		select {
		case <-p.idle:
		default:
		}
		b.now += gap
		p.Taken()
		b.Submit(nil)
		b.now += time.Millisecond
		p.Answered(true)
	}
}

func (p *Poller) wants() bool { return len(p.idle) > 0 }

// TestWhenToLook: after requests that came one at a time, each soon after the answer
// to the one before, and only then.
func TestWhenToLook(t *testing.T) {
	oneProcessor(t)
	const soon, late = Most / 3, 3 * Most
	for name, c := range map[string]struct {
		then func(b *process, p *Poller)
		want bool
	}{
		"soon":                        {func(*process, *Poller) {}, true},
		"late once":                   {func(b *process, p *Poller) { b.ask(p, 1, late) }, true},
		"late for a while":            {func(b *process, p *Poller) { b.ask(p, gapOver, late) }, false},
		"long ago":                    {func(b *process, p *Poller) { b.ask(p, 1, time.Hour) }, false},
		"soon again":                  {func(b *process, p *Poller) { b.ask(p, 100, time.Hour); b.ask(p, 100, soon) }, true},
		"another device asked":        {func(b *process, p *Poller) { b.Submit(nil); b.ask(p, after, soon) }, false},
		"another device asked before": {func(b *process, p *Poller) { b.Submit(nil); b.ask(p, after+1, soon) }, true},
		"two at once": {func(b *process, p *Poller) {
			p.Taken()
			p.Taken()
			b.Submit(nil)
			b.Submit(nil)
			p.Answered(true)
			p.Answered(true)
			b.ask(p, after-1, soon)
		}, false},
		"one is open": {func(b *process, p *Poller) {
			<-p.idle
			p.Taken()
		}, false},
		"it does not pay": {func(b *process, p *Poller) {
			<-p.idle
			p.Taken()
			b.Submit(nil)
			p.Answered(false)
		}, false},
		"several processors": {func(b *process, p *Poller) {
			runtime.GOMAXPROCS(2)
			b.ask(p, 1, soon)
			runtime.GOMAXPROCS(1)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b, p := newPoller()
			if b.ask(p, after-1, soon); p.wants() {
				t.Fatal("it looks after few requests")
			}
			if b.ask(p, 10, soon); !p.wants() {
				t.Fatal("it does not look after many")
			}
			if c.then(b, p); p.wants() != c.want {
				t.Errorf("it looks: %v", !c.want)
			}
		})
	}
}

// TestLooks: until something is found, a request is open, or it has taken too long;
// and the process has computed for it.
func TestLooks(t *testing.T) {
	const each = looked / 2
	for name, c := range map[string]struct {
		look func(p *Poller, n int) (over bool)
		want int
	}{
		"found":        {func(_ *Poller, n int) bool { return n == 5 }, 5},
		"another came": {func(p *Poller, n int) bool { p.open.Store(int32(n / 7)); return false }, 7},
		"in vain":      {func(*Poller, int) bool { return false }, int(Most / each)},
	} {
		t.Run(name, func(t *testing.T) {
			b, p := newPoller()
			stop, n, before := make(chan struct{}), 0, Spent()
			p.idle <- struct{}{}
			p.Run(stop, func() bool {
				n++
				b.now += each
				return c.look(p, n)
			}, func() { close(stop) })
			if n != c.want {
				t.Errorf("looked %d times; want %d", n, c.want)
			}
			if got, most := Spent()-before, time.Duration(n)*each; got < most-each || got > most {
				t.Errorf("spent %v in %d looks of %v", got, n, each)
			}
		})
	}
}

// TestOthersRanMeanwhile: what other threads computed was not spent for nothing.
func TestOthersRanMeanwhile(t *testing.T) {
	b, p := newPoller()
	before := Spent()
	p.poll(func() bool { b.now += Most / 3; return false })
	if got := Spent() - before; got != 0 {
		t.Errorf("spent %v", got)
	}
}

// submits is a device.Backend that does not count.
type submits struct{}

func (submits) Submit(*replication.Request) {}

func TestWithoutCounter(t *testing.T) {
	oneProcessor(t)
	p := New(submits{})
	for range 10 * after {
		if p.Taken(); !p.Alone() {
			t.Fatal("one request is not alone")
		}
		p.Taken()
		if p.Alone() {
			t.Fatal("two are")
		}
		p.Answered(true)
		p.Answered(true)
	}
	if p.Looks() || p.wants() {
		t.Error("it looks without knowing what else is asked for")
	}
}
