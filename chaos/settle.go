package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// How long things may take when all faults are healed. They are no promises of
// the product: what is meant to be found is what waits for ever, on a machine
// that runs five nodes, and perhaps much else, with two cores. The longest wait of
// a run is shown at its end.
const (
	endWithin     = 3 * time.Minute // I/O that waited goes on, applications end
	tidyWithin    = 3 * time.Minute // a volume is taken from every node
	publishWithin = 3 * time.Minute
	healthyWithin = 4 * time.Minute // nodes and pools are well
	syncWithin    = 5 * time.Minute // replicas are in sync
)

// settle ends the volume's work, publishes it on another node without faults,
// verifies everything there, and takes it off again.
func (k *keeper) settle(ctx context.Context) error {
	last, err := k.quiet(ctx)
	if err != nil {
		return err
	}
	k.does("being published for verification")
	var at place
	err = k.r.within(ctx, publishWithin, "publish "+k.claim.Name+" when all faults are healed", func(ctx context.Context) (bool, error) {
		m := k.choose(last)
		if m == nil {
			return false, errors.New("no node is there to take it")
		}
		node := m.node()
		var err error
		if at, err = k.publish(ctx, m, node); err == nil {
			return true, nil
		}
		k.giveUp(ctx, node, err)
		k.tidy(ctx)
		return false, err
	})
	if err != nil {
		return err
	}
	k.does("being verified on %s", at.node)
	if err := k.load.verify(ctx, at); err != nil {
		return holdfast.Wrap("verify "+k.claim.Name+" on "+at.node, err)
	}
	k.say("verified on %s", at.node)
	k.mu.Lock()
	k.target = ""
	k.mu.Unlock()
	return k.takenFromAll(ctx)
}

// quiet ends all sessions and takes the volume from every node. It says where it
// was last.
func (k *keeper) quiet(ctx context.Context) (last string, err error) {
	k.mu.Lock()
	last = k.at
	sessions := k.old
	if k.session != nil {
		sessions = append(sessions, k.session)
		k.left[k.at] = true
	}
	k.at, k.session, k.old, k.target = "", nil, nil, ""
	k.mu.Unlock()
	k.does("ending its work")
	for _, s := range sessions {
		if !s.end(endWithin) {
			return last, holdfast.E("end the work on "+k.claim.Name, holdfast.Unavailable, fmt.Sprintf("it hangs for %v although all faults are healed", endWithin))
		}
		if errors.Is(s.err(), holdfast.Corrupt) {
			return last, s.err()
		}
	}
	return last, k.takenFromAll(ctx)
}

func (k *keeper) takenFromAll(ctx context.Context) error {
	k.does("being taken from all nodes")
	return k.r.within(ctx, tidyWithin, "take "+k.claim.Name+" from its nodes when all faults are healed", func(ctx context.Context) (bool, error) {
		var errs []error
		for _, node := range k.leftAt() {
			ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
			errs = append(errs, holdfast.Wrap("take from "+node, k.takeFrom(ctx, node)))
			cancel()
		}
		return len(k.leftAt()) == 0, errors.Join(errs...)
	})
}
