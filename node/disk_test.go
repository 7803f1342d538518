package node_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/testcluster"
)

// shutDown makes the filesystem of a node's pool fail, as a dying disk does:
// everything that is not in memory already is refused with an I/O error.
func shutDown(t *testing.T, n *testcluster.Node) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 2 && f[2] == "xfs" && strings.HasPrefix(f[1], filepath.Join(n.Dir, "run", "pools")) {
			sh(t, "xfs_io", "-x", "-c", "shutdown", f[1])
			return
		}
	}
	t.Fatalf("no pool of node %s is mounted", n.ID)
}

func TestAPoolWhoseDiskFailsIsOpenedAnew(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	n1, n3 := c.Nodes[0], c.Nodes[2]
	rec := c.CreateVolume("db", 256*mib, c.Nodes...)
	idle := c.CreateVolume("idle", 64*mib, c.Nodes...)
	dev := n1.Attach(rec.ID)
	shutDown(t, n3)
	file, want := pattern(t, 8*mib)
	write(t, file, dev, 0)
	if r := c.Record(rec.ID); r.On("n3").State == holdfast.InSync {
		t.Error("the replica is in sync after its disk failed")
	}
	c.Eventually("it is repaired, and the one that nobody used is there", func() bool {
		return allInSync(c, rec.ID)() && n3.Volume(idle.ID).GetReplica().GetFailure() == "" && n3.Volume(idle.ID).GetReplica().GetPoolId() != ""
	})
	c.Eventually("the registration has no failure any more", func() bool {
		p := n3.Agent().Node().Pools
		return len(p) == 1 && p[0].State == holdfast.PoolOnline && len(p[0].Failed) == 0 && p[0].Message == ""
	})
	n1.Detach(rec.ID)
	n1.Kill()
	c.Nodes[1].Kill()
	if sum(t, n3.Attach(rec.ID), 0, 8) != want {
		t.Error("the repaired replica differs")
	}
}
