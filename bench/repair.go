package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

const (
	repairVolume = "repair"
	repairSize   = 2 << 30
	repairWait   = 5 * time.Minute // for a replica to be in sync again
	// repairNode is the one whose replica is repaired. The volume is attached to
	// the first one, which is the source.
	repairNode = nodes - 1
	// resyncSize is written while a replica is away: each block once, in random
	// order.
	resyncSize = 256 << 20
	mib        = 1 << 20
)

// repairLoads are measured beside a repair, which needs some seconds to find its
// rate.
func repairLoads() []load {
	return []load{
		{name: "w32", what: "4 KiB random write, depth 32", rw: "randwrite", block: 4 << 10, depth: 32, size: repairSize, long: true},
		{name: "m32", what: "4 KiB random, 70 % reads, depth 32", rw: "randrw", mixed: true, block: 4 << 10, depth: 32, size: repairSize, long: true},
	}
}

// besideRepair is one load on a volume with and without a repair of it.
type besideRepair struct {
	Load string `json:"load"`
	// Without has one more sample: before the first repair, and after each.
	Without []sample `json:"without"`
	With    []sample `json:"with"`
	// Ratios are the IOPS with the repair to the mean of those before and after it.
	Ratios []float64 `json:"ratios"`
	Rates  []float64 `json:"repairMiBps"` // at which the repair went on meanwhile
	Lefts  []int64   `json:"leftBytes"`   // for the repair to do when the load ended
	what   string
}

// resync is what a replica was sent that was away while Written bytes were written.
type resync struct {
	Written int64   `json:"writtenBytes"`
	Sent    []int64 `json:"sentBytes"`
	// Alone are the rates of repairs beside nothing else.
	Alone []float64 `json:"aloneMiBps"`
}

// repairs measures the application's I/O beside a repair, and what a repair sends.
func (b *bench) repairs(ctx context.Context) error {
	if _, err := b.cluster.create(ctx, repairVolume, nodes, repairSize); err != nil {
		return err
	}
	dev, _, err := b.cluster.attach(ctx, repairVolume, 0)
	if err != nil {
		return err
	}
	if err := fillRepair(ctx, dev); err != nil {
		return err
	}
	for _, l := range repairLoads() {
		b.results.Repair = append(b.results.Repair, &besideRepair{Load: l.name, what: l.what})
	}
	b.results.Resync = &resync{Written: resyncSize}
	t := target{name: repairVolume, path: dev}
	for n := range b.o.repeat {
		if err := b.repairPair(ctx, t); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "repair: repetition %d of %d is done\n", n+1, b.o.repeat)
	}
	if err := b.withoutRepair(ctx, t); err != nil {
		return err
	}
	for _, s := range b.results.Repair {
		s.compare()
	}
	if err := b.resyncs(ctx, dev); err != nil {
		return err
	}
	return b.cluster.detach(ctx, repairVolume, 0)
}

// repairPair measures all loads without a repair, then with one.
func (b *bench) repairPair(ctx context.Context, t target) error {
	if err := b.withoutRepair(ctx, t); err != nil {
		return err
	}
	for i, l := range repairLoads() {
		before, err := b.underRepair(ctx, t.path)
		if err != nil {
			return err
		}
		began := time.Now()
		s, err := b.sample(ctx, t, l)
		if err != nil {
			return err
		}
		took := time.Since(began)
		after, err := b.cluster.replica(ctx, repairVolume, repairNode)
		if err != nil {
			return err
		}
		r := b.results.Repair[i]
		r.With = append(r.With, s)
		r.Rates = append(r.Rates, float64(after.GetCopiedBytes()-before.GetCopiedBytes())/mib/took.Seconds())
		r.Lefts = append(r.Lefts, after.GetLeftBytes())
	}
	return b.repairAlone(ctx)
}

// repairAlone lets the repair end beside nothing else.
func (b *bench) repairAlone(ctx context.Context) error {
	before, err := b.cluster.replica(ctx, repairVolume, repairNode)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := b.waitInSync(ctx); err != nil {
		return err
	}
	if left := before.GetLeftBytes(); left > repairSize/8 {
		b.results.Resync.Alone = append(b.results.Resync.Alone, float64(left)/mib/time.Since(began).Seconds())
	}
	return nil
}

func (b *bench) withoutRepair(ctx context.Context, t target) error {
	for i, l := range repairLoads() {
		s, err := b.sample(ctx, t, l)
		if err != nil {
			return err
		}
		b.results.Repair[i].Without = append(b.results.Repair[i].Without, s)
	}
	return nil
}

// underRepair sees to it that a repair is copying that has more than half of the
// volume left to do.
func (b *bench) underRepair(ctx context.Context, dev string) (*holdfastv1.VolumeReplica, error) {
	r, err := b.cluster.replica(ctx, repairVolume, repairNode)
	if err != nil || r.GetLeftBytes() > repairSize/2 {
		return r, err
	}
	if err := b.waitInSync(ctx); err != nil {
		return nil, err
	}
	err = b.away(ctx, func() error { return fillRepair(ctx, dev) })
	if err != nil {
		return nil, err
	}
	err = until(ctx, repairWait, "begin a repair", func(ctx context.Context) (bool, error) {
		r, err = b.cluster.replica(ctx, repairVolume, repairNode)
		return err == nil && r.GetCopiedBytes() > 0 && r.GetLeftBytes() > 0, nil
	})
	return r, err
}

// away kills the node whose replica is to be repaired, calls f when the volume
// goes on without it, and starts the node again.
func (b *bench) away(ctx context.Context, f func() error) error {
	b.cluster.procs[repairNode].kill()
	err := until(ctx, repairWait, "drop a replica", func(ctx context.Context) (bool, error) {
		r, err := b.cluster.replica(ctx, repairVolume, repairNode)
		return r.GetState() != string(holdfast.InSync), err
	})
	if err == nil {
		err = f()
	}
	if err != nil {
		return err
	}
	return b.cluster.startNode(repairNode)
}

func (b *bench) waitInSync(ctx context.Context) error {
	return until(ctx, repairWait, "repair a replica", func(ctx context.Context) (bool, error) {
		if p := b.cluster.procs[repairNode]; p.ended() {
			return false, holdfast.E("run node "+nodeName(repairNode), holdfast.Unavailable, "its daemon ended by itself:\n"+b.cluster.lastLog(repairNode))
		}
		r, err := b.cluster.replica(ctx, repairVolume, repairNode)
		return r.GetState() == string(holdfast.InSync), err
	})
}

// resyncs writes random blocks while a replica is away, and counts what it is sent.
func (b *bench) resyncs(ctx context.Context, dev string) error {
	once := load{rw: "randwrite", once: true, block: 4 << 10, depth: 32, size: repairSize, bytes: resyncSize}
	for range b.o.repeat {
		err := b.away(ctx, func() error {
			_, err := fio(ctx, dev, once, 0)
			return err
		})
		if err == nil {
			err = b.waitInSync(ctx)
		}
		if err != nil {
			return err
		}
		r, err := b.cluster.replica(ctx, repairVolume, repairNode)
		if err != nil {
			return err
		}
		b.results.Resync.Sent = append(b.results.Resync.Sent, r.GetCopiedBytes())
	}
	return nil
}

// fillRepair writes the whole volume.
func fillRepair(ctx context.Context, dev string) error {
	_, err := fio(ctx, dev, load{rw: "write", block: 1 << 20, depth: 8, size: repairSize}, 0)
	return err
}

// replica is how the replica of a volume on a node is.
func (c *cluster) replica(ctx context.Context, volume string, node int) (*holdfastv1.VolumeReplica, error) {
	cl, err := c.volumes(0)
	if err != nil {
		return nil, err
	}
	v, err := cl.GetVolume(ctx, &holdfastv1.GetVolumeRequest{Volume: volume})
	if err != nil {
		return nil, holdfast.Wrap("look at volume "+volume, err)
	}
	for _, r := range v.GetReplicas() {
		if r.GetNode() == nodeName(node) {
			return r, nil
		}
	}
	return nil, holdfast.E("look at volume "+volume, holdfast.NotFound, "it has no replica on node "+nodeName(node))
}

// compare pairs each repair with what was measured just before and after it.
func (s *besideRepair) compare() {
	for i, with := range s.With {
		s.Ratios = append(s.Ratios, 2*with.IOPS/max(s.Without[i].IOPS+s.Without[i+1].IOPS, 1))
	}
}

// of takes one figure from each sample.
func of(samples []sample, f func(sample) float64) []float64 {
	var out []float64
	for _, s := range samples {
		out = append(out, f(s))
	}
	return out
}

// print writes the table for people.
func (s *besideRepair) print(w io.Writer) {
	iops, p50, p99 := func(s sample) float64 { return s.IOPS }, func(s sample) float64 { return s.P50 }, func(s sample) float64 { return s.P99 }
	percent := make([]float64, len(s.Ratios))
	for i, r := range s.Ratios {
		percent[i] = 100 * r
	}
	fmt.Fprintf(w, "\n%s, on a volume with 3 replicas\n%-26s %24s %9s %9s\n", s.what, "", "IOPS", "p50 µs", "p99 µs")
	for _, x := range []struct {
		name    string
		samples []sample
	}{{"without a repair", s.Without}, {"with one of its replicas", s.With}} {
		fmt.Fprintf(w, "%-26s %24s %9.0f %9.0f\n", x.name, spread(of(x.samples, iops)), median(of(x.samples, p50)), median(of(x.samples, p99)))
	}
	fmt.Fprintf(w, "%-26s %24s %%, paired\n%-26s %24s MiB/s; at least %d MiB were left\n", "ratio", spread(percent),
		"the repair went on at", spread(s.Rates), slices.Min(s.Lefts)/mib)
}

// print writes the line for people.
func (r *resync) print(w io.Writer) {
	var ratios []float64
	for _, n := range r.Sent {
		ratios = append(ratios, float64(n)/float64(r.Written))
	}
	fmt.Fprintf(w, "\na replica was away while %d MiB were written in random blocks of 4 KiB: sent to it / written: %.4f [%.4f..%.4f]\n",
		r.Written/mib, median(ratios), slices.Min(ratios), slices.Max(ratios))
	if len(r.Alone) > 0 {
		fmt.Fprintf(w, "a repair beside nothing else goes on at %s MiB/s\n", spread(r.Alone))
	}
}
