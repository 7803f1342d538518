package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
	"github.com/holdfast-storage/holdfast/replication"
)

// frontEndArg makes this program the process that frontEnd starts.
const frontEndArg = "serve-front-end"

// frontEnd is a device whose requests go to a file in the first node's pool as
// they are: what is left of a volume without protocol and engine. It is served by
// a process of its own: a device's server must not use it itself.
func (b *bench) frontEnd(ctx context.Context) (target, error) {
	file, err := b.rawFile(0, "bench-front")
	if err != nil {
		return target{}, err
	}
	dir := filepath.Join(b.o.dir, "front")
	root, ready := filepath.Join(dir, "run/devices"), filepath.Join(dir, "device")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return target{}, holdfast.Wrap("make "+root, err)
	}
	self, err := os.Executable()
	if err != nil {
		return target{}, holdfast.Wrap("find this program", err)
	}
	p, err := startProcess(exec.Command(self, frontEndArg, file, dir), filepath.Join(dir, "log"))
	if err != nil {
		return target{}, holdfast.Wrap("start a front end", err)
	}
	t := target{single: true, pids: func() []int { return []int{p.cmd.Process.Pid} }}
	b.ends = append(b.ends, func() error {
		_ = p.cmd.Process.Signal(unix.SIGTERM)
		<-p.done
		return os.Remove(file)
	})
	return t, until(ctx, 10*time.Second, "start a front end", func(context.Context) (bool, error) {
		if p.ended() {
			said, _ := os.ReadFile(filepath.Join(dir, "log"))
			return false, holdfast.E("start a front end", holdfast.Other, string(said))
		}
		path, err := os.ReadFile(ready)
		t.path = string(path)
		return err == nil, nil
	})
}

// serveFrontEnd is the process: it writes the device's path to a file in dir, and
// ends with ctx.
func serveFrontEnd(ctx context.Context, file, dir string) {
	if err := serveFile(ctx, file, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serveFile(ctx context.Context, file, dir string) error {
	f, err := os.OpenFile(file, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fe, err := fuseloop.New(fuseloop.Config{Root: filepath.Join(dir, "run/devices")})
	if err != nil {
		return err
	}
	defer func() { _ = fe.Close() }()
	dev, err := fe.Open(ctx, device.Options{Volume: holdfast.NewVolumeID(), SizeBytes: sizeBytes, LogicalBlk: 4096}, fileBackend{int(f.Fd())})
	if err != nil {
		return err
	}
	defer func() { _ = dev.Abort() }()
	path := filepath.Join(dir, "device")
	if err := os.WriteFile(path+".tmp", []byte(dev.Path()), 0o644); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// fileBackend does what it is told in the caller's goroutine: the least that a
// backend can do, for one request at a time.
type fileBackend struct{ fd int }

// Submit implements device.Backend.
func (f fileBackend) Submit(r *replication.Request) {
	var err error
	switch r.Op {
	case replication.OpRead:
		_, err = unix.Pread(f.fd, r.Buf.B, r.Offset)
	case replication.OpWrite:
		_, err = unix.Pwrite(f.fd, r.Buf.B, r.Offset)
	case replication.OpTrim:
		err = unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Offset, r.Length)
	case replication.OpFlush:
		err = unix.Fdatasync(f.fd)
	}
	r.Done(r, err)
}

// step is a part of a write's latency at depth 1.
type step struct {
	What   string  `json:"what"`
	Micros float64 `json:"us"`
}

// added takes the latency of a write at depth 1 apart, by the medians of targets
// that have one part more each; nothing if one of them was not measured.
func (r *results) added() []step {
	var p50 []float64
	for _, name := range []string{"raw", "front", "x1", "far1", "x3"} {
		s := r.find(name, "w1")
		if s == nil {
			return nil
		}
		p50 = append(p50, s.Median.P50)
	}
	return []step{
		{"the pool's disk", p50[0]},
		{"+ the front end (FUSE and loop device)", p50[1] - p50[0]},
		{"+ protocol and engine, replica local", p50[2] - p50[1]},
		{"= volume with one local replica", p50[2]},
		{"+ the replica is on another node", p50[3] - p50[2]},
		{"= volume with one remote replica", p50[3]},
		{"+ three replicas, one of them local", p50[4] - p50[3]},
		{"= volume with three replicas", p50[4]},
	}
}
