package node_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/testcluster"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func TestForceTakesAMountedVolumeAndTheOldHolderLosesItsDevice(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{Storage: 2})
	n1, n2 := c.Nodes[0], c.Nodes[1]
	rec := c.CreateVolume("v", 64*mib, c.Nodes...)
	dev := n1.Attach(rec.ID)
	sh(t, "mkfs.ext4", "-q", dev)
	dir, _ := mount(t, dev)
	file, want := pattern(t, 4*mib)
	sh(t, "cp", file, filepath.Join(dir, "data"))
	sh(t, "sync", "-f", dir)
	// Somebody who has the old device open all the time, so that it stays itself:
	// its number may be given to the new holder's device, here on one machine.
	writer := exec.Command("sh", "-c", "exec 3<>"+dev+"; read go; dd if=/dev/zero bs=4k count=1 oflag=direct conv=notrunc of=/proc/self/fd/3")
	tell, err := writer.StdinPipe()
	if err == nil {
		err = writer.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = writer.Process.Kill() })
	c.Eventually("the writer has the device open", func() bool {
		fd, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", writer.Process.Pid))
		return err == nil && fd == dev
	})
	r, err := n2.Client().Attach(t.Context(), &holdfastv1.AttachRequest{VolumeId: string(rec.ID), Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tell.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	if err := writer.Wait(); err == nil {
		t.Error("the old holder's device still takes writes")
	}
	c.Eventually("the old holder has no device any more", func() bool {
		_, ok := n1.Agent().Attached(rec.ID)
		return !ok
	})
	dir2, unmount := mount(t, r.GetDevicePath())
	if got := strings.Fields(sh(t, "sha256sum", filepath.Join(dir2, "data")))[0]; got != want {
		t.Error("what was synced is not there on the new holder")
	}
	unmount()
	n1.Detach(rec.ID) // what an orchestrator does late: it must not touch the new holder
	if r := c.Record(rec.ID); r.AttachedTo() != n2.ID {
		t.Errorf("attached to %q", r.AttachedTo())
	}
}

func TestADaemonThatStopsUnderAMountAttachesItAgain(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{Storage: 2})
	n1, n2 := c.Nodes[0], c.Nodes[1]
	rec := c.CreateVolume("v", 64*mib, c.Nodes...)
	dev := n1.Attach(rec.ID)
	sh(t, "mkfs.ext4", "-q", dev)
	dir, _ := mount(t, dev)
	file, want := pattern(t, 4*mib)
	sh(t, "cp", file, filepath.Join(dir, "data"))
	sh(t, "sync", "-f", dir)
	n1.Stop()
	if r := c.Record(rec.ID); r.AttachedTo() != n1.ID {
		t.Fatalf("the mounted volume's grant went: attached to %q", r.AttachedTo())
	}
	n1.Start()
	var again string
	c.Eventually("it is attached again", func() bool {
		var ok bool
		again, ok = n1.Agent().Attached(rec.ID)
		return ok
	})
	_, err := n2.Client().Attach(t.Context(), &holdfastv1.AttachRequest{VolumeId: string(rec.ID)})
	wantKind(t, err, holdfast.InUse, "n1")
	dir2, unmount := mount(t, again)
	if got := strings.Fields(sh(t, "sha256sum", filepath.Join(dir2, "data")))[0]; got != want {
		t.Error("what was synced is not there")
	}
	unmount()
	n1.Detach(rec.ID)
}

func TestIOGoesOnWhileTheMetadataStoreIsAway(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{LeaseTTL: time.Second})
	n1 := c.Nodes[0]
	rec := c.CreateVolume("v", 64*mib, c.Nodes...)
	dev := n1.Attach(rec.ID)
	for _, n := range c.Nodes {
		n.Store.SetOutage(true)
	}
	c.Eventually("all leases have run out", func() bool {
		nodes, err := c.DB.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			if n.Alive {
				return false
			}
		}
		return true
	})
	file, want := pattern(t, 8*mib)
	write(t, file, dev, 0)
	if sum(t, dev, 0, 8) != want {
		t.Error("read back differs")
	}
	for _, n := range c.Nodes {
		n.Store.SetOutage(false)
	}
	c.Eventually("all nodes have joined again", func() bool {
		nodes, err := c.DB.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			if !n.Alive {
				return false
			}
		}
		return true
	})
	if path, ok := n1.Agent().Attached(rec.ID); !ok || path != dev {
		t.Errorf("attached as %q, %v", path, ok)
	}
	if r := c.Record(rec.ID); !r.Healthy() || r.AttachedTo() != n1.ID {
		t.Errorf("record %+v", r)
	}
	n1.Detach(rec.ID)
}

// What a killed attach leaves must be completed or undone by the next start.
func TestADaemonKilledInTheMiddleOfAttachingRecovers(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{Storage: 2})
	n1, n2 := c.Nodes[0], c.Nodes[1]
	rec := c.CreateVolume("v", 64*mib, c.Nodes...)
	for i := range 6 {
		attached := make(chan struct{})
		client := n1.Client()
		go func() {
			defer close(attached)
			_, _ = client.Attach(t.Context(), &holdfastv1.AttachRequest{VolumeId: string(rec.ID)})
		}()
		<-time.After(time.Duration(i*6) * time.Millisecond) // anywhere between nothing and all of it
		n1.Kill()
		<-attached
		n1.Start()
		r := c.Record(rec.ID)
		if r.AttachedTo() == n1.ID {
			c.Eventually("what was granted is attached", func() bool { _, ok := n1.Agent().Attached(rec.ID); return ok })
		}
		n1.Detach(rec.ID)
		c.Eventually("the volume can be used elsewhere, and is whole", func() bool {
			if _, err := n2.Client().Attach(t.Context(), &holdfastv1.AttachRequest{VolumeId: string(rec.ID)}); err != nil {
				return false
			}
			r := c.Record(rec.ID)
			return r.Healthy()
		})
		n2.Detach(rec.ID)
		if left, err := os.ReadDir(filepath.Join(n1.Config.RunDir, "devices")); err != nil || len(left) != 1 { // the owner's mark
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

func TestManyVolumesMoveAtOnce(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	var recs []holdfast.Record
	for i := range 9 {
		recs = append(recs, c.CreateVolume(fmt.Sprintf("v%d", i), 16*mib, c.Nodes...))
	}
	t.Run("all", func(t *testing.T) { // ends when they all have
		for i, rec := range recs {
			t.Run(rec.Name, func(t *testing.T) {
				t.Parallel()
				file, want := pattern(t, 2*mib)
				for round := range 3 {
					client := c.Nodes[(i+round)%3].Client()
					r, err := client.Attach(t.Context(), &holdfastv1.AttachRequest{VolumeId: rec.Name})
					if err != nil {
						t.Fatal(err)
					}
					if round == 0 {
						write(t, file, r.GetDevicePath(), 3)
					} else if sum(t, r.GetDevicePath(), 3, 2) != want {
						t.Errorf("round %d: read back differs", round)
					}
					if _, err := client.Detach(t.Context(), &holdfastv1.DetachRequest{VolumeId: string(rec.ID)}); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	})
	for _, rec := range recs {
		if r := c.Record(rec.ID); !r.Healthy() || r.Primary != nil {
			t.Errorf("volume %s: %+v", rec.Name, r)
		}
	}
}
