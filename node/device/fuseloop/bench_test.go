package fuseloop_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
	"github.com/holdfast-storage/holdfast/replication"
)

const benchBytes = 1 << 30

// ramFile answers from a file on /dev/shm inside Submit: the least that a
// backend can do, so that what is measured is the front end.
type ramFile struct{ fd int }

func (f ramFile) Submit(r *replication.Request) {
	var err error
	switch r.Op {
	case replication.OpRead:
		_, err = unix.Pread(f.fd, r.Buf.B, r.Offset)
	case replication.OpWrite:
		_, err = unix.Pwrite(f.fd, r.Buf.B, r.Offset)
	case replication.OpTrim:
		err = unix.Fallocate(f.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Offset, r.Length)
	}
	r.Done(r, err)
}

// BenchmarkFio compares the device with a loop device straight on a file in
// memory. Each sub-benchmark runs fio for a second per iteration; use
// -benchtime 3x.
func BenchmarkFio(b *testing.B) {
	ram := ramBacking(b)
	plain := strings.TrimSpace(run(b, "losetup", "--find", "--show", "--direct-io=on", "--sector-size=4096", ram.Name()))
	b.Cleanup(func() { run(b, "losetup", "-d", plain) })
	fe, err := fuseloop.New(fuseloop.Config{Root: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	dev, err := fe.Open(context.Background(), device.Options{Volume: holdfast.NewVolumeID(), SizeBytes: benchBytes, LogicalBlk: 4096}, ramFile{int(ram.Fd())})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := dev.Abort(); err != nil {
			b.Error(err)
		}
		fe.Close()
	})
	for _, load := range []struct {
		rw        string
		bs, depth int
	}{
		{"randwrite", 4096, 1}, {"randwrite", 4096, 32}, {"randread", 4096, 1}, {"randread", 4096, 32},
		{"write", 1 << 20, 8}, {"read", 1 << 20, 8},
	} {
		b.Run(fmt.Sprintf("%s/bs=%d/depth=%d", load.rw, load.bs, load.depth), func(b *testing.B) {
			var ours, theirs float64
			var cpu time.Duration
			for b.Loop() {
				before := cpuTime(b)
				ours += fioIOPS(b, dev.Path(), load.rw, load.bs, load.depth)
				cpu += cpuTime(b) - before
				theirs += fioIOPS(b, plain, load.rw, load.bs, load.depth)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(ours/float64(b.N), "iops")
			b.ReportMetric(theirs/float64(b.N), "plain-iops")
			b.ReportMetric(ours/theirs, "ratio")
			b.ReportMetric(cpu.Seconds()*1e6/ours, "server-cpu-µs") // per request
		})
	}
}

// cpuTime is what this process, which is the server, has used. Unlike rates it
// can be compared on a machine that does other things too.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func ramBacking(b *testing.B) *os.File {
	f, err := os.Create(filepath.Join("/dev/shm", fmt.Sprintf("hf-test-bench-%d", os.Getpid())))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close(); os.Remove(f.Name()) })
	for off := int64(0); off < benchBytes; off += 1 << 20 {
		if _, err := f.WriteAt(make([]byte, 1<<20), off); err != nil {
			b.Fatal(err)
		}
	}
	return f
}

func fioIOPS(b *testing.B, path, rw string, bs, depth int) float64 {
	out := run(b, "fio", "--name=x", "--filename="+path, "--rw="+rw, fmt.Sprintf("--bs=%d", bs), fmt.Sprintf("--iodepth=%d", depth),
		"--ioengine=libaio", "--direct=1", "--time_based", "--runtime=1", "--norandommap", "--output-format=json")
	var r struct {
		Jobs []struct{ Read, Write struct{ IOPS float64 } }
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil || len(r.Jobs) != 1 {
		b.Fatalf("fio's answer cannot be read: %v\n%s", err, out)
	}
	return r.Jobs[0].Read.IOPS + r.Jobs[0].Write.IOPS
}

func run(b *testing.B, name string, arg ...string) string {
	b.Helper()
	out, err := exec.Command(name, arg...).CombinedOutput()
	if err != nil {
		b.Fatalf("%s %s: %v\n%s", name, strings.Join(arg, " "), err, out)
	}
	return string(out)
}
