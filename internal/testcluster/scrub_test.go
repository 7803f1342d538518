package testcluster_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/testcluster"
)

// dataFile is where a node keeps a replica's data.
func dataFile(t *testing.T, n *testcluster.Node, id holdfast.ReplicaID) string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(n.Config.RunDir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Name() == "data" && strings.Contains(path, string(id)) {
			found = append(found, path)
		}
		return nil
	})
	if err != nil || len(found) != 1 {
		t.Fatalf("the data of replica %s: %v, %v", id, found, err)
	}
	return found[0]
}

// content is what a data file holds at 1 MiB, read past the page cache.
func content(t *testing.T, file string) []byte {
	t.Helper()
	return []byte(run(t, fmt.Sprintf("dd if=%s bs=1M skip=1 count=2 iflag=direct status=none", file)))
}

// damage flips bytes in a data file behind the daemon's back.
func damage(t *testing.T, file string, at int64) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("rotten"), at)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
}

// scrub asks for one and waits for its outcome.
func scrub(t *testing.T, c *testcluster.Cluster, vol holdfast.VolumeID, id string) holdfast.Scrub {
	t.Helper()
	c.Change(vol, func(r *holdfast.Record) { r.SetScrub(holdfast.Scrub{ID: id, Asked: time.Now().UTC().Round(0)}) })
	var s holdfast.Scrub
	c.Eventually("the scrub has ended", func() bool {
		s = *c.Record(vol).Scrub
		return !s.Pending()
	})
	return s
}

// What a disk has changed by itself is found and healed, while the volume is in
// use and when nobody uses it.
func TestScrubHealsWhatADiskHasChanged(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{Storage: 3})
	rec := c.CreateVolume("db", 64<<20, c.Nodes...)
	dev := c.Nodes[0].Attach(rec.ID)
	data := bytes.Repeat([]byte("holdfast"), 1<<18) // 2 MiB
	src := t.TempDir() + "/data"
	if err := os.WriteFile(src, data, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, fmt.Sprintf("dd if=%s of=%s bs=1M seek=1 oflag=direct conv=fsync,notrunc status=none", src, dev))
	if s := scrub(t, c, rec.ID, "clean"); s.Mismatches != 0 || s.Blocks < 32 {
		t.Fatalf("a sound volume: %+v", s)
	}
	files := make([]string, 3)
	for i, n := range c.Nodes {
		files[i] = dataFile(t, n, rec.Replicas[i].ID)
	}
	sound := func(when string) {
		t.Helper()
		for i, f := range files {
			if !bytes.Equal(content(t, f), data) {
				t.Errorf("%s: replica %d holds other data", when, i)
			}
		}
		if r := c.Record(rec.ID); !r.Healthy() {
			t.Errorf("%s: %+v", when, r.Replicas)
		}
	}
	sound("at first")
	for i, f := range files {
		damage(t, f, 1<<20+300_000*int64(i+1))
		if bytes.Equal(content(t, f), data) {
			t.Fatal("nothing was damaged")
		}
		s := scrub(t, c, rec.ID, fmt.Sprint("attached-", i))
		if s.Mismatches != 1 || s.Healed != 1 || s.Unhealed != 0 {
			t.Fatalf("replica %d, attached: %+v", i, s)
		}
		sound(fmt.Sprint("attached, replica ", i))
	}
	told := false
	for _, e := range c.Nodes[0].Volume(rec.ID).GetEvents() {
		told = told || strings.Contains(e.GetWhat(), "damaged blocks")
	}
	if p := c.Nodes[0].Volume(rec.ID).GetPrimary().GetScrub(); !told || p.GetId() != "attached-2" || p.GetState() != "done" || p.GetHealed() != 1 {
		t.Errorf("events tell it: %v; status %+v", told, p)
	}
	c.Nodes[0].Detach(rec.ID)
	damage(t, files[0], 1<<20+70_000)
	damage(t, files[0], 2<<20+70_000)
	if s := scrub(t, c, rec.ID, "detached"); s.Mismatches != 2 || s.Healed != 2 || s.Unhealed != 0 {
		t.Fatalf("detached: %+v", s)
	}
	sound("detached")
	c.Eventually("the maintenance primary is gone", func() bool { return c.Record(rec.ID).Primary == nil })
}
