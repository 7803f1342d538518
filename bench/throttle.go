package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// What a cloud's ordinary disk gives.
const (
	slowIOPS  = 3000
	slowBytes = 125_000_000 // a second
	slowTime  = 4 * time.Second
)

// slowRatio is what three replicas do of what one does, each pool throttled.
type slowRatio struct {
	Load         string  `json:"load"`
	One          float64 `json:"one"` // IOPS, or MB/s of large writes
	Three        float64 `json:"three"`
	ThreeToOne   float64 `json:"threeToOne"`
	what, inUnit string
}

func (s slowRatio) print(w io.Writer) {
	fmt.Fprintf(w, "\npools of %d IOPS and %d MB/s, %s: 1 replica %.0f %s, 3 replicas %.0f, ratio %.2f\n",
		slowIOPS, slowBytes/1_000_000, s.what, s.One, s.inUnit, s.Three, s.ThreeToOne)
}

// throttledPools measures volumes of one and three replicas, by turns, while each
// node's pool is as slow as a cloud's disk: a group of the kernel's blkio
// controller has the daemons, and a limit for each pool's device.
func (b *bench) throttledPools(ctx context.Context) (err error) {
	g, err := b.throttle()
	if err != nil {
		b.results.Without = append(b.results.Without, "throttled pools: "+err.Error())
		fmt.Fprintln(os.Stderr, "without throttled pools:", err)
		return nil
	}
	defer func() {
		if e := g.remove(); err == nil {
			err = e
		}
	}()
	var targets []target
	for _, n := range []int32{1, 3} {
		t, err := b.volume(fmt.Sprint("slow", n), n)(ctx)
		if err != nil {
			return err
		}
		t.name = fmt.Sprint("x", n)
		targets = append(targets, t)
		if _, err := fio(ctx, t.path, load{rw: "write", block: 1 << 20, depth: 8}, 0); err != nil {
			return err
		}
	}
	loads := []load{
		{name: "w32", what: "4 KiB random write, depth 32", rw: "randwrite", block: 4 << 10, depth: 32},
		{name: "sw8", what: "1 MiB sequential write, depth 8", rw: "write", block: 1 << 20, depth: 8},
	}
	for range min(b.o.repeat, 3) {
		for _, l := range loads {
			for _, t := range targets {
				s, err := fio(ctx, t.path, l, slowTime)
				if err != nil {
					return err
				}
				b.results.Slow = b.results.addTo(b.results.Slow, t, l, s)
			}
		}
	}
	for _, l := range loads {
		one, three := find(b.results.Slow, "x1", l.name), find(b.results.Slow, "x3", l.name)
		r := slowRatio{Load: l.name, One: one.Median.IOPS, Three: three.Median.IOPS, what: l.what, inUnit: "IOPS"}
		r.ThreeToOne = r.Three / r.One
		if l.block > 64<<10 {
			r.One, r.Three, r.inUnit = one.Median.MBps, three.Median.MBps, "MB/s"
		}
		b.results.Ratios = append(b.results.Ratios, r)
	}
	for _, n := range []int{1, 3} {
		if err := b.cluster.gone(ctx, fmt.Sprint("slow", n), 0); err != nil {
			return err
		}
	}
	return nil
}

// group is a control group of version 1 that holds the daemons.
type group struct {
	dir  string
	pids []int
}

// throttle limits the daemons' I/O to each pool's device.
func (b *bench) throttle() (*group, error) {
	const root = "/sys/fs/cgroup/blkio"
	const op = "throttle the pools"
	if _, err := os.Stat(filepath.Join(root, "blkio.throttle.write_iops_device")); err != nil {
		return nil, holdfast.E(op, holdfast.Unsupported, "there is no blkio controller of version 1 at "+root)
	}
	g := &group{dir: filepath.Join(root, filepath.Base(b.o.dir)), pids: b.cluster.pids()}
	_ = os.Remove(g.dir) // of a run that was killed; it is empty then
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if err := g.limit(b); err != nil {
		_ = g.remove()
		return nil, holdfast.WrapKind(op, holdfast.Unsupported, err)
	}
	return g, nil
}

func (g *group) limit(b *bench) error {
	for i := range nodes {
		pool, err := b.pool(i)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(pool, &st); err != nil {
			return err
		}
		dev := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
		for _, way := range []string{"read", "write"} {
			if err := g.set("blkio.throttle."+way+"_iops_device", fmt.Sprint(dev, " ", slowIOPS)); err != nil {
				return err
			}
			if err := g.set("blkio.throttle."+way+"_bps_device", fmt.Sprint(dev, " ", slowBytes)); err != nil {
				return err
			}
		}
	}
	for _, pid := range g.pids {
		if err := g.set("cgroup.procs", strconv.Itoa(pid)); err != nil {
			return err
		}
	}
	return nil
}

func (g *group) set(file, value string) error {
	return os.WriteFile(filepath.Join(g.dir, file), []byte(value), 0o644)
}

// remove gives the daemons, and what they have started meanwhile, back to the group
// above, and removes this one.
func (g *group) remove() error {
	const op = "end the throttling"
	up := filepath.Join(filepath.Dir(g.dir), "cgroup.procs")
	for try := 0; ; try++ {
		pids, err := os.ReadFile(filepath.Join(g.dir, "cgroup.procs"))
		if err != nil {
			return holdfast.Wrap(op, err)
		}
		for pid := range strings.FieldsSeq(string(pids)) {
			if err := os.WriteFile(up, []byte(pid), 0o644); err != nil && !errors.Is(err, unix.ESRCH) {
				return holdfast.Wrap(op, err)
			}
		}
		if err = os.Remove(g.dir); err == nil || !errors.Is(err, unix.EBUSY) || try == 10 {
			return holdfast.Wrap(op, err)
		}
		// One may just have been started, or be ending; a group of version 1 does not say
		// when it is empty.
		time.Sleep(100 * time.Millisecond)
	}
}
