package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

// work is what is done with a volume. It remembers across its sessions what must
// be there.
type work interface {
	// begin checks, at least in part, that what must be there is there, and begins
	// to work. Of kind Corrupt: it is not. Any other error: it could not be found out.
	begin(ctx context.Context, at place) (session, error)
	// verify checks everything while nobody works.
	verify(ctx context.Context, at place) error
}

// session is work on one node, from the publishing of the volume there to its end.
type session interface {
	// done is closed when it has ended by itself; err says why then: of kind
	// Corrupt if something was not as it must be.
	done() <-chan struct{}
	err() error
	// superseded says that the volume is served elsewhere now: from here on
	// nothing may succeed any more.
	superseded()
	// end ends it, at most for limit; false if it hangs.
	end(limit time.Duration) bool
}

// place is where work has its volume.
type place struct {
	m    *machine
	node string
	path string
	boot int // see machine
}

// keeper is an orchestrator for one volume: it has it published somewhere, with
// its work running, and moves it when that ends or its node dies.
type keeper struct {
	r     *run
	claim *netcluster.Claim
	load  work
	moves chan struct{}

	mu      sync.Mutex
	rng     *rand.Rand
	at      string // node; "" when it is published nowhere
	session session
	old     []session       // of nodes that did not answer when it was moved away
	left    map[string]bool // nodes where it may still be published
	target  string          // node where it is being published
	taking  map[string]bool // nodes from which it is being taken
	said    map[string]bool // why attempts failed since the last one that did not
	doing   string
	since   time.Time
}

func newKeeper(r *run, c *netcluster.Claim, w work) *keeper {
	return &keeper{r: r, claim: c, load: w, moves: make(chan struct{}, 1), left: map[string]bool{}, taking: map[string]bool{}, said: map[string]bool{}}
}

func (k *keeper) say(format string, a ...any) {
	k.r.j.note("%s: %s", k.claim.Name, fmt.Sprintf(format, a...))
}

// does notes what the keeper is about, for a report of what is stuck.
func (k *keeper) does(format string, a ...any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.doing, k.since = fmt.Sprintf(format, a...), time.Now()
}

func (k *keeper) state() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return fmt.Sprintf("%s: %s since %v; published at %q, perhaps still at %v", k.claim.Name, k.doing, time.Since(k.since).Round(time.Millisecond), k.at, k.left)
}

// keep keeps the volume at work until ctx ends; then it leaves things as they
// are. An error is of kind Corrupt: something is lost.
func (k *keeper) keep(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for sleep(ctx, time.Second) {
			k.tidy(ctx)
		}
	})
	for ctx.Err() == nil {
		if k.session == nil {
			if err := k.publishSomewhere(ctx); errors.Is(err, holdfast.Corrupt) {
				return err
			}
			sleep(ctx, 200*time.Millisecond)
			continue
		}
		if err := k.follow(ctx); err != nil {
			return err
		}
	}
	return nil
}

// follow waits until the session has to be left, and leaves it.
func (k *keeper) follow(ctx context.Context) error {
	k.does("working on %s", k.at)
	s := k.session
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.done():
			if errors.Is(s.err(), holdfast.Corrupt) {
				return s.err()
			}
			k.say("its work on %s ended: %v", k.at, s.err())
			if err := k.noticed(ctx, k.at, s.err()); err != nil {
				return err
			}
			return k.leave(ctx, s, false)
		case <-k.moves:
			return k.leave(ctx, s, false)
		case <-tick.C:
			if k.r.isDead(k.at) {
				k.say("%s is taken for dead", k.at)
				return k.leave(ctx, s, true)
			}
		}
	}
}

// noticed says whether work that ended by itself is a failure: nothing but daemons
// under their keepers has ended, and for applications that is a pause.
func (k *keeper) noticed(ctx context.Context, node string, err error) error {
	if err == nil || ctx.Err() != nil || k.r.troubled.Load() || k.r.isDead(node) {
		return nil
	}
	return holdfast.WrapKind("work on "+node+" while nothing but daemons under their keepers failed", holdfast.Corrupt, err)
}

// leave takes the volume from its node, or leaves that to later when the node
// does not answer.
func (k *keeper) leave(ctx context.Context, s session, dead bool) error {
	node := k.at
	k.mu.Lock()
	k.left[node] = true
	k.at, k.session = "", nil
	k.mu.Unlock()
	k.does("leaving %s", node)
	if dead || !s.end(5*time.Second) {
		k.mu.Lock()
		k.old = append(k.old, s)
		k.mu.Unlock()
		return nil
	}
	if errors.Is(s.err(), holdfast.Corrupt) {
		return s.err()
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := k.takeFrom(ctx, node); err != nil {
		k.say("cannot be taken from %s yet: %v", node, err)
	}
	return nil
}

// takeFrom unpublishes the volume from a node, if that is not gone for good.
func (k *keeper) takeFrom(ctx context.Context, node string) error {
	k.mu.Lock()
	begun, there := k.taking[node], k.left[node]
	k.taking[node] = true
	k.mu.Unlock()
	if begun {
		return holdfast.E("take "+k.claim.Name+" from "+node, holdfast.Busy, "it is being taken from there already")
	}
	var err error
	if there && k.r.f.on(node) != nil {
		if err = k.r.orch.Unmount(ctx, node, k.claim); err == nil {
			err = k.detach(ctx, node)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.taking, node)
	if err == nil {
		delete(k.left, node)
	}
	return err
}

func (k *keeper) detach(ctx context.Context, node string) error {
	var errs []error
	for _, m := range k.r.f.machines {
		err := k.r.orch.Detach(ctx, m.node(), node, k.claim)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
		if !errors.Is(err, holdfast.Unavailable) || ctx.Err() != nil {
			break
		}
	}
	return errors.Join(errs...)
}

// tidy tries to take the volume from nodes that did not answer before.
func (k *keeper) tidy(ctx context.Context) {
	for _, node := range k.leftAt() {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		_ = k.takeFrom(ctx, node) // the next try follows
		cancel()
	}
}

func (k *keeper) leftAt() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for node := range k.left {
		if node != k.at && node != k.target {
			out = append(out, node)
		}
	}
	return out
}

// choose draws a node where the volume is not any more, and not the one to avoid.
func (k *keeper) choose(avoid string) *machine {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, i := range k.rng.Perm(machines) {
		m := k.r.f.machines[i]
		if id := m.node(); !k.left[id] && id != avoid && m.process() != nil {
			return m
		}
	}
	return nil
}

// publishSomewhere publishes the volume on some node and begins to work there.
func (k *keeper) publishSomewhere(ctx context.Context) error {
	m := k.choose("")
	if m == nil {
		return nil
	}
	node := m.node()
	at, err := k.publish(ctx, m, node)
	if err != nil {
		k.giveUp(ctx, node, err)
		return err
	}
	k.does("beginning to work on %s", node)
	s, err := k.load.begin(ctx, at)
	if errors.Is(err, holdfast.Corrupt) {
		return holdfast.Wrap("begin to work on "+node, err)
	}
	if err != nil {
		k.giveUp(ctx, node, err)
		return cmp.Or(k.noticed(ctx, node, err), err)
	}
	k.mu.Lock()
	k.at, k.session, k.target = node, s, ""
	k.mu.Unlock()
	clear(k.said)
	k.say("works on %s", node)
	return nil
}

// giveUp takes back an attempt to publish the volume.
func (k *keeper) giveUp(ctx context.Context, node string, why error) {
	// Where it was tried and by whom does not matter.
	reason := regexp.MustCompile(`\bn[0-9](-[0-9]+)?\b|[0-9a-f]{32}`).ReplaceAllString(why.Error(), "")
	if ctx.Err() == nil && !k.said[reason] {
		k.say("not on %s: %v", node, why)
	}
	k.said[reason] = true
	k.mu.Lock()
	k.target = ""
	k.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
	defer cancel()
	_ = k.takeFrom(ctx, node) // tidy tries again
}

// publish attaches and mounts the volume on a node. The node is noted as having
// it before.
func (k *keeper) publish(ctx context.Context, m *machine, node string) (place, error) {
	k.mu.Lock()
	k.left[node], k.target = true, node
	via := node // any node's controller will do, if it answers
	if x := k.r.f.machines[k.rng.IntN(machines)]; x.process() != nil {
		via = x.node()
	}
	k.mu.Unlock()
	at := place{m, node, k.r.orch.Target(node, k.claim), m.boots()}
	k.does("attaching to %s by %s", node, via)
	actx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	published, err := k.r.orch.Attach(actx, via, node, k.claim)
	if err != nil {
		return at, holdfast.Wrap("attach by "+via, err)
	}
	k.supersede(node)
	k.does("mounting on %s", node)
	mctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return at, holdfast.Wrap("mount", k.r.orch.Mount(mctx, node, k.claim, published))
}

// supersede tells sessions on other nodes that the volume is served here now,
// and ends them a little later, so that what they still do is seen.
func (k *keeper) supersede(node string) {
	k.mu.Lock()
	old := k.old
	k.old = nil
	k.mu.Unlock()
	for _, s := range old {
		s.superseded()
		k.r.wg.Go(func() {
			time.Sleep(1500 * time.Millisecond)
			if !s.end(5 * time.Second) {
				k.mu.Lock()
				k.old = append(k.old, s)
				k.mu.Unlock()
			}
			if errors.Is(s.err(), holdfast.Corrupt) {
				k.r.fail(holdfast.Wrap(k.claim.Name+" while it is served by "+node, s.err()))
			}
		})
	}
}
