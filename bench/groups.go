package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// groupVolumes are the members of the group that is measured, attached to the
// nodes in turn.
const (
	groupVolumes = 10
	groupBytes   = 64 << 20 // each
)

// grouped is what a group snapshot costs, in milliseconds.
type grouped struct {
	Took []float64 `json:"tookMs"` // the whole call
	Held []float64 `json:"heldMs"` // from before the first hold until all are released
	// With and Usual are the longest write on one of the volumes while a group is
	// taken, which is held all the time, and in slices without.
	With  []float64 `json:"withMs"`
	Usual []float64 `json:"usualMs"`
}

func groupVolume(i int) string { return fmt.Sprintf("member-%d", i) }

// groups takes snapshots of ten volumes under load.
func (b *bench) groups(ctx context.Context) error {
	var names, devs []string
	for i := range groupVolumes {
		names = append(names, groupVolume(i))
		if _, err := b.cluster.create(ctx, names[i], nodes, groupBytes); err != nil {
			return err
		}
		dev, _, err := b.cluster.attach(ctx, names[i], i%nodes)
		if err != nil {
			return err
		}
		devs = append(devs, dev)
	}
	g := &grouped{}
	b.results.Snapshots.Group = g
	for n := range b.o.repeat {
		usual, err := underLoad(ctx, devs, func() error { return nil })
		if err != nil {
			return err
		}
		with, err := underLoad(ctx, devs, func() error {
			began := time.Now()
			held, err := b.cluster.groupSnapshot(ctx, fmt.Sprintf("group-%d", n), names)
			g.Took, g.Held = append(g.Took, ms(time.Since(began))), append(g.Held, float64(held))
			return err
		})
		if err != nil {
			return err
		}
		g.Usual, g.With = append(g.Usual, ms(usual)), append(g.With, ms(with))
	}
	for n := range b.o.repeat {
		if err := b.cluster.dropGroup(ctx, fmt.Sprintf("group-%d", n)); err != nil {
			return err
		}
	}
	for i, name := range names {
		if err := b.cluster.gone(ctx, name, i%nodes); err != nil {
			return err
		}
	}
	return nil
}

// underLoad writes to all devices for a second, does something meanwhile, and says
// how long the longest write took. One writer each: what is measured is the hold,
// not the queue of an overloaded machine.
func underLoad(ctx context.Context, devs []string, do func() error) (longest time.Duration, err error) {
	const slice = time.Second
	type result struct {
		longest time.Duration
		err     error
	}
	results := make(chan result, len(devs)+1)
	for _, dev := range devs {
		go func() {
			r, err := direct{write: true, threads: 1, next: anywhere(groupBytes), limit: slice}.run(ctx, dev)
			results <- result{r.longest, err}
		}()
	}
	go func() {
		<-time.After(slice / 4)
		results <- result{0, do()}
	}()
	for range len(devs) + 1 {
		r := <-results
		longest = max(longest, r.longest)
		if r.err != nil {
			err = r.err
		}
	}
	return longest, err
}

func (c *cluster) groupService() (holdfastv1.GroupSnapshotServiceClient, error) {
	cc, err := c.conns.Conn("unix://" + c.path(0, "api.sock"))
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewGroupSnapshotServiceClient(cc), nil
}

func (c *cluster) groupSnapshot(ctx context.Context, name string, volumes []string) (heldMillis int64, err error) {
	cl, err := c.groupService()
	if err != nil {
		return 0, err
	}
	g, err := cl.CreateGroupSnapshot(ctx, &holdfastv1.CreateGroupSnapshotRequest{Name: name, Volumes: volumes})
	return g.GetHeldMillis(), holdfast.Wrap("take group snapshot "+name, err)
}

func (c *cluster) dropGroup(ctx context.Context, name string) error {
	cl, err := c.groupService()
	if err != nil {
		return err
	}
	_, err = cl.DeleteGroupSnapshot(ctx, &holdfastv1.DeleteGroupSnapshotRequest{Group: name})
	return holdfast.Wrap("delete group snapshot "+name, err)
}

func (g *grouped) print(w io.Writer) {
	fmt.Fprintf(w, "group snapshot of %d volumes: all held for %s ms, %s in all; longest write on any: %s ms, without: %s ms\n",
		groupVolumes, spread(g.Held), spread(g.Took), spread(g.With), spread(g.Usual))
}
