package devicetest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/replication"
)

// childEnv tells the test binary to be a server: "DIR VOLUME BYTES FILE". FILE
// keeps what is written for the next server, which adopts the device; "-" is
// memory.
const childEnv = "HOLDFAST_DEVICETEST_CHILD"

// Child is to be called first in TestMain. In a process that a test of the suite
// started as a server it serves one device until it is killed, or its standard
// input ends, and does not return.
func Child(newFrontEnd NewFrontEnd) {
	spec := os.Getenv(childEnv)
	if spec == "" {
		return
	}
	if err := serveChild(newFrontEnd, spec); err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serveChild(newFrontEnd NewFrontEnd, spec string) error {
	var (
		dir string
		vol holdfast.VolumeID
		n   int64
		at  string
	)
	if _, err := fmt.Sscan(spec, &dir, &vol, &n, &at); err != nil {
		return err
	}
	fe, err := newFrontEnd(dir)
	if err != nil {
		return err
	}
	o, mem := options(n), NewMemory(n)
	o.Volume = vol
	var d device.Device
	if at == "-" {
		d, err = fe.Open(context.Background(), o, mem)
	} else {
		d, err = inherit(fe, o, at)
	}
	if err != nil {
		return err
	}
	fmt.Println("path", d.Path())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		switch in.Text() {
		case "hang":
			mem.Hang()
			fmt.Println("hanging")
		case "held": // wait until a request is held
			for mem.Held() == 0 {
				<-time.After(time.Millisecond)
			}
			fmt.Println("holding")
		case "grow": // stuck behind whatever hangs
			mem.Grow(2 * n)
			go func() { _ = d.Grow(context.Background(), 2*n) }()
			fmt.Println("growing")
		}
	}
	return d.Abort() // the test is over
}

// inherit adopts the device of a predecessor, or makes the first one.
func inherit(fe device.FrontEnd, o device.Options, file string) (device.Device, error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := fe.(device.Successor).Adopt(context.Background()); err != nil {
		return nil, err
	}
	return fe.Open(context.Background(), o, &onFile{f: f})
}

// onFile is a backend that outlives its process: a file.
type onFile struct {
	asked atomic.Uint64
	f     *os.File
}

// Asked is device.Counter, of this device alone.
func (b *onFile) Asked() uint64 { return b.asked.Load() }

func (b *onFile) Submit(r *replication.Request) {
	b.asked.Add(1)
	var err error
	switch r.Op {
	case replication.OpRead:
		clear(r.Buf.B) // the file is as long as it was written
		if _, err = b.f.ReadAt(r.Buf.B, r.Offset); errors.Is(err, io.EOF) {
			err = nil
		}
	case replication.OpWrite:
		_, err = b.f.WriteAt(r.Buf.B, r.Offset)
	case replication.OpTrim:
		err = unix.Fallocate(int(b.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Offset, r.Length)
	}
	r.Done(r, err)
}

// child is a server process.
type child struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Scanner
	path string
	vol  holdfast.VolumeID
}

func startChild(t *testing.T, dir string, size int64) *child {
	t.Helper()
	return startServer(t, dir, holdfast.NewVolumeID(), size, "-")
}

func startServer(t *testing.T, dir string, vol holdfast.VolumeID, size int64, file string) *child {
	t.Helper()
	c := &child{t: t, vol: vol}
	c.cmd = exec.Command("/proc/self/exe")
	c.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d %s", childEnv, dir, c.vol, size, file))
	c.cmd.Stderr = os.Stderr
	in, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.in, c.out = in, bufio.NewScanner(out)
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill() // it may have ended
		within(t, patience, "the killed server ends", func() { _ = c.cmd.Wait() })
	})
	c.path = strings.TrimPrefix(c.line("path "), "path ")
	return c
}

// line reads the child's next line, which must begin with want.
func (c *child) line(want string) string {
	c.t.Helper()
	if !c.out.Scan() || !strings.HasPrefix(c.out.Text(), want) {
		c.t.Fatalf("the server said %q, wanted %q", c.out.Text(), want)
	}
	return c.out.Text()
}

func (c *child) tell(command, answer string) {
	c.t.Helper()
	if _, err := fmt.Fprintln(c.in, command); err != nil {
		c.t.Fatal(err)
	}
	c.line(answer)
}

// kill sends SIGKILL. It does not wait: the process may be stuck until somebody
// cleans up after it.
func (c *child) kill() {
	c.t.Helper()
	if err := c.cmd.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
}
