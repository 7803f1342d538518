package fuseloop_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/devicetest"
)

// stuckEnv tells the test binary to be a server whose backend answers nothing,
// not even the flush with which the kernel begins to bind: "DIR VOLUME".
const stuckEnv = "HOLDFAST_FUSELOOP_STUCK"

// stuckServer does not return in such a process.
func stuckServer() {
	spec := os.Getenv(stuckEnv)
	if spec == "" {
		return
	}
	var (
		dir string
		vol holdfast.VolumeID
	)
	if _, err := fmt.Sscan(spec, &dir, &vol); err != nil {
		panic(err)
	}
	fe, err := newFrontEnd(dir)
	if err != nil {
		panic(err)
	}
	mem := devicetest.NewMemory(adoptSize)
	mem.Hang()
	go func() {
		_, err := fe.Open(context.Background(), device.Options{Volume: vol, SizeBytes: adoptSize, LogicalBlk: 4096}, mem)
		fmt.Println("opened:", err)
	}()
	for mem.Held() == 0 {
		<-time.After(time.Millisecond)
	}
	fmt.Println("holding")
	select {}
}

// TestKilledWhileBinding: a server that is killed while the kernel waits for its
// answer to bind the device ends, and the next one finds nothing in its way.
func TestKilledWhileBinding(t *testing.T) {
	root, vol := t.TempDir(), holdfast.NewVolumeID()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), stuckEnv+"="+root+" "+string(vol))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "holding" {
		t.Errorf("the server said %q", lines.Text())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it was killed
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(30 * time.Second):
		t.Error("a server that was killed while binding does not end")
	}
	// A successor helps one that does not end.
	f := successor(t, root, nil)
	defer f.Close()
	if _, err := f.CleanOrphans(t.Context()); err != nil {
		t.Error(err)
	}
	mem := devicetest.NewMemory(adoptSize)
	d := open(t, f, vol, adoptSize, mem)
	wantDone(t, "a write", ioDone(t, d.Path(), writeAt(0), 'a'))
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for len(bindings(t, vol)) > 0 && time.Now().Before(deadline) {
		<-time.After(10 * time.Millisecond)
	}
	if left := bindings(t, vol); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}

// bindings are the loop devices over the volume's file.
func bindings(t *testing.T, vol holdfast.VolumeID) []string {
	t.Helper()
	all, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var of []string
	for _, path := range all {
		if raw, err := os.ReadFile(path); err == nil && strings.Contains(string(raw), string(vol)) {
			of = append(of, path)
		}
	}
	return of
}
