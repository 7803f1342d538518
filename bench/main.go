// Command bench measures a cluster on this machine: three daemons of the real
// program with pools in memory (image files on a tmpfs, with XFS over a loop
// device, as the product makes them), volumes of one and three replicas through
// FUSE and loop devices, and beside them what the same memory does without
// Holdfast: a file in a pool's XFS, a plain loop device, the front end alone, and
// qemu's quorum of three network block devices on files in the same pools, with its
// fastest I/O and with its default, where that is installed. Then the same with pools
// throttled like a cloud's disks. With -scale and -records it measures many volumes
// instead, and nothing else.
//
// Runs of the targets are interleaved and repeated; it prints medians with their
// range and writes all of it as JSON. Everything shares one machine's CPUs, so
// the ratios say more than the rates: a replicated write is three times the work
// on the same CPUs. It needs root, fio, /dev/fuse, loop devices and about
// 12 GiB of memory, and removes everything it made, also when it is interrupted; a run
// that was killed is cleaned up by the next one.
//
// Goroutines: one per daemon, which waits for its end.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

// options are the command line.
type options struct {
	binary, dir, out string
	short            bool
	control, repair  bool
	survive          bool
	throttled        bool
	snapshots        bool
	scale, records   int
	parts            string // of the snapshots
	repeat           int
	runtime          time.Duration
	targets, loads   string
	hook             string // run beside every measurement, to profile it
}

func parse(args []string) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&o.binary, "binary", "build/holdfast", "the program to measure")
	fs.StringVar(&o.dir, "dir", "/dev/shm/hf-bench", "folder for the run, on a tmpfs; removed at the end")
	fs.StringVar(&o.out, "out", "build/bench.json", "where the results go")
	fs.BoolVar(&o.short, "short", false, "a quick look: one repetition of half a second, of some loads")
	fs.BoolVar(&o.control, "control", true, "also measure creating, attaching and taking over volumes")
	fs.BoolVar(&o.throttled, "throttled", true, "also measure with pools as slow as a cloud's disks")
	fs.BoolVar(&o.repair, "repair", true, "also measure I/O beside a repair")
	fs.BoolVar(&o.survive, "survive", true, "also measure how long I/O waits when daemons are killed or stopped")
	fs.BoolVar(&o.snapshots, "snapshots", true, "also measure what snapshots and clones cost")
	fs.StringVar(&o.parts, "snapshot-parts", "", "only these parts of that, by commas: first touch,with 200 snapshots,stall,clone,drop,replicas raised,group")
	fs.IntVar(&o.repeat, "repeat", 5, "repetitions")
	fs.DurationVar(&o.runtime, "runtime", 2*time.Second, "of each measurement")
	fs.StringVar(&o.targets, "targets", "", "only these targets, by commas: raw,loop,front,x1,far1,x3,qemu,qemu-threads")
	fs.StringVar(&o.loads, "loads", "", "only these loads, by commas: "+strings.Join(names(), ","))
	fs.IntVar(&o.scale, "scale", 0, "measure this many volumes attached to one node, and nothing but that and -records")
	fs.IntVar(&o.records, "records", 0, "measure this many volumes in the metadata, and nothing but that and -scale")
	fs.StringVar(&o.hook, "hook", "", "shell command run beside every measurement, such as a profiler; $PIDS are the daemons")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if o.short {
		o.repeat, o.runtime, o.throttled = 1, 500*time.Millisecond, false
		o.loads = cmp.Or(o.loads, "w1,w32,r1,r32,f1,sw8,sr8")
	}
	return o, nil
}

func main() {
	// The daemons are to die with this process: the kernel ties that to the
	// thread that started them.
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if len(os.Args) == 4 && os.Args[1] == frontEndArg {
		serveFrontEnd(ctx, os.Args[2], os.Args[3])
		return
	}
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(ctx, o)
	}
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "bench: interrupted")
		os.Exit(130)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run measures. What it made is gone when it returns.
func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return holdfast.E("measure", holdfast.Denied, "it mounts filesystems: run it as root")
	}
	if _, err := exec.LookPath("fio"); err != nil {
		return holdfast.E("measure", holdfast.NotFound, "fio is not installed; on Debian: apt-get install fio")
	}
	unlock, err := lock(o.dir + ".lock")
	if err != nil {
		return err
	}
	defer unlock()
	if err := remove(o.dir); err != nil { // of a run that was killed
		return err
	}
	b := &bench{o: o, cluster: newCluster(o)}
	defer func() {
		err = errors.Join(err, b.endTargets())
		b.cluster.stop()
		err = errors.Join(err, remove(o.dir))
	}()
	err = b.measure(ctx)
	if ctx.Err() != nil {
		return err
	}
	if err != nil { // what was measured before is half an hour's work
		b.results.Failed = err.Error()
	}
	b.results.print(os.Stdout)
	return errors.Join(err, b.results.write(o.out))
}

// bench is one run.
type bench struct {
	o       options
	cluster *cluster
	results results
	ends    []func() error // what is to be done when the targets were measured
}

func (b *bench) measure(ctx context.Context) error {
	b.results.begin(b.o)
	if err := b.cluster.start(ctx); err != nil {
		return err
	}
	if b.o.scale > 0 || b.o.records > 0 {
		return b.many(ctx)
	}
	targets, err := b.prepare(ctx)
	if err != nil {
		return err
	}
	if err := b.data(ctx, targets); err != nil {
		return err
	}
	b.results.Added = b.results.added()
	if b.o.throttled {
		if err := b.throttledPools(ctx); err != nil {
			return err
		}
	}
	if b.o.repair {
		if err := b.repairs(ctx); err != nil {
			return err
		}
	}
	if b.o.survive {
		if err := b.survive(ctx); err != nil {
			return err
		}
	}
	if b.o.snapshots {
		if err := b.snapshots(ctx); err != nil {
			return err
		}
	}
	if b.o.control {
		return b.controlPlane(ctx)
	}
	return nil
}

// many measures many volumes.
func (b *bench) many(ctx context.Context) error {
	if b.o.records > 0 {
		if err := b.records(ctx, b.o.records); err != nil {
			return err
		}
	}
	if b.o.records > 0 && b.o.scale > 0 { // a process may not have files open for both
		b.cluster.stop()
		if err := remove(b.o.dir); err != nil {
			return err
		}
		b.cluster = newCluster(b.o)
		if err := b.cluster.start(ctx); err != nil {
			return err
		}
	}
	if b.o.scale > 0 {
		return b.scale(ctx, b.o.scale)
	}
	return nil
}

// lock makes sure that there is one run at a time.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, holdfast.Wrap("lock the bench", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, holdfast.E("measure", holdfast.InUse, "another bench is running; wait for it or end it")
	}
	return func() {
		_ = os.Remove(path)
		_ = f.Close()
	}, nil
}

// remove takes away everything below dir. The daemons have ended: with their
// parent, if nothing else ended them; those of a keeper that was killed are ended here.
func remove(dir string) error {
	if err := netcluster.KillAll(context.Background(), func() []int { return daemonsBelow(dir) }); err != nil {
		return err
	}
	if err := netcluster.Forget(dir); err != nil {
		return err
	}
	if raw, err := os.ReadFile("/proc/self/mounts"); err != nil || strings.Contains(string(raw), " "+dir+"/") {
		return errors.Join(err, holdfast.E("clean up "+dir, holdfast.InUse, "something is still mounted below it; see: findmnt | grep "+dir))
	}
	return netcluster.Remove(filepath.Clean(dir))
}
