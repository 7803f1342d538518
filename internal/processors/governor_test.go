package processors

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// machine is a process in virtual time.
type machine struct {
	mu               sync.Mutex
	now, cpu, waited time.Duration
	polled           time.Duration // see Config.Polled
	poll             float64       // its share
	changed          chan bool
}

func (m *machine) get(d *time.Duration) func() time.Duration {
	return func() time.Duration {
		m.mu.Lock()
		defer m.mu.Unlock()
		return *d
	}
}

func newMachine() (*machine, *Governor) {
	m := &machine{changed: make(chan bool, 1000)}
	return m, newGovernor(Config{now: m.get(&m.now), cpu: m.get(&m.cpu), Waited: m.get(&m.waited), set: func(one bool) { m.changed <- one }})
}

// run has time pass, with a look each 5 ms; cpu and waited are shares of it.
func (m *machine) run(g *Governor, d time.Duration, cpu, waited float64) {
	const step = 5 * time.Millisecond
	for range d / step {
		m.mu.Lock()
		m.now += step
		m.cpu += time.Duration(cpu * float64(step))
		m.waited += time.Duration(waited * float64(step))
		m.polled += time.Duration(m.poll * float64(step))
		m.mu.Unlock()
		g.Look()
		for changing := true; changing; runtime.Gosched() { // takes no time
			g.mu.Lock()
			changing = g.changing
			g.mu.Unlock()
		}
	}
}

// changed says which change was made.
func changed(t *testing.T, m *machine) (one bool) {
	t.Helper()
	select {
	case one = <-m.changed:
	default:
		t.Fatal("nothing was changed")
	}
	return one
}

func wantNone(t *testing.T, m *machine, when string) {
	t.Helper()
	select {
	case one := <-m.changed:
		t.Fatalf("%s: changed to one: %v", when, one)
	default:
	}
}

func TestOneWhileThatIsEnough(t *testing.T) {
	m, g := newMachine()
	m.run(g, 5*time.Second, 0.9, 0)
	wantNone(t, m, "busy from the beginning")
	for began := m.now; len(m.changed) == 0 && m.now < began+2*holdFirst; {
		m.run(g, lookEvery, 0.5, 3)
	}
	if !changed(t, m) {
		t.Fatal("half a processor's work is not done by one; that others waited for disks is no reason")
	}
	m.run(g, time.Minute, 0.8, 0)
	m.run(g, lookEvery, 1, 0)
	m.run(g, time.Second, 0.4, 0.5)
	wantNone(t, m, "nearly busy, once all of the time")
	m.run(g, 3*lookEvery, 1, 0)
	if changed(t, m) {
		t.Fatal("one processor is computing all the time and gets no help")
	}
	m.run(g, 10*time.Second, 1.6, 0)
	wantNone(t, m, "two processors' work")
}

// TestWaitingWithAProcessor: a thread that sits in the kernel keeps the only
// processor as well as one that computes.
func TestWaitingWithAProcessor(t *testing.T) {
	m, g := newMachine()
	m.run(g, 2*time.Second, 0.1, 0)
	changed(t, m)
	m.run(g, 3*lookEvery, 0.1, 0.9)
	if changed(t, m) {
		t.Fatal("one processor is kept by those who wait")
	}
}

// TestPolling: computing for want of anything to do takes no more processors.
func TestPolling(t *testing.T) {
	m, g := newMachine()
	m.run(g, 2*time.Second, 0.1, 0)
	if !changed(t, m) {
		t.Fatal("a process with little to do keeps all processors")
	}
	g.cfg.Polled = m.get(&m.polled)
	m.poll = 0.9
	m.run(g, time.Second, 1, 0)
	wantNone(t, m, "while it polls")
	m.poll = 0.04
	m.run(g, time.Second, 1, 0)
	if changed(t, m) {
		t.Error("it has one processor although that is too little")
	}
}

// TestLongerEachTime: where one processor turns out to be too little again and again,
// that is tried more and more seldom, and anew after it has lasted.
func TestLongerEachTime(t *testing.T) {
	m, g := newMachine()
	held := func() (d time.Duration) {
		began := m.now
		for len(m.changed) == 0 {
			m.run(g, lookEvery, 0.3, 0)
		}
		changed(t, m)
		d = m.now - began
		m.run(g, 5*lookEvery, 0.3, 5)
		changed(t, m)
		return d
	}
	before := held()
	for range 4 {
		next := held()
		if next < before*3/2 {
			t.Fatalf("after %v tried again after %v", before, next)
		}
		before = next
	}
	for range 10 {
		before = held()
	}
	if before > holdMost+10*time.Second {
		t.Errorf("tried again after %v only", before)
	}
	m.run(g, 2*holdMost, 0.3, 0)
	changed(t, m)
	m.run(g, 5*lookEvery, 0.3, 5)
	changed(t, m)
	if again := held(); again > 2*holdFirst {
		t.Errorf("after a good while with one processor it took %v to try again", again)
	}
}

// TestRealProcess: the numbers of processors are really set, and all of them again.
func TestRealProcess(t *testing.T) {
	all, began, waiting := runtime.GOMAXPROCS(0), time.Now(), false
	defer runtime.SetDefaultGOMAXPROCS()
	g := New(Config{Waited: func() time.Duration {
		if !waiting {
			return 0
		}
		return time.Since(began)
	}})
	if g == nil {
		return // there is one processor, or GOMAXPROCS is set: nothing to choose
	}
	every := time.NewTicker(time.Millisecond)
	defer every.Stop()
	until := func(what string, n int) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); runtime.GOMAXPROCS(0) != n; {
			if time.Now().After(end) {
				t.Fatalf("%s: %d processors after half a minute", what, runtime.GOMAXPROCS(0))
			}
			<-every.C
			g.Look()
		}
	}
	until("idle", 1)
	waiting = true // what this machine's other processes leave may be too little to compute all the time
	until("waiting all the time", all)
	t.Setenv("GOMAXPROCS", "2")
	if New(Config{}) != nil {
		t.Error("the environment's choice is not left alone")
	}
	var none *Governor
	none.Look()
}
