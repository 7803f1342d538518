package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

const (
	// scaleNode has the volumes attached. It is not the one with the etcd: it is
	// killed at the end.
	scaleNode = nodes - 1
	// scaleSize is small, as little is written.
	scaleSize = 64 << 20
	// scaleIdle is how long nothing is done with the mounted volumes, and
	// scaleRound in what time each of them is written to once.
	scaleIdle  = 20 * time.Second
	scaleRound = 10 * time.Second
	// scaleAtOnce is how many calls, or writes, are under way at most.
	scaleAtOnce = 16
)

// scaleFigures are about many volumes attached to one node, each with three
// replicas.
type scaleFigures struct {
	Volumes int  `json:"volumes"`
	Create  ends `json:"createMs"`
	Attach  ends `json:"attachMs"`
	Mount   ends `json:"mkfsAndMountMs"`
	Write   ends `json:"writeAndFsyncMs"` // one in 10 s on each volume
	// Daemons, the last one with the volumes: without volumes, with all of them
	// mounted and idle, and with the writes.
	Empty []usage `json:"empty"`
	Idle  []usage `json:"idle"`
	Busy  []usage `json:"busy"`
	// Failover is from the node's death to the last volume attached elsewhere, of
	// which the first Lease nothing may happen; TakeOver is of each volume, from
	// when its turn came.
	Failover float64 `json:"failoverMs"`
	Lease    float64 `json:"leaseMs"`
	TakeOver ends    `json:"takeOverMs"`
	// TakeOverCPU is what each take-over cost the surviving daemons, in milliseconds
	// of CPU time; Degraded is what they take afterwards, the volumes idle with two
	// replicas of three; Returned is from the start of the killed daemon to the last
	// volume with three in sync.
	TakeOverCPU float64 `json:"takeOverCPUMs"`
	Degraded    []usage `json:"degraded"`
	Returned    float64 `json:"returnedMs"`
	Look        looks   `json:"look"` // with all of them attached
}

// ends are times in milliseconds, and those of the first and the last tenth.
type ends struct {
	Median float64 `json:"median"`
	First  float64 `json:"firstTenth"`
	Last   float64 `json:"lastTenth"`
	Max    float64 `json:"max"`
}

func endsOf(vs []float64) ends {
	n := max(1, len(vs)/10)
	return ends{Median: median(vs), First: median(vs[:n]), Last: median(vs[len(vs)-n:]), Max: slices.Max(vs)}
}

func (e ends) String() string {
	return fmt.Sprintf("median %.0f ms, first tenth %.0f, last tenth %.0f, longest %.0f", e.Median, e.First, e.Last, e.Max)
}

func scaleName(i int) string { return fmt.Sprintf("scale-%d", i) }

// scale measures n volumes on one node. It kills that node at the end.
func (b *bench) scale(ctx context.Context, n int) (err error) {
	f := &scaleFigures{Volumes: n, Lease: ms(leaseTTL())}
	if f.Empty, err = b.watch(ctx, scaleIdle/2); err != nil {
		return err
	}
	points := make([]string, n)
	defer func() {
		for _, at := range points {
			if at != "" {
				_ = unix.Unmount(at, unix.MNT_DETACH) // also after the node's death
			}
		}
	}()
	if err := b.scaleAttach(ctx, f, points); err != nil {
		return err
	}
	endHook := b.hook(target{name: "scale"}, load{name: "idle"})
	f.Idle, err = b.watch(ctx, scaleIdle)
	endHook()
	if err != nil {
		return err
	}
	if f.Look, err = b.look(ctx, n, scaleNode); err != nil {
		return err
	}
	if err := b.scaleWrites(ctx, f, points); err != nil {
		return err
	}
	for i, at := range points {
		if err := unix.Unmount(at, 0); err != nil {
			return holdfast.Wrap("unmount "+at, err)
		}
		points[i] = ""
	}
	if err := b.scaleFailover(ctx, f); err != nil {
		return err
	}
	if err := b.scaleReturn(ctx, f); err != nil {
		return err
	}
	b.results.Scale = f
	return nil
}

// scaleAttach creates, attaches and mounts the volumes, one after the other.
func (b *bench) scaleAttach(ctx context.Context, f *scaleFigures, points []string) error {
	var create, attach, mount []float64
	for i := range points {
		took, err := b.cluster.create(ctx, scaleName(i), nodes, scaleSize)
		if err != nil {
			return err
		}
		create = append(create, ms(took))
		dev, took, err := b.cluster.attach(ctx, scaleName(i), scaleNode)
		if err != nil {
			return err
		}
		attach = append(attach, ms(took))
		began := time.Now()
		at := filepath.Join(b.o.dir, "mnt", scaleName(i))
		if err := mountSmall(ctx, dev, at); err != nil {
			return err
		}
		points[i] = at
		mount = append(mount, ms(time.Since(began)))
	}
	f.Create, f.Attach, f.Mount = endsOf(create), endsOf(attach), endsOf(mount)
	return nil
}

// mountSmall makes an ext4 that writes next to nothing, neither now nor later, and
// mounts it.
func mountSmall(ctx context.Context, dev, at string) error {
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-N", "16", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=1", dev).CombinedOutput(); err != nil {
		return holdfast.WrapKind("mkfs.ext4 "+dev+": "+string(out), holdfast.Other, err)
	}
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	return holdfast.Wrap("mount "+dev, unix.Mount(dev, at, "ext4", unix.MS_NOATIME, ""))
}

// scaleWrites writes 4 KiB to each volume and flushes them, evenly over the round.
func (b *bench) scaleWrites(ctx context.Context, f *scaleFigures, points []string) error {
	var mu sync.Mutex
	var took []float64
	var g errgroup.Group
	g.SetLimit(scaleAtOnce)
	g.Go(func() (err error) {
		f.Busy, err = b.watch(ctx, scaleRound)
		return err
	})
	every := time.NewTicker(scaleRound / time.Duration(len(points)))
	defer every.Stop()
	for _, at := range points {
		<-every.C
		g.Go(func() error {
			began := time.Now()
			if err := writeSynced(filepath.Join(at, "file")); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, ms(time.Since(began)))
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	f.Write = endsOf(took)
	return nil
}

func writeSynced(path string) error {
	file, err := os.Create(path)
	if err != nil {
		return holdfast.Wrap("write", err)
	}
	_, err = file.Write(make([]byte, 4<<10))
	return holdfast.Wrap("write "+path, errors.Join(err, file.Sync(), file.Close()))
}

// scaleFailover kills the node and attaches all of its volumes to the two others.
func (b *bench) scaleFailover(ctx context.Context, f *scaleFigures) error {
	before, err := b.survivorsUsed()
	if err != nil {
		return err
	}
	killed := time.Now()
	b.cluster.procs[scaleNode].kill()
	var mu sync.Mutex
	var took []float64
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(scaleAtOnce)
	for i := range f.Volumes {
		g.Go(func() error {
			return until(ctx, 5*time.Minute, "take over volume "+scaleName(i), func(ctx context.Context) (bool, error) {
				_, d, err := b.cluster.attach(ctx, scaleName(i), i%scaleNode)
				if errors.Is(err, holdfast.InUse) {
					return false, nil // the dead node's lease has not run out yet
				}
				mu.Lock()
				defer mu.Unlock()
				took = append(took, ms(d))
				return true, err
			})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	f.Failover, f.TakeOver = ms(time.Since(killed)), endsOf(took)
	after, err := b.survivorsUsed()
	if err != nil {
		return err
	}
	f.TakeOverCPU = ms(after-before) / float64(f.Volumes)
	return nil
}

// survivorsUsed is the CPU time of all daemons but the one that is killed.
func (b *bench) survivorsUsed() (sum time.Duration, err error) {
	for i, pid := range b.cluster.pids()[:scaleNode] {
		s, err := readStat(pid)
		if err != nil {
			return 0, holdfast.Wrap("look at daemon "+nodeName(i), err)
		}
		sum += s.used
	}
	return sum, nil
}

// scaleReturn looks at the volumes while a replica of each is missing, and has the
// killed node come back.
func (b *bench) scaleReturn(ctx context.Context, f *scaleFigures) (err error) {
	if f.Degraded, err = b.watchSome(ctx, b.cluster.pids()[:scaleNode], scaleIdle/2); err != nil {
		return err
	}
	began := time.Now()
	if err := b.cluster.startNode(scaleNode); err != nil {
		return err
	}
	err = until(ctx, 10*time.Minute, "have all replicas in sync again", func(ctx context.Context) (bool, error) {
		select { // a listing of many volumes is not for free
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
		cl, err := b.cluster.volumes(0)
		if err != nil {
			return false, err
		}
		all, err := cl.ListVolumes(ctx, &holdfastv1.ListVolumesRequest{})
		for _, v := range all.GetVolumes() {
			for _, r := range v.GetReplicas() {
				if r.GetState() != string(holdfast.InSync) {
					return false, err
				}
			}
		}
		return err == nil, err
	})
	f.Returned = ms(time.Since(began))
	return err
}

func (f *scaleFigures) print(w io.Writer) {
	fmt.Fprintf(w, "\n%d volumes with three replicas, all attached to one node\ncreate: %s\nattach: %s\nmkfs.ext4 and mount: %s\nwrite and fsync, one in 10 s on each: %s\n", f.Volumes, f.Create, f.Attach, f.Mount, f.Write)
	fmt.Fprintf(w, "%-28s %10s %10s %8s %8s %8s %14s\n", "daemon", "resident", "anonymous", "threads", "files", "CPU", "per volume")
	for i := range f.Empty {
		name := nodeName(i)
		if i == scaleNode {
			name += ", with the volumes"
		}
		for _, u := range []struct {
			when string
			usage
		}{{"empty", f.Empty[i]}, {"idle", f.Idle[i]}, {"writes", f.Busy[i]}} {
			fmt.Fprintf(w, "%-20s %-7s %6.0f MiB %6.0f MiB %8d %8d %7.1f%% %10.0f KiB\n", name, u.when, u.Resident, u.Anonymous, u.Threads, u.Files, u.CPU, 1024*(u.Resident-f.Empty[i].Resident)/float64(f.Volumes))
		}
	}
	fmt.Fprintln(w, f.Look)
	fmt.Fprintf(w, "the node is killed: all attached elsewhere after %.1f s (lease %.0f s); each: %s, %.0f ms of CPU time\n", f.Failover/1e3, f.Lease/1e3, f.TakeOver, f.TakeOverCPU)
	for i, u := range f.Degraded {
		fmt.Fprintf(w, "%s, the volumes idle without a replica: %.0f MiB, %.1f%% CPU\n", nodeName(i), u.Resident, u.CPU)
	}
	fmt.Fprintf(w, "the node is back: all in sync after %.1f s\n", f.Returned/1e3)
}
