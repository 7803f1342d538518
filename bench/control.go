package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// controlPlane measures creating, attaching and taking over volumes with three
// replicas. It comes last: it kills a node.
func (b *bench) controlPlane(ctx context.Context) error {
	n := max(2, 2*b.o.repeat)
	for i := range n {
		name := fmt.Sprintf("control-%d", i)
		took, err := b.cluster.create(ctx, name, nodes, sizeBytes)
		if err != nil {
			return err
		}
		b.results.Control.Create = append(b.results.Control.Create, ms(took))
		_, took, err = b.cluster.attach(ctx, name, 0)
		if err != nil {
			return err
		}
		b.results.Control.Attach = append(b.results.Control.Attach, ms(took))
		if err := b.cluster.detach(ctx, name, 0); err != nil {
			return err
		}
	}
	return b.takeOver(ctx, "control-0")
}

// takeOver kills the node that a volume is attached to, with acknowledged writes
// on it, and attaches it to another one as soon as that is allowed.
func (b *bench) takeOver(ctx context.Context, name string) error {
	const victim, heir = nodes - 1, 1
	dev, _, err := b.cluster.attach(ctx, name, victim)
	if err != nil {
		return err
	}
	if _, err := fio(ctx, dev, load{rw: "randwrite", block: 4 << 10, depth: 32}, 300*time.Millisecond); err != nil {
		return err
	}
	killed := time.Now()
	b.cluster.procs[victim].kill()
	err = until(ctx, 60*time.Second, "take over volume "+name, func(ctx context.Context) (bool, error) {
		path, took, err := b.cluster.attach(ctx, name, heir)
		switch {
		case err == nil:
			b.results.Control.FromKill, b.results.Control.TakeOver = ms(time.Since(killed)), ms(took)
			dev = path
			return true, nil
		case errors.Is(err, holdfast.InUse):
			return false, nil // the dead node's lease has not run out yet
		}
		return false, err
	})
	if err != nil {
		return err
	}
	if _, err := fio(ctx, dev, load{rw: "randread", block: 4 << 10, depth: 32}, 100*time.Millisecond); err != nil {
		return holdfast.Wrap("read after the take-over", err)
	}
	b.results.Control.Lease = ms(leaseTTL())
	return b.cluster.detach(ctx, strings.TrimSpace(name), heir)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
