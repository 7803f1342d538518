package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// churn makes, attaches, detaches and deletes small volumes while faults happen,
// through whatever node answers. Each call may fail; but all volumes can be
// deleted in the end, and leave nothing.
type churn struct {
	r *run

	mu    sync.Mutex
	made  int
	names map[string]bool // that may exist
}

const (
	churnBytes  = 8 << 20
	churnPrefix = "churn-"
)

func (c *churn) run(ctx context.Context, rng *rand.Rand) {
	for sleep(ctx, 700*time.Millisecond) {
		c.mu.Lock()
		c.made++
		name := fmt.Sprint(churnPrefix, c.made)
		if c.names == nil {
			c.names = map[string]bool{}
		}
		c.names[name] = true
		c.mu.Unlock()
		c.life(ctx, rng, name)
	}
}

// life is one volume's, as far as it gets.
func (c *churn) life(ctx context.Context, rng *rand.Rand, name string) {
	replicas := int32(1 + rng.IntN(3))
	attach, remove := rng.IntN(3) > 0, rng.IntN(4) > 0
	node := c.r.f.machines[rng.IntN(machines)].node()
	err := c.call(ctx, func(ctx context.Context, v holdfastv1.VolumeServiceClient) error {
		_, err := v.CreateVolume(ctx, &holdfastv1.CreateVolumeRequest{Name: name, SizeBytes: churnBytes, Replicas: replicas})
		return err
	})
	if err == nil && attach {
		err = c.call(ctx, func(ctx context.Context, v holdfastv1.VolumeServiceClient) error {
			_, err := v.AttachVolume(ctx, &holdfastv1.AttachVolumeRequest{Volume: name, Node: node})
			return err
		})
	}
	if err == nil && remove {
		_ = c.remove(ctx, name) // settle tries again
	}
}

func (c *churn) call(ctx context.Context, f func(context.Context, holdfastv1.VolumeServiceClient) error) error {
	return c.r.ask(ctx, func(ctx context.Context, _ holdfastv1.ClusterServiceClient, v holdfastv1.VolumeServiceClient) error {
		return f(ctx, v)
	})
}

// remove detaches and deletes a volume; one that is not there is fine.
func (c *churn) remove(ctx context.Context, name string) error {
	err := c.call(ctx, func(ctx context.Context, v holdfastv1.VolumeServiceClient) error {
		_, err := v.DetachVolume(ctx, &holdfastv1.DetachVolumeRequest{Volume: name})
		if err != nil && !errors.Is(err, holdfast.NotFound) {
			return holdfast.Wrap("detach", err)
		}
		_, err = v.DeleteVolume(ctx, &holdfastv1.DeleteVolumeRequest{Volume: name})
		return holdfast.Wrap("delete", err)
	})
	if err == nil {
		c.mu.Lock()
		delete(c.names, name)
		c.mu.Unlock()
	}
	return err
}

// settle removes all of them when all faults are healed.
func (c *churn) settle(ctx context.Context) error {
	return c.r.within(ctx, tidyWithin, "delete all volumes that were made meanwhile", func(ctx context.Context) (bool, error) {
		c.mu.Lock()
		var names []string
		for name := range c.names {
			names = append(names, name)
		}
		c.mu.Unlock()
		var errs []error
		for _, name := range names {
			errs = append(errs, holdfast.Wrap(name, c.remove(ctx, name)))
		}
		return errors.Join(errs...) == nil, errors.Join(errs...)
	})
}

const growBytes = 2 << 20

// growSome makes the first raw volume larger; if nobody answers, the next time.
func (r *run) growSome(ctx context.Context) {
	for _, k := range r.keepers {
		w, ok := k.load.(*raw)
		if !ok {
			continue
		}
		bytes := w.bytes() + growBytes
		err := r.ask(ctx, func(ctx context.Context, _ holdfastv1.ClusterServiceClient, v holdfastv1.VolumeServiceClient) error {
			_, err := v.ExpandVolume(ctx, &holdfastv1.ExpandVolumeRequest{Volume: k.claim.Name, SizeBytes: bytes})
			return err
		})
		if err != nil {
			r.j.note("%s did not grow to %d MiB: %v", k.claim.Name, bytes>>20, err)
			return
		}
		w.grown(bytes)
		r.j.note("%s has grown to %d MiB", k.claim.Name, bytes>>20)
		return
	}
}
