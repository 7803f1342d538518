package node_test

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
	"github.com/holdfast-storage/holdfast/internal/testcluster"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// stall makes the disk of a node's pool answer no write any more, until thaw is
// called; another process does that in the end, as this one may hang.
func stall(t *testing.T, n *testcluster.Node) (thaw func()) {
	t.Helper()
	pools, err := netcluster.PoolsBelow(n.Dir)
	if err != nil || len(pools) != 1 {
		t.Fatalf("pools: %v, %v", pools, err)
	}
	watchdog := exec.Command("sh", "-c", fmt.Sprintf("sleep 60; fsfreeze --unfreeze %s", pools[0]))
	watchdog.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := watchdog.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = watchdog.Wait()
	}()
	thaw = func() {
		select {
		case <-ended:
			t.Error("all waited for the disk until another process thawed it")
		default:
		}
		if err := netcluster.ThawDisk(pools[0]); err != nil {
			t.Errorf("thaw: %v", err)
		}
	}
	t.Cleanup(func() {
		if left, _ := filepath.Glob(filepath.Join(pools[0], "replicas")); len(left) > 0 {
			thaw()
		}
		_ = syscall.Kill(-watchdog.Process.Pid, syscall.SIGKILL)
		<-ended
	})
	if err := netcluster.StallDisk(pools[0]); err != nil {
		t.Fatal(err)
	}
	return thaw
}

// The disk of the node that serves the volumes hangs: they go on with their other
// replicas, and all else of the node goes on as well.
func TestAPoolThatHangsDisturbsNobodyElse(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	n1, n2, n3 := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	rec := c.CreateVolume("db", 256*mib, c.Nodes...)
	away := c.CreateVolume("away", 64*mib, n2, n3)
	dev, devAway := n1.Attach(rec.ID), n1.Attach(away.ID)
	file, want := pattern(t, 8*mib)
	write(t, file, dev, 0)
	thaw := stall(t, n1)
	write(t, file, dev, 16)
	write(t, file, devAway, 0)
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		runtime.GC()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for range 3 {
		if _, err := n1.Client().NodeVolumes(ctx, &holdfastv1.NodeVolumesRequest{}); err != nil {
			t.Fatalf("the node's status: %v", err)
		}
	}
	if r := c.Record(rec.ID); r.On("n1").State == holdfast.InSync || r.Primary.Node != "n1" {
		t.Errorf("record %+v", r)
	}
	c.Eventually("the pool is reported", func() bool {
		p := n1.Agent().Node().Pools
		return len(p) == 1 && !p[0].SilentSince.IsZero() && p[0].Message != ""
	})
	select {
	case <-collected:
	case <-ctx.Done():
		t.Error("the garbage collector waits for the disk")
	}
	nodes, err := c.DB.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if !n.Alive {
			t.Errorf("node %s lost its lease", n.ID)
		}
	}
	thaw()
	c.Eventually("it is repaired", allInSync(c, rec.ID))
	c.Eventually("the pool is as it was", func() bool {
		p := n1.Agent().Node().Pools
		return len(p) == 1 && p[0].SilentSince.IsZero() && p[0].Message == "" && p[0].State == holdfast.PoolOnline
	})
	n1.Detach(rec.ID)
	n1.Detach(away.ID)
	n2.Kill()
	n3.Kill()
	if dev := n1.Attach(rec.ID); sum(t, dev, 0, 8) != want || sum(t, dev, 16, 8) != want {
		t.Error("the repaired replica differs")
	}
}
