package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// joinPause is the pause between attempts to take the lease.
const joinPause = 200 * time.Millisecond

// joinFirst takes the lease at the start. A killed predecessor's lease runs out
// within one ttl; whoever still has it after that lives, and this process must
// not (two processes under one id would both serve the node's grants).
func (a *Agent) joinFirst(ctx context.Context) error {
	op := "start node " + string(a.cfg.ID)
	patience := a.cfg.LeaseTTL + a.cfg.LeaseTTL/2 + time.Second
	for deadline := time.Now().Add(patience); ; {
		err := a.joinOnce(ctx)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, holdfast.InUse) && time.Now().After(deadline):
			return &holdfast.Error{Op: op, Kind: holdfast.InUse, Err: err, Msg: fmt.Sprintf(
				"another process has kept this node's lease for %v: stop it, or give this one another node id", patience)}
		case !errors.Is(err, holdfast.InUse) && !errors.Is(err, holdfast.Unavailable):
			return holdfast.Wrap(op, err)
		}
		if !pause(ctx, joinPause) {
			return holdfast.WrapKind(op, holdfast.Unavailable, errors.Join(ctx.Err(), err))
		}
	}
}

func (a *Agent) joinOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, a.cfg.LeaseTTL)
	defer cancel()
	l, err := a.deps.Store.Join(ctx, a.cfg.ID, a.cfg.Instance, a.cfg.LeaseTTL)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.lease = l
	return nil
}

// keepLease joins again whenever the lease was lost. It ends with ctx, or with
// InUse when another instance has kept the lease for longer than a predecessor's
// leftover can last.
func (a *Agent) keepLease(ctx context.Context) error {
	for {
		a.mu.Lock()
		lease := a.lease
		a.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-lease.Lost():
		}
		a.log.Warn("the lease was lost: other nodes may take over what is attached here; joining again")
		_ = lease.Close() // it is lost: only its goroutine is to end
		lost := time.Now()
		if err := a.joinAgain(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		a.log.Info("joined again", "after", time.Since(lost).Round(time.Millisecond))
		wake(a.refreshSoon)
	}
}

// joinAgain takes the lease again, however long the metadata store is away.
func (a *Agent) joinAgain(ctx context.Context) error {
	var refusedSince time.Time
	for ctx.Err() == nil {
		err := a.joinOnce(ctx)
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, holdfast.InUse):
			refusedSince = time.Time{}
			a.log.Debug("the metadata store does not let this node join yet", "err", err)
		case refusedSince.IsZero():
			refusedSince = time.Now()
		case time.Since(refusedSince) > 2*a.cfg.LeaseTTL:
			return holdfast.Wrap("keep the lease of node "+string(a.cfg.ID), err)
		}
		pause(ctx, joinPause)
	}
	return nil
}
