package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
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
	return []load{
		{name: "w32", what: "4 KiB random write, depth 32", rw: "randwrite", block: 4 << 10, depth: 32},
		{name: "w1", what: "4 KiB random write, depth 1", rw: "randwrite", block: 4 << 10, depth: 1},
		{name: "r32", what: "4 KiB random read, depth 32", rw: "randread", block: 4 << 10, depth: 32},
		{name: "r1", what: "4 KiB random read, depth 1", rw: "randread", block: 4 << 10, depth: 1},
		{name: "f1", what: "4 KiB random write and fsync each, depth 1", rw: "randwrite", block: 4 << 10, depth: 1, fsync: true},
		{name: "sw8", what: "1 MiB sequential write, depth 8", rw: "write", block: 1 << 20, depth: 8},
		{name: "sr8", what: "1 MiB sequential read, depth 8", rw: "read", block: 1 << 20, depth: 8},
	}
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
	name, what, path string
}

// chosen says whether a name is on a list by commas; an empty one has all.
func chosen(list, name string) bool {
	return list == "" || strings.Contains(","+list+",", ","+name+",")
}

// prepare makes the targets and fills them, so that no measurement pays for
// allocating space.
func (b *bench) prepare(ctx context.Context) ([]target, error) {
	var all []target
	for _, t := range []struct {
		name, what string
		make       func(context.Context) (string, error)
	}{
		{"raw", "file on a pool's XFS", b.rawFile},
		{"loop", "loop device over a file in memory", b.rawLoop},
		{"x1", "volume, 1 replica, attached where it is", func(ctx context.Context) (string, error) { return b.volume(ctx, "x1", 1) }},
		{"x3", "volume, 3 replicas, one of them local", func(ctx context.Context) (string, error) { return b.volume(ctx, "x3", 3) }},
	} {
		if !chosen(b.o.targets, t.name) {
			continue
		}
		path, err := t.make(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := fio(ctx, path, load{rw: "write", block: 1 << 20, depth: 8}, 0); err != nil {
			return nil, err
		}
		all = append(all, target{t.name, t.what, path})
	}
	return all, nil
}

// rawFile is a file beside the replicas in the first node's pool.
func (b *bench) rawFile(context.Context) (string, error) {
	const op = "make a file on a pool"
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", holdfast.Wrap(op, err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "xfs" || !strings.HasPrefix(f[1], b.cluster.path(0)+"/") {
			continue
		}
		path := filepath.Join(f[1], "bench-raw")
		return path, allocate(path)
	}
	return "", holdfast.E(op, holdfast.NotFound, "no pool of the first node is mounted")
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
func (b *bench) rawLoop(ctx context.Context) (string, error) {
	path := filepath.Join(b.o.dir, "loop.img")
	if err := allocate(path); err != nil {
		return "", err
	}
	out, err := command(ctx, "losetup", "--find", "--show", "--direct-io=on", "--sector-size=4096", path)
	return strings.TrimSpace(out), err
}

func (b *bench) volume(ctx context.Context, name string, replicas int32) (string, error) {
	if _, err := b.cluster.create(ctx, name, replicas, sizeBytes); err != nil {
		return "", err
	}
	path, _, err := b.cluster.attach(ctx, name, 0)
	return path, err
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
				s, err := b.sample(ctx, t, l)
				if err != nil {
					return err
				}
				b.results.add(t, l, s)
			}
		}
		fmt.Fprintf(os.Stderr, "repetition %d of %d is done\n", n+1, b.o.repeat)
	}
	return nil
}

// sample is one run of fio, with the CPU time that it took.
func (b *bench) sample(ctx context.Context, t target, l load) (sample, error) {
	endHook := b.hook(t, l)
	defer endHook()
	before, err := readCPU(b.cluster.pids())
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
	after, err := readCPU(b.cluster.pids())
	if s.ops > 0 {
		s.DaemonsCPU = (after.daemons - before.daemons).Seconds() * 1e6 / s.ops
		s.AllCPU = s.DaemonsCPU + (s.fioCPU+after.kernel-before.kernel).Seconds()*1e6/s.ops
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
	args := []string{"--name=bench", "--thread", "--filename=" + path, "--rw=" + l.rw, fmt.Sprintf("--bs=%d", l.block), fmt.Sprintf("--iodepth=%d", l.depth),
		fmt.Sprintf("--size=%d", cmp.Or(l.size, sizeBytes)), "--ioengine=libaio", "--direct=1", "--randrepeat=0", "--output-format=json"}
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
	s := sample{IOPS: d.IOPS, MBps: d.BW / 1e6, P50: d.Clat.micros("50.000000"), P99: d.Clat.micros("99.000000"), ops: d.TotalIOs,
		fioCPU: time.Duration((j.UserCPU + j.SystemCPU) / 100 * j.Runtime * float64(time.Millisecond))}
	if l.fsync { // the write and its sync, one after the other
		s.P50 += j.Sync.Lat.micros("50.000000")
		s.P99 += j.Sync.Lat.micros("99.000000")
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
