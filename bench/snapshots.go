package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

const (
	manySnapshots = 200
	manyExtents   = 500_000
)

// snapshotFigures is what snapshots cost; the ratios are paired within a
// repetition.
type snapshotFigures struct {
	FirstTouch []*firstTouch `json:"firstTouch"`
	// Present are live writes and reads with 200 snapshots, after the first
	// touch, to those without.
	PresentWrites []pairRatio `json:"presentWrites"`
	PresentReads  []pairRatio `json:"presentReads"`
	Stall         stall       `json:"stall"`
	Clone         []float64   `json:"cloneMs"` // a clone of 100 GiB: created, attached and mounted
	// Drops are deleted snapshots.
	Drops []*dropped `json:"drops"`
	Raise *raised    `json:"raise"`
	Group *grouped   `json:"group"`
}

// pairRatio is of one kind of I/O to another, in the same repetition.
type pairRatio struct {
	Rate float64 `json:"rate"`
	// CPU is of the daemons' CPU time for one operation, which other load on the
	// machine disturbs less.
	CPU float64 `json:"cpu"`
}

// measured is what counts for a ratio.
type measured struct{ rate, ops, cpu float64 }

func (m *measured) add(o measured) { m.rate, m.ops, m.cpu = m.rate+o.rate, m.ops+o.ops, m.cpu+o.cpu }

func (m measured) to(o measured) pairRatio {
	return pairRatio{m.rate / o.rate, m.cpu / m.ops / max(o.cpu/o.ops, 1e-9)}
}

// run does I/O, and measures the daemons' CPU time, too.
func (b *bench) run(ctx context.Context, d direct, dev string) (measured, error) {
	before, err := readCPU(b.cluster.pids())
	if err != nil {
		return measured{}, err
	}
	r, err := d.run(ctx, dev)
	if err != nil {
		return measured{}, err
	}
	after, err := readCPU(b.cluster.pids())
	return measured{r.rate, r.ops, (after.daemons - before.daemons).Seconds()}, err
}

// firstTouch is random writes right after a snapshot, each the first to its
// granule, beside those of just before it.
type firstTouch struct {
	Replicas int32       `json:"replicas"`
	Steady   []float64   `json:"steadyIOPS"`
	First    []float64   `json:"firstIOPS"`
	Ratios   []pairRatio `json:"ratios"`
}

// stall is the longest write, in milliseconds, of a load on a volume of 500,000
// extents: in slices without a snapshot, and in those in which one is taken, by
// turns. Held is for how long the primary held writes for the snapshot, which is
// all that it adds to them.
type stall struct {
	Usual []float64 `json:"usualMs"`
	With  []float64 `json:"withMs"`
	Held  []float64 `json:"heldMs"`
}

// snapshots measures them all.
func (b *bench) snapshots(ctx context.Context) error {
	b.results.Snapshots = &snapshotFigures{}
	for _, part := range []struct {
		name string
		f    func(context.Context) error
	}{
		{"first touch", b.firstTouches}, {"with 200 snapshots", b.snapshotsPresent},
		{"stall", b.stalls}, {"clone", b.clones}, {"drop", b.drops}, {"replicas raised", b.raise}, {"group", b.groups},
	} {
		if !chosen(b.o.parts, part.name) {
			continue
		}
		if err := part.f(ctx); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "snapshots: %s: done\n", part.name)
	}
	return nil
}

// filled makes a volume, attaches it to the first node and writes all of it.
func (b *bench) filled(ctx context.Context, name string, replicas int32) (dev string, err error) {
	if _, err := b.cluster.create(ctx, name, replicas, sizeBytes); err != nil {
		return "", err
	}
	if dev, _, err = b.cluster.attach(ctx, name, 0); err != nil {
		return "", err
	}
	return dev, b.refill(ctx, dev)
}

// refill writes all of a device, so that no block is shared any more.
func (b *bench) refill(ctx context.Context, dev string) error {
	_, err := fio(ctx, dev, load{rw: "write", block: 1 << 20, depth: 8}, 0)
	return err
}

func (b *bench) firstTouches(ctx context.Context) error {
	figures := []*firstTouch{{Replicas: 1}, {Replicas: nodes}}
	b.results.Snapshots.FirstTouch = figures
	var devs []string
	for _, t := range figures {
		dev, err := b.filled(ctx, touchName(t.Replicas), t.Replicas)
		if err != nil {
			return err
		}
		devs = append(devs, dev)
	}
	for n := range b.o.repeat {
		for i, t := range figures {
			if err := b.firstTouch(ctx, t, devs[i], n); err != nil {
				return err
			}
		}
	}
	for _, t := range figures {
		if err := b.cluster.gone(ctx, touchName(t.Replicas), 0); err != nil {
			return err
		}
	}
	return nil
}

func touchName(replicas int32) string { return fmt.Sprintf("touch-x%d", replicas) }

func (b *bench) firstTouch(ctx context.Context, t *firstTouch, dev string, n int) error {
	steady, err := b.run(ctx, direct{write: true, next: anywhere(sizeBytes), limit: b.o.runtime}, dev)
	if err != nil {
		return err
	}
	name := fmt.Sprintf("%s-%d", touchName(t.Replicas), n)
	if err := b.cluster.snapshot(ctx, touchName(t.Replicas), name); err != nil {
		return err
	}
	end := b.hook(target{name: touchName(t.Replicas)}, load{name: "first"})
	first, err := b.run(ctx, direct{write: true, next: onceEach(sizeBytes)}, dev)
	end()
	if err != nil {
		return err
	}
	t.Steady, t.First = append(t.Steady, steady.rate), append(t.First, first.rate)
	t.Ratios = append(t.Ratios, first.to(steady))
	if err := b.cluster.dropSnapshot(ctx, name); err != nil {
		return err
	}
	return b.refill(ctx, dev)
}

// snapshotsPresent compares two volumes, slice by slice.
func (b *bench) snapshotsPresent(ctx context.Context) error {
	var devs [2]string
	vols := [2]string{"without", "with"}
	for i, v := range vols {
		var err error
		if devs[i], err = b.filled(ctx, v, 1); err != nil {
			return err
		}
	}
	for i := range manySnapshots {
		if err := b.cluster.snapshot(ctx, "with", fmt.Sprintf("with-%d", i)); err != nil {
			return err
		}
		// So that each of them holds something.
		one := func(n int64, _ *rand.Rand) (int64, bool) { return int64(i) * granuleBytes, n == 0 }
		if _, err := (direct{write: true, next: one}).run(ctx, devs[1]); err != nil {
			return err
		}
	}
	for _, dev := range devs { // both, so that both are laid out alike
		if err := b.refill(ctx, dev); err != nil {
			return err
		}
	}
	for range b.o.repeat {
		for _, write := range []bool{true, false} {
			ratio, err := b.pair(ctx, devs, write)
			if err != nil {
				return err
			}
			if s := b.results.Snapshots; write {
				s.PresentWrites = append(s.PresentWrites, ratio)
			} else {
				s.PresentReads = append(s.PresentReads, ratio)
			}
		}
	}
	for i := range manySnapshots {
		if err := b.cluster.dropSnapshot(ctx, fmt.Sprintf("with-%d", i)); err != nil {
			return err
		}
	}
	for _, v := range vols {
		if err := b.cluster.gone(ctx, v, 0); err != nil {
			return err
		}
	}
	return nil
}

// pair compares the second device with the first one, in slices that
// take turns, so that what else the machine does meets both.
func (b *bench) pair(ctx context.Context, devs [2]string, write bool) (pairRatio, error) {
	const turns = 4
	var sums [2]measured
	for turn := range 2 * turns {
		i := (turn + turn/2) % 2 // 0 1 1 0
		r, err := b.run(ctx, direct{write: write, next: anywhere(sizeBytes), limit: b.o.runtime / turns}, devs[i])
		if err != nil {
			return pairRatio{}, err
		}
		sums[i].add(r)
	}
	return sums[1].to(sums[0]), nil
}

// stalls takes snapshots of a volume with many extents, under load.
func (b *bench) stalls(ctx context.Context) error {
	const name = "extents"
	if _, err := b.cluster.create(ctx, name, 1, manyExtents*2*blockBytes); err != nil {
		return err
	}
	dev, _, err := b.cluster.attach(ctx, name, 0)
	if err != nil {
		return err
	}
	if _, err := (direct{write: true, next: everyOther(manyExtents, false)}).run(ctx, dev); err != nil {
		return err
	}
	const slice = time.Second
	under := direct{write: true, next: everyOther(manyExtents, true), limit: slice}
	s := &b.results.Snapshots.Stall
	for n := range b.o.repeat {
		usual, err := under.run(ctx, dev)
		if err != nil {
			return err
		}
		taken := make(chan error, 1)
		go func() {
			<-time.After(slice / 4)
			taken <- b.cluster.snapshot(ctx, name, fmt.Sprintf("%s-%d", name, n))
		}()
		with, err := under.run(ctx, dev)
		if err := <-taken; err != nil {
			return err
		}
		if err != nil {
			return err
		}
		s.Usual, s.With = append(s.Usual, ms(usual.longest)), append(s.With, ms(with.longest))
	}
	if s.Held, err = b.cluster.holds(); err != nil || len(s.Held) < b.o.repeat {
		return errors.Join(err, holdfast.E("look for holds", holdfast.NotFound, fmt.Sprintf("%d are logged, %d were made", len(s.Held), b.o.repeat)))
	}
	s.Held = s.Held[len(s.Held)-b.o.repeat:] // of this volume
	for n := range b.o.repeat {
		if err := b.cluster.dropSnapshot(ctx, fmt.Sprintf("%s-%d", name, n)); err != nil {
			return err
		}
	}
	return b.cluster.gone(ctx, name, 0)
}

// ratios shows them: the median, the range, and the median of those of CPU time.
func ratios(xs []pairRatio) string {
	var rates, cpus []float64
	for _, x := range xs {
		rates, cpus = append(rates, x.Rate), append(cpus, x.CPU)
	}
	return fmt.Sprintf("%.2f [%.2f..%.2f]; of the daemons' CPU time %.2f", median(rates), slices.Min(rates), slices.Max(rates), median(cpus))
}

func (c *cluster) snapshotService() (holdfastv1.SnapshotServiceClient, error) {
	cc, err := c.conns.Conn("unix://" + c.path(0, "api.sock"))
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewSnapshotServiceClient(cc), nil
}

func (c *cluster) snapshot(ctx context.Context, volume, name string) error {
	cl, err := c.snapshotService()
	if err != nil {
		return err
	}
	_, err = cl.CreateSnapshot(ctx, &holdfastv1.CreateSnapshotRequest{Volume: volume, Name: name})
	return holdfast.Wrap("take snapshot "+name, err)
}

// holds are the times that the first node's primaries say they held writes for
// snapshots, in milliseconds, oldest first.
func (c *cluster) holds() (held []float64, err error) {
	log, err := os.ReadFile(c.path(0, "log"))
	if err != nil {
		return nil, holdfast.Wrap("look for holds", err)
	}
	for _, m := range regexp.MustCompile(`writes were held for ([0-9.]+) ms`).FindAllSubmatch(log, -1) {
		x, err := strconv.ParseFloat(string(m[1]), 64)
		if err != nil {
			return nil, holdfast.Wrap("look for holds", err)
		}
		held = append(held, x)
	}
	return held, nil
}

func (c *cluster) dropSnapshot(ctx context.Context, name string) error {
	cl, err := c.snapshotService()
	if err != nil {
		return err
	}
	_, err = cl.DeleteSnapshot(ctx, &holdfastv1.DeleteSnapshotRequest{Snapshot: name})
	return holdfast.Wrap("delete snapshot "+name, err)
}

// gone detaches a volume from a node and deletes it.
func (c *cluster) gone(ctx context.Context, name string, node int) error {
	if err := c.detach(ctx, name, node); err != nil {
		return err
	}
	cl, err := c.volumes(node)
	if err != nil {
		return err
	}
	// Its snapshots, which are deleted, may still be there for a moment.
	return until(ctx, time.Minute, "delete volume "+name, func(ctx context.Context) (bool, error) {
		_, err = cl.DeleteVolume(ctx, &holdfastv1.DeleteVolumeRequest{Volume: name})
		return err == nil, nil
	})
}

// print writes the table for people.
func (s *snapshotFigures) print(w io.Writer) {
	fmt.Fprintln(w, "\nsnapshots (ratios are paired; 32 threads with direct I/O of 4 KiB at random places)")
	for _, t := range s.FirstTouch {
		if len(t.Ratios) > 0 {
			fmt.Fprintf(w, "first touch, %d replicas: %s IOPS; steady: %s; ratio %s\n", t.Replicas, spread(t.First), spread(t.Steady), ratios(t.Ratios))
		}
	}
	for _, x := range []struct {
		what   string
		ratios []pairRatio
	}{{"writes", s.PresentWrites}, {"reads", s.PresentReads}} {
		if len(x.ratios) > 0 {
			fmt.Fprintf(w, "%s with %d snapshots, to none: %s\n", x.what, manySnapshots, ratios(x.ratios))
		}
	}
	if len(s.Stall.With) > 0 {
		fmt.Fprintf(w, "longest write on %d extents: %s ms; while a snapshot is taken: %s ms, for which writes were held for %s ms\n",
			manyExtents, spread(s.Stall.Usual), spread(s.Stall.With), spread(s.Stall.Held))
	}
	if len(s.Clone) > 0 {
		fmt.Fprintf(w, "a clone of %d GiB: created, attached and mounted in %s ms\n", cloneBytes>>30, spread(s.Clone))
	}
	for _, d := range s.Drops {
		if len(d.Ms) > 0 {
			d.print(w)
		}
	}
	if s.Raise != nil {
		s.Raise.print(w)
	}
	if s.Group != nil && len(s.Group.With) > 0 {
		s.Group.print(w)
	}
}
