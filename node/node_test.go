package node_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/testcluster"
	"github.com/holdfast-storage/holdfast/node"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

const mib = 1 << 20

// sh runs a program that does the I/O: this process serves the devices and must
// not wait for them itself.
func sh(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := try(name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return string(out), err
}

// mount mounts a device and gives the directory and how to unmount it.
func mount(t *testing.T, dev string) (dir string, unmount func()) {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-test-mnt-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // does nothing when it has been unmounted
		_, _ = try("umount", "--lazy", dir)
		_ = os.Remove(dir)
	})
	sh(t, "mount", dev, dir)
	return dir, func() { t.Helper(); sh(t, "umount", dir) }
}

// pattern makes a file of random bytes to be written to devices.
func pattern(t *testing.T, bytes int) (path, sum string) {
	t.Helper()
	data := make([]byte, bytes)
	_, _ = rand.Read(data)
	path = filepath.Join(t.TempDir(), "pattern")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, strings.Fields(sh(t, "sha256sum", path))[0]
}

// write copies a file to the device at an offset in MiB, durably.
func write(t *testing.T, file, dev string, atMiB int) {
	t.Helper()
	sh(t, "dd", "if="+file, "of="+dev, "bs=1M", fmt.Sprintf("seek=%d", atMiB), "oflag=direct", "conv=fsync,notrunc", "status=none")
}

// sum reads n MiB at an offset in MiB, past any cache.
func sum(t *testing.T, dev string, atMiB, n int) string {
	t.Helper()
	return strings.Fields(sh(t, "sh", "-c", fmt.Sprintf("dd if=%s bs=1M skip=%d count=%d iflag=direct status=none | sha256sum", dev, atMiB, n)))[0]
}

func wantKind(t *testing.T, err error, kind holdfast.Kind, says string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(fmt.Sprint(err), says) {
		t.Fatalf("got error %v (%v), want %v with %q", err, holdfast.KindOf(err), kind, says)
	}
}

func allInSync(c *testcluster.Cluster, id holdfast.VolumeID) func() bool {
	return func() bool {
		rec := c.Record(id)
		return rec.Healthy()
	}
}

func TestAFilesystemMovesFromNodeToNode(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{Storage: 3, Storageless: 1})
	n1, n2, bare := c.Nodes[0], c.Nodes[1], c.Nodes[3]
	for fs, mkfs := range map[string][]string{"xfs": {"-q"}, "ext4": {"-q"}} {
		t.Run(fs, func(t *testing.T) {
			rec := c.CreateVolume("vol-"+fs, 320*mib, c.Nodes[:3]...)
			dev := n1.Attach(rec.ID)
			if again := n1.Attach(rec.ID); again != dev {
				t.Errorf("attached again as %s, was %s", again, dev)
			}
			sh(t, "mkfs."+fs, append(mkfs, dev)...)
			dir, unmount := mount(t, dev)
			file, want := pattern(t, 20*mib)
			sh(t, "cp", file, filepath.Join(dir, "data"))
			_, err := n2.Client().Attach(t.Context(), &holdfastv1.AttachRequest{VolumeId: rec.Name})
			wantKind(t, err, holdfast.InUse, "n1")
			_, err = n1.Client().Detach(t.Context(), &holdfastv1.DetachRequest{VolumeId: string(rec.ID)})
			wantKind(t, err, holdfast.InUse, dir)
			unmount()
			n1.Detach(rec.ID)
			for _, n := range []*testcluster.Node{bare, n2} {
				dev := n.Attach(rec.ID)
				dir, unmount := mount(t, dev)
				if got := strings.Fields(sh(t, "sha256sum", filepath.Join(dir, "data")))[0]; got != want {
					t.Errorf("on %s the file has other content", n.ID)
				}
				unmount()
				n.Detach(rec.ID)
			}
			if p := c.Record(rec.ID).Primary; p != nil {
				t.Errorf("after the last detach the record has primary %+v", p)
			}
		})
	}
}

func TestAKilledNodesVolumeGoesOnElsewhereAndItsReplicaCatchesUp(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	n1, n2, n3 := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	rec := c.CreateVolume("db", 256*mib, c.Nodes...)
	dev := n1.Attach(rec.ID)
	before, wantBefore := pattern(t, 16*mib)
	write(t, before, dev, 8)
	n1.Kill()
	killed := time.Now()
	c.Eventually("n2 gets the volume", func() bool {
		_, err := n2.Client().Attach(t.Context(), &holdfastv1.AttachRequest{VolumeId: string(rec.ID)})
		return err == nil
	})
	t.Logf("attached elsewhere %v after the kill, with a lease of 2 s", time.Since(killed).Round(time.Millisecond))
	dev = n2.Attach(rec.ID)
	if sum(t, dev, 8, 16) != wantBefore {
		t.Fatal("what was acknowledged before the kill is not there")
	}
	c.Eventually("n1's replica is dropped", func() bool { r := c.Record(rec.ID); return r.On("n1").State != holdfast.InSync })
	during, wantDuring := pattern(t, 4*mib)
	write(t, during, dev, 100)
	n1.Start()
	c.Eventually("n1's replica is in sync again", allInSync(c, rec.ID))
	for _, p := range n2.Volume(rec.ID).GetPrimary().GetPeers() {
		if p.GetNodeId() == "n1" {
			t.Logf("repair: %d bytes missing, %d copied, %d written meanwhile", p.GetTotalBytes(), p.GetCopiedBytes(), 4*mib)
			if p.GetCopiedBytes() < 4*mib || p.GetCopiedBytes() > 64*mib {
				t.Errorf("copied %d bytes: want the delta, not less and not the whole", p.GetCopiedBytes())
			}
		}
	}
	n2.Detach(rec.ID)
	// Only n1's replica is left to answer: what it has must be all of it.
	n2.Kill()
	n3.Kill()
	dev = n1.Attach(rec.ID)
	if sum(t, dev, 8, 16) != wantBefore || sum(t, dev, 100, 4) != wantDuring {
		t.Error("the replica that came back differs")
	}
}

func TestANodeThatDiesUnderWritesCausesNoError(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	n1, n3 := c.Nodes[0], c.Nodes[2]
	rec := c.CreateVolume("db", 256*mib, c.Nodes...)
	dev := n1.Attach(rec.ID)
	n3.Kill()
	file, want := pattern(t, 8*mib)
	start := time.Now()
	write(t, file, dev, 0)
	t.Logf("wrote 8 MiB in %v with a node just killed", time.Since(start).Round(time.Millisecond))
	if r := c.Record(rec.ID); r.On("n3").State != holdfast.Stale {
		t.Errorf("the lost replica is %s", r.On("n3").State)
	}
	if sum(t, dev, 0, 8) != want {
		t.Error("read back differs")
	}
	n1.Detach(rec.ID)
	// Nobody has it attached: maintenance repairs it, then lets go.
	n3.Start()
	c.Eventually("the replica is repaired and the volume free", func() bool {
		r := c.Record(rec.ID)
		return r.Healthy() && r.Primary == nil
	})
	c.Nodes[1].Kill()
	n1.Kill()
	if sum(t, n3.Attach(rec.ID), 0, 8) != want {
		t.Error("the repaired replica differs")
	}
}

func TestVolumesGrowAttachedAndNot(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{Storage: 2})
	n1 := c.Nodes[0]
	rec := c.CreateVolume("v", 64*mib, c.Nodes...)
	size := func(dev string) string { return strings.TrimSpace(sh(t, "blockdev", "--getsize64", dev)) }
	dev := n1.Attach(rec.ID)
	c.Change(rec.ID, func(r *holdfast.Record) { r.Spec.SizeBytes = 128*mib - 100 })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := n1.Agent().WaitSize(ctx, rec.ID, 128*mib-100); err != nil {
		t.Fatal(err)
	}
	if got := size(dev); got != fmt.Sprint(128*mib) {
		t.Errorf("the device has %s bytes", got)
	}
	n1.Detach(rec.ID)
	c.Change(rec.ID, func(r *holdfast.Record) { r.Spec.SizeBytes = 192 * mib })
	c.Eventually("maintenance grows it and lets go", func() bool {
		r := c.Record(rec.ID)
		return r.SizeBytes == 192*mib && r.Primary == nil
	})
	if got := size(c.Nodes[1].Attach(rec.ID)); got != fmt.Sprint(192*mib) {
		t.Errorf("the device has %s bytes", got)
	}
}

func TestAKilledDaemonsAttachmentsComeBack(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{Storage: 2})
	n1 := c.Nodes[0]
	rec := c.CreateVolume("v", 64*mib, c.Nodes...)
	file, want := pattern(t, 4*mib)
	write(t, file, n1.Attach(rec.ID), 1)
	n1.Kill()
	n1.Start()
	var dev string
	c.Eventually("it is attached again", func() bool {
		var ok bool
		dev, ok = n1.Agent().Attached(rec.ID)
		return ok
	})
	if sum(t, dev, 1, 4) != want {
		t.Error("what was written before is not there")
	}
	n1.Stop()
	if p := c.Record(rec.ID).Primary; p != nil {
		t.Errorf("a graceful stop left primary %+v though nothing was mounted", p)
	}
	n1.Start()
	if _, ok := n1.Agent().Attached(rec.ID); ok {
		t.Error("attached though it was given back")
	}
}

func TestDeletedVolumesLeaveNothing(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{Storage: 2})
	rec := c.CreateVolume("v", 64*mib, c.Nodes...)
	dev := c.Nodes[0].Attach(rec.ID)
	file, _ := pattern(t, 8*mib)
	write(t, file, dev, 0)
	c.Nodes[0].Detach(rec.ID)
	var ts []holdfast.Tombstone
	for _, x := range rec.Replicas {
		ts = append(ts, holdfast.Tombstone{Replica: x.ID, Volume: rec.ID, Node: x.Node, Pool: x.Pool})
	}
	if err := c.DB.DropVolume(t.Context(), c.Record(rec.ID), ts); err != nil {
		t.Fatal(err)
	}
	c.Eventually("replicas and tombstones are gone", func() bool {
		left, err := c.DB.Tombstones(t.Context())
		return err == nil && len(left) == 0
	})
	for _, n := range c.Nodes {
		if v := n.Volume(rec.ID); v.GetReplica() != nil {
			t.Errorf("node %s still has %v", n.ID, v.GetReplica())
		}
	}
}

func TestPoolsAreCheckedOverTheService(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{Storage: 1})
	n := c.Nodes[0]
	c.CreateVolume("v", 64*mib, n)
	stream, err := n.Client().CheckPool(t.Context(), &holdfastv1.CheckPoolRequest{PoolId: string(n.Pool())})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetFinished() {
			if len(m.GetProblems()) > 0 {
				t.Errorf("problems %v", m.GetProblems())
			}
			return
		}
	}
}

func TestADeviceWithSomebodysDataIsNotTaken(t *testing.T) {
	var img string
	c := testcluster.Start(t, testcluster.Options{Storage: 1, Configure: func(n *testcluster.Node, cfg *node.Config) {
		img = filepath.Join(n.Dir, "foreign.img")
		if _, err := os.Stat(img); err == nil {
			return
		}
		if err := os.WriteFile(img, bytes.Repeat([]byte{0}, 32*mib), 0o600); err != nil {
			t.Error(err)
		}
		sh(t, "mkfs.ext4", "-q", img)
		pool := cfg.Agent.Pools[0]
		pool.Path, pool.ImageBytes = img, 0
		cfg.Agent.Pools = append(cfg.Agent.Pools, pool)
	}})
	pools := c.Nodes[0].Agent().Node().Pools
	if len(pools) != 2 || pools[0].State != holdfast.PoolOnline || pools[1].State != holdfast.PoolFailed {
		t.Fatalf("pools %+v", pools)
	}
	if !strings.Contains(pools[1].Message, "ext4") {
		t.Errorf("the message does not say what is there: %s", pools[1].Message)
	}
	sh(t, "e2fsck", "-n", "-f", img)
}
