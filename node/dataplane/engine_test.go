package dataplane

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// onEngine makes the cluster's replicas engine replicas, each in a pool of its
// own in a directory. A pool is closed and opened again with its node's plane.
func (c *cluster) onEngine() *cluster {
	t := c.t
	pools := map[holdfast.ReplicaID]*engine.Pool{}
	dirs := map[holdfast.ReplicaID]string{}
	c.back = func(n *node, rep holdfast.ReplicaID) backing {
		if p := pools[rep]; p != nil {
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
			delete(pools, rep)
		}
		fresh := dirs[rep] == ""
		if fresh {
			dirs[rep] = filepath.Join(c.dir, string(rep))
			if err := os.Mkdir(dirs[rep], 0o700); err != nil {
				t.Fatal(err)
			}
		}
		p := openPool(t, dirs[rep], n.id, fresh, c.wrap)
		pools[rep] = p
		if fresh {
			if err := p.Create(context.Background(), c.vol, rep, c.size); err != nil {
				t.Fatal(err)
			}
		}
		r, err := p.Open(rep)
		if err != nil {
			t.Fatal(err)
		}
		return engineBacking{r}
	}
	c.atEnd = func() {
		for _, p := range pools {
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		}
		for rep, dir := range dirs {
			checkPool(t, dir, rep)
		}
	}
	return c
}

func openPool(t testing.TB, dir string, id holdfast.NodeID, format bool, wrap func(holdfast.NodeID, disk.FS) disk.FS) *engine.Pool {
	t.Helper()
	d, err := disk.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	fs := disk.FS(d)
	if wrap != nil {
		fs = wrap(id, fs)
	}
	if format {
		if _, err := engine.FormatFS(fs, engine.Identity{Cluster: testCluster, Node: id, Pool: holdfast.NewPoolID()}); err != nil {
			t.Fatal(err)
		}
	}
	p, err := engine.OpenFS(engine.FSOptions{FS: fs, Cluster: testCluster, BootID: "boot-1", Device: dir})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// checkPool lets the engine's own checker look at what a test left behind.
func checkPool(t testing.TB, dir string, rep holdfast.ReplicaID) {
	t.Helper()
	p := openPool(t, dir, "checker", false, nil)
	problems, err := p.Check(context.Background(), nil)
	if err != nil {
		t.Error(err)
	}
	for _, x := range problems {
		t.Errorf("pool of replica %s: %s", rep, x)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
