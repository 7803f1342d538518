package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

// injector makes faults happen and heals them.
type injector struct {
	f *fleet
	// move and grow are asked of the volumes.
	move, grow func()
	// trouble is told before the first fault of a round that applications may notice.
	trouble func()
	// whole says whether all replicas of all volumes are in sync.
	whole func(context.Context) bool
	// dark is told when nothing can be acknowledged any more, before everything
	// that was not flushed is lost.
	dark func()

	mu      sync.Mutex
	holds   map[string]int // how many faults hold a link
	drained map[string]bool
	lost    bool // a machine has lost what it had not synced
}

func newInjector(f *fleet) *injector {
	return &injector{f: f, holds: map[string]int{}, drained: map[string]bool{}}
}

// play makes all faults of a schedule happen. It returns when all are healed:
// those still on when ctx ends are healed then. An error is one of the machinery,
// not of what is tested.
func (in *injector) play(ctx context.Context, faults []fault) error {
	var wg sync.WaitGroup
	errs := make([]error, len(faults))
	begin := time.Now()
	for i, x := range faults { // a replacement comes first
		switch x.kind {
		case replace:
			errs[i] = in.replace(ctx, x)
			begin = time.Now()
			continue
		case blackout:
			continue
		}
		wg.Go(func() {
			if sleep(ctx, x.at-time.Since(begin)) {
				errs[i] = holdfast.Wrap("make "+x.String(), in.one(ctx, x))
			}
		})
	}
	wg.Wait()
	for i, x := range faults {
		if x.kind == blackout && ctx.Err() == nil {
			errs[i] = holdfast.Wrap("make "+x.String(), in.blackout(ctx, x))
		}
	}
	return errors.Join(errors.Join(errs...), in.undrain(context.WithoutCancel(ctx)))
}

// drain asks for a node to be drained; that nobody answers is no error.
func (in *injector) drain(ctx context.Context, x fault, m *machine) {
	node := m.node()
	in.f.j.note("%v", x)
	in.mu.Lock()
	in.drained[node] = true
	in.mu.Unlock()
	if _, err := in.f.cli(ctx, "node", "drain", node); err != nil {
		in.f.j.note("%s cannot be drained: %v", node, err)
	}
}

// undrain makes all drained nodes usable again, when all else is healed.
func (in *injector) undrain(ctx context.Context) error {
	for node := range in.drained {
		err := netcluster.Until(ctx, forgetWithin, "undrain node "+node, func(ctx context.Context) (bool, error) {
			_, err := in.f.cli(ctx, "node", "undrain", node)
			return err == nil, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// sleep says whether d has passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// one makes a fault happen, waits, and heals it.
func (in *injector) one(ctx context.Context, x fault) error {
	calm := context.WithoutCancel(ctx) // to heal also when interrupted
	if !harmless(x.kind) {
		in.trouble()
	}
	switch x.kind {
	case move:
		in.f.j.note("move a volume")
		in.move()
		return nil
	case grow:
		in.grow()
		return nil
	}
	m := in.f.machines[x.machine]
	switch x.kind {
	case crash, upgrade, hang:
		return in.daemonOnly(ctx, x, m)
	case kill, power, pause, term:
		return in.processes(ctx, x, m)
	case stall, eio:
		return in.disk(ctx, x, m)
	case lossy, slow:
		return in.quality(ctx, calm, x, m)
	case etcd:
		return in.processes(ctx, x, in.f.machines[:members]...)
	case drain:
		in.drain(ctx, x, m)
		return nil
	case quorum:
		o := in.f.machines[x.others[0]]
		return in.processes(ctx, x, m, o)
	case fill:
		return in.fill(ctx, x, m)
	case flap:
		return in.flap(ctx, calm, x, m)
	}
	in.f.j.note("%v", x)
	ls := in.links(x)
	err := in.hold(calm, ls, 1)
	sleep(ctx, x.lasts)
	in.f.j.note("end of %v", x)
	return errors.Join(err, in.hold(calm, ls, -1))
}

// processes is for faults of daemons. A machine has one at a time.
func (in *injector) processes(ctx context.Context, x fault, ms ...*machine) error {
	for _, m := range ms {
		if !m.faulty.TryLock() {
			in.f.j.note("%v: left out, as another fault is on", x)
			return nil
		}
		defer m.faulty.Unlock()
	}
	in.f.j.note("%v", x)
	calm := context.WithoutCancel(ctx)
	var errs []error
	for _, m := range ms {
		errs = append(errs, in.begin(calm, x.kind, m))
	}
	sleep(ctx, x.lasts)
	in.f.j.note("end of %v", x)
	for _, m := range ms {
		if x.kind == pause {
			in.f.tell(m, syscall.SIGCONT)
		} else {
			errs = append(errs, in.f.start(m))
		}
	}
	return errors.Join(errs...)
}

func (in *injector) begin(ctx context.Context, k kind, m *machine) error {
	switch k {
	case pause:
		in.f.tell(m, syscall.SIGSTOP)
	case power:
		return in.f.powerOff(ctx, m, in.mayLose(ctx))
	case term:
		in.f.terminate(m)
	default:
		in.f.kill(m)
	}
	return nil
}

// link is a node's link (to is nil), or one direction between two nodes.
type link struct{ from, to *machine }

func (l link) name() string {
	if l.to == nil {
		return l.from.place()
	}
	return l.from.place() + ">" + l.to.place()
}

// links are those that a fault takes away.
func (in *injector) links(x fault) []link {
	ms := in.f.machines
	m := ms[x.machine]
	var out []link
	switch x.kind {
	case cut:
		out = append(out, link{from: m})
	case deaf:
		out = append(out, link{m, ms[x.others[0]]})
	case mute:
		for _, o := range ms {
			if o != m {
				out = append(out, link{m, o})
			}
		}
	case partition:
		small := map[int]bool{x.machine: true}
		for _, o := range x.others {
			small[o] = true
		}
		for _, a := range ms {
			for _, b := range ms {
				if small[a.number] != small[b.number] {
					out = append(out, link{a, b})
				}
			}
		}
	}
	return out
}

// hold takes links away (1) or gives them back (-1); a link is there when no
// fault holds it.
func (in *injector) hold(ctx context.Context, ls []link, by int) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	var errs []error
	for _, l := range ls {
		before := in.holds[l.name()]
		in.holds[l.name()] += by
		if after := before + by; (before == 0) != (after == 0) {
			errs = append(errs, in.set(ctx, l, after == 0))
		}
	}
	return errors.Join(errs...)
}

func (in *injector) set(ctx context.Context, l link, there bool) error {
	n := in.f.net
	switch {
	case l.to == nil && there:
		return errors.Join(n.Mend(ctx, l.from.place()), in.restore(ctx, l.from))
	case l.to == nil:
		return n.Cut(ctx, l.from.place())
	case there:
		return n.Hear(ctx, l.from.at(), l.to.at())
	}
	return n.Deafen(ctx, l.from.at(), l.to.at())
}

// restore makes directions silent again that a lost link has made audible.
func (in *injector) restore(ctx context.Context, m *machine) error {
	var errs []error
	for _, o := range in.f.machines {
		for _, l := range []link{{m, o}, {o, m}} {
			if in.holds[l.name()] > 0 {
				errs = append(errs, in.f.net.Deafen(ctx, l.from.at(), l.to.at()))
			}
		}
	}
	return errors.Join(errs...)
}

func (in *injector) flap(ctx, calm context.Context, x fault, m *machine) error {
	in.f.j.note("%v", x)
	until := time.Now().Add(x.lasts)
	var errs []error
	for n := 0; time.Now().Before(until) && ctx.Err() == nil; n++ {
		errs = append(errs, in.hold(calm, []link{{from: m}}, 1))
		sleep(ctx, time.Duration(100+170*(n%5))*time.Millisecond)
		errs = append(errs, in.hold(calm, []link{{from: m}}, -1))
		sleep(ctx, time.Duration(80+210*(n%4))*time.Millisecond)
	}
	in.f.j.note("end of %v", x)
	return errors.Join(errs...)
}

// forgetWithin bounds how long it takes until a dead node can be forgotten: its
// lease, and a controller that leads.
const forgetWithin = 40 * time.Second

// replace loses a node with its pool and puts an empty one in its place, while
// all other faults wait.
func (in *injector) replace(ctx context.Context, x fault) error {
	m := in.f.machines[x.machine]
	m.faulty.Lock()
	defer m.faulty.Unlock()
	old := m.node()
	in.trouble()
	in.f.j.note("replace %s on %s", old, m.place())
	if err := in.f.powerOff(ctx, m, false); err != nil {
		return err
	}
	if err := in.f.replace(m); err != nil {
		return err
	}
	err := netcluster.Until(ctx, forgetWithin, "forget node "+old, func(ctx context.Context) (bool, error) {
		_, err := in.f.cli(ctx, "node", "forget", "--yes", old)
		return err == nil, err
	})
	if err != nil {
		return err
	}
	in.f.j.note("%s is forgotten, %s takes its place", old, m.node())
	return holdfast.Wrap(fmt.Sprintf("start node %s", m.node()), in.f.start(m))
}
