package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// sizeBytes is the size of every volume, file and device that is measured.
const sizeBytes int64 = 512 << 20

// load is one pattern of I/O.
type load struct {
	name, what string
	rw         string
	block      int
	depth      int
	fsync      bool
	long       bool  // twice the runtime
	mixed      bool  // reads and writes count together
	once       bool  // each block at most once
	size       int64 // of the target; 0: sizeBytes
	bytes      int64 // after which it ends; 0: size
}

func loads() []load {
	var all []load
	for _, kind := range []struct{ name, what, rw string }{
		{"w", "4 KiB random write", "randwrite"}, {"r", "4 KiB random read", "randread"}, {"m", "4 KiB, 70 % random read, 30 % write", "randrw"},
	} {
		for _, depth := range []int{1, 8, 32, 128} {
			all = append(all, load{name: fmt.Sprint(kind.name, depth), what: fmt.Sprintf("%s, depth %d", kind.what, depth),
				rw: kind.rw, block: 4 << 10, depth: depth, mixed: kind.rw == "randrw"})
		}
	}
	return append(all,
		load{name: "f1", what: "4 KiB random write and fsync each, depth 1", rw: "randwrite", block: 4 << 10, depth: 1, fsync: true},
		load{name: "sw8", what: "1 MiB sequential write, depth 8", rw: "write", block: 1 << 20, depth: 8},
		load{name: "sr8", what: "1 MiB sequential read, depth 8", rw: "read", block: 1 << 20, depth: 8},
	)
}

func names() []string {
	var out []string
	for _, l := range loads() {
		out = append(out, l.name)
	}
	return out
}

// target is something to measure.
type target struct {
	name, what string
	path       string       // a file or device, or the URI of an NBD server
	pids       func() []int // the processes that serve it; nil: the daemons
	single     bool         // is for depth 1 only
}

// chosen says whether a name is on a list by commas; an empty one has all.
func chosen(list, name string) bool {
	return list == "" || strings.Contains(","+list+",", ","+name+",")
}

// prepare makes the targets and fills them, so that no measurement pays for
// allocating space.
func (b *bench) prepare(ctx context.Context) ([]target, error) {
	local := func(context.Context) (target, error) {
		path, err := b.rawFile(0, "bench-raw")
		b.ends = append(b.ends, func() error { return os.Remove(path) })
		return target{path: path}, err
	}
	var all []target
	for _, t := range []struct {
		name, what string
		make       func(context.Context) (target, error)
	}{
		{"raw", "file on a pool's XFS", local},
		{"loop", "loop device over a file in memory", b.rawLoop},
		{"front", "the front end alone, over a file on a pool's XFS", b.frontEnd},
		{"x1", "volume, 1 replica, attached where it is", b.volume("x1", 1)},
		{"far1", "volume, 1 replica, on another node", b.volume("far1", 1, 1)},
		{"x3", "volume, 3 replicas, one of them local", b.volume("x3", 3)},
		{"qemu", "qemu-storage-daemon, quorum over 3 NBD exports on the same disks, its fastest I/O (aio=native)", b.qemu("qemu", "native")},
		{"qemu-threads", "the same with the I/O that it does unless told otherwise (aio=threads)", b.qemu("qemu-threads", "threads")},
	} {
		if !chosen(b.o.targets, t.name) {
			continue
		}
		made, err := t.make(ctx)
		if errors.Is(err, holdfast.Unsupported) {
			fmt.Fprintf(os.Stderr, "without %s: %v\n", t.name, err)
			b.results.Without = append(b.results.Without, t.name+": "+err.Error())
			continue
		}
		if err != nil {
			return nil, err
		}
		made.name, made.what = t.name, t.what
		if _, err := fio(ctx, made.path, load{rw: "write", block: 1 << 20, depth: 8}, 0); err != nil {
			return nil, err
		}
		all = append(all, made)
	}
	return all, nil
}

// rawFile makes a file beside the replicas in a node's pool.
func (b *bench) rawFile(node int, name string) (string, error) {
	dir, err := b.pool(node)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	return path, allocate(path)
}

// pool is where a node's pool is mounted.
func (b *bench) pool(node int) (string, error) {
	const op = "find a node's pool"
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", holdfast.Wrap(op, err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 2 && f[2] == "xfs" && strings.HasPrefix(f[1], b.cluster.path(node)+"/") {
			return f[1], nil
		}
	}
	return "", holdfast.E(op, holdfast.NotFound, "no pool of node "+nodeName(node)+" is mounted")
}

func allocate(path string) error {
	f, err := os.Create(path)
	if err == nil {
		err = f.Truncate(sizeBytes)
		_ = f.Close()
	}
	return holdfast.Wrap("make "+path, err)
}

// rawLoop is a loop device with direct I/O over a file in memory. What cleans
// up finds it by its file.
func (b *bench) rawLoop(ctx context.Context) (target, error) {
	path := filepath.Join(b.o.dir, "loop.img")
	if err := allocate(path); err != nil {
		return target{}, err
	}
	out, err := command(ctx, "losetup", "--find", "--show", "--direct-io=on", "--sector-size=4096", path)
	return target{path: strings.TrimSpace(out)}, err
}

// volume makes a volume with its replicas on these nodes only, if any are named,
// and attaches it to the first node.
func (b *bench) volume(name string, replicas int32, on ...int) func(context.Context) (target, error) {
	return func(ctx context.Context) (target, error) {
		if _, err := b.cluster.create(ctx, name, replicas, sizeBytes, on...); err != nil {
			return target{}, err
		}
		path, _, err := b.cluster.attach(ctx, name, 0)
		return target{path: path}, err
	}
}

// data measures all loads on all targets. The targets of a load take turns, so
// that what else the machine does meets all of them.
func (b *bench) data(ctx context.Context, targets []target) error {
	for n := range b.o.repeat {
		for _, l := range loads() {
			if !chosen(b.o.loads, l.name) {
				continue
			}
			for _, t := range targets {
				if t.single && l.depth > 1 {
					continue
				}
				s, err := b.sample(ctx, t, l)
				if err != nil {
					return err
				}
				b.results.add(t, l, s)
			}
		}
		fmt.Fprintf(os.Stderr, "repetition %d of %d is done\n", n+1, b.o.repeat)
	}
	return b.endTargets()
}

// endTargets removes what must not be there any more when the cluster ends; again
// is fine.
func (b *bench) endTargets() error {
	var errs []error
	for _, end := range b.ends {
		errs = append(errs, end())
	}
	b.ends = nil
	return errors.Join(errs...)
}

// sample is one run of fio, with the CPU time that it took.
func (b *bench) sample(ctx context.Context, t target, l load) (sample, error) {
	endHook := b.hook(t, l)
	defer endHook()
	pids := b.cluster.pids
	if t.pids != nil {
		pids = t.pids
	}
	before, err := readCPU(pids())
	if err != nil {
		return sample{}, err
	}
	runtime := b.o.runtime
	if l.long {
		runtime *= 2
	}
	s, err := fio(ctx, t.path, l, runtime)
	if err != nil {
		return s, err
	}
	after, err := readCPU(pids())
	if s.ops > 0 {
		s.DaemonsCPU = (after.daemons - before.daemons).Seconds() * 1e6 / s.ops
		s.AllCPU = s.DaemonsCPU + (s.fioCPU+after.kernelSince(before)).Seconds()*1e6/s.ops
		s.MachineCPU = (after.machine - before.machine).Seconds() * 1e6 / s.ops
	}
	return s, err
}

// hook starts the profiler, or whatever was asked for.
func (b *bench) hook(t target, l load) (end func()) {
	if b.o.hook == "" {
		return func() {}
	}
	var pids []string
	for _, p := range b.cluster.procs {
		pids = append(pids, fmt.Sprint(p.cmd.Process.Pid))
	}
	cmd := exec.Command("sh", "-c", b.o.hook)
	cmd.Env = append(os.Environ(), "PIDS="+strings.Join(pids, ","), "TARGET="+t.name, "LOAD="+l.name)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "bench: hook:", err)
		return func() {}
	}
	return func() { _ = cmd.Wait() }
}

// fioOutput is the part of fio's JSON that is used. Latencies are completion
// latencies in nanoseconds.
type fioOutput struct {
	Jobs []struct {
		Error             int
		Read, Write, Sync fioDirection
		Mixed             fioDirection
		UserCPU           float64 `json:"usr_cpu"` // in percent of its time
		SystemCPU         float64 `json:"sys_cpu"`
		Runtime           float64 `json:"job_runtime"` // in milliseconds
	}
}

type fioDirection struct {
	IOPS     float64
	BW       float64  `json:"bw_bytes"`
	TotalIOs float64  `json:"total_ios"`
	Clat     fioTimes `json:"clat_ns"`
	Lat      fioTimes `json:"lat_ns"`
}

type fioTimes struct {
	Percentile map[string]float64
}

func (t fioTimes) micros(p string) float64 { return t.Percentile[p] / 1e3 }

// fio runs one load for so long; 0 goes over the whole target once. It is one
// process with threads: the processes that it would fork outlive it when it is
// killed.
func fio(ctx context.Context, path string, l load, runtime time.Duration) (sample, error) {
	args := []string{"--name=bench", "--thread", "--rw=" + l.rw, fmt.Sprintf("--bs=%d", l.block), fmt.Sprintf("--iodepth=%d", l.depth),
		fmt.Sprintf("--size=%d", cmp.Or(l.size, sizeBytes)), "--randrepeat=0", "--percentile_list=50:99:99.9", "--output-format=json"}
	if strings.HasPrefix(path, "nbd") {
		args = append(args, "--ioengine=nbd", "--uri="+path)
	} else {
		args = append(args, "--ioengine=libaio", "--direct=1", "--filename="+path)
	}
	if !l.once {
		args = append(args, "--norandommap")
	}
	if l.mixed {
		args = append(args, "--rwmixread=70", "--unified_rw_reporting=1")
	}
	if l.bytes > 0 {
		args = append(args, fmt.Sprintf("--io_size=%d", l.bytes))
	}
	if runtime > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--runtime=%dms", runtime.Milliseconds()))
	}
	if l.fsync {
		args = append(args, "--fsync=1")
	}
	out, err := command(ctx, "fio", args...)
	if err != nil {
		return sample{}, err
	}
	if i := strings.Index(out, "{\n"); i > 0 { // its NBD engine says hello
		out = out[i:]
	}
	var r fioOutput
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.Jobs) != 1 || r.Jobs[0].Error != 0 {
		return sample{}, holdfast.E("read fio's output", holdfast.Other, fmt.Sprintf("%v: %.500s", err, out))
	}
	j := r.Jobs[0]
	d := j.Write
	if l.mixed {
		d = j.Mixed
	}
	if d.TotalIOs == 0 {
		d = j.Read
	}
	s := sample{IOPS: d.IOPS, MBps: d.BW / 1e6, P50: d.Clat.micros("50.000000"), P99: d.Clat.micros("99.000000"), P999: d.Clat.micros("99.900000"), ops: d.TotalIOs,
		fioCPU: time.Duration((j.UserCPU + j.SystemCPU) / 100 * j.Runtime * float64(time.Millisecond))}
	if l.fsync { // the write and its sync, one after the other
		s.P50 += j.Sync.Lat.micros("50.000000")
		s.P99 += j.Sync.Lat.micros("99.000000")
		s.P999 += j.Sync.Lat.micros("99.900000")
	}
	return s, nil
}

// command runs a program and gives its output; the error shows what it said.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errw bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errw
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Run(); err != nil {
		return "", holdfast.E(strings.Join(cmd.Args, " "), holdfast.Other, fmt.Sprintf("%v: %s", err, strings.TrimSpace(errw.String())))
	}
	return out.String(), nil
}
