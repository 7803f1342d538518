package engine

import (
	"path"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// uncount takes back the blocks that other files may have, too: only what a file
// has alone adds up over all files.
func (c *checker) uncount(f disk.File, size int64) error {
	const window = int64(4 << 30)
	for at := int64(0); at < size; at += window {
		ps, err := f.Mapped(at, min(window, size-at))
		if err != nil {
			return err
		}
		for _, p := range ps {
			if p.Shared {
				c.allocated -= p.Length
			}
		}
	}
	return nil
}

// snapshots checks what meta says of snapshots against each other and the files.
func (c *checker) snapshots(dir string, m meta, size int64) {
	sub := path.Join(dir, snapshotsDir)
	entries, err := c.p.fs.List(sub)
	c.found(sub, err)
	for _, e := range entries {
		// A file with a number that meta does not name is left by a call that
		// failed; gone when the replica is opened next.
		if _, ok := parseSnapshotFile(e.Name); !ok && e.Name != heldFile && !disk.IsTemporary(e.Name) {
			c.foundf(path.Join(sub, e.Name), "it belongs to nobody")
		}
	}
	ids, files := map[holdfast.SnapshotID]bool{}, map[uint64]bool{}
	last := int64(0)
	for _, s := range m.Snapshots {
		name := path.Join(dir, metaFile)
		switch {
		case !safeName(string(s.ID)) || s.Cut == "" || s.SizeBytes <= 0 || s.SizeBytes%blockSize != 0:
			c.foundf(name, "snapshot %q of cut %q with %d bytes is not possible", s.ID, s.Cut, s.SizeBytes)
			continue
		case ids[s.ID] && !s.Dropping:
			c.foundf(name, "it has two snapshots %s", s.ID)
		case files[s.File] || s.File >= m.NextFile:
			c.foundf(name, "snapshot %s has the file number %d, which is another's, or was never given", s.ID, s.File)
		case s.SizeBytes < last || s.SizeBytes > size:
			c.foundf(name, "snapshot %s has %d bytes; an older one has %d, the data %d", s.ID, s.SizeBytes, last, size)
		}
		ids[s.ID], files[s.File], last = ids[s.ID] || !s.Dropping, true, s.SizeBytes
		c.file(sub, snapshotFileName(s.File), func(f disk.File, name string) error { return c.snapshot(f, name, m, s) })
	}
}

// snapshot checks a snapshot's file: its size, and that it has the granules that
// are relied upon to be in it.
func (c *checker) snapshot(f disk.File, name string, m meta, sm snapshotMeta) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	want := snapshotFileSize(sm.SizeBytes)
	if info.SizeBytes < want {
		c.foundf(name, "it has %d bytes; a snapshot of %d bytes needs %d", info.SizeBytes, sm.SizeBytes, want)
		return nil
	}
	held, _, err := (&snapshot{meta: sm, f: f}).scanHeld()
	if err != nil {
		return err
	}
	if err := c.uncount(f, want); err != nil {
		return err
	}
	relied := loadHeld(c.p.fs, path.Join(path.Dir(name), heldFile), &m)[sm.File]
	if r := c.p.opened(c.rep); r != nil {
		for _, s := range r.chain.snaps {
			if s.meta.File == sm.File {
				relied = s.held
			}
		}
	}
	missing := 0
	if relied != nil {
		relied.each(0, func(g int64) bool {
			if !held.has(g) {
				missing++
			}
			return true
		})
	}
	if missing > 0 {
		c.foundf(name, "%d granules that it should hold are missing: the snapshot, and older ones, are damaged", missing)
	}
	return nil
}

// origin checks that what a clone rests upon is there.
func (c *checker) origin(dir string, m meta, size int64) {
	o := m.Origin
	if o == nil {
		return
	}
	name := path.Join(dir, metaFile)
	if o.SizeBytes <= 0 || o.SizeBytes > size || o.Done < 0 || o.Done > granulesOf(o.SizeBytes) {
		c.foundf(name, "its origin of %d bytes, %d granules done, is not possible: the data has %d bytes", o.SizeBytes, o.Done, size)
		return
	}
	var om meta
	if err := readSealed(c.p.fs, path.Join(replicaPath(o.Replica), metaFile), "replica", &om); err != nil {
		c.foundf(name, "its origin %s cannot be read: %v", o.Replica, err)
		return
	}
	there := false
	for _, s := range om.Snapshots {
		there = there || s.ID == o.Snapshot && s.Cut == o.Cut && s.SizeBytes == o.SizeBytes && !s.Dropping
	}
	if !there {
		c.foundf(name, "its origin %s has no snapshot %s of cut %s with %d bytes", o.Replica, o.Snapshot, o.Cut, o.SizeBytes)
	}
	c.file(dir, ownedFile, func(f disk.File, name string) error {
		info, err := f.Stat()
		if want := granulesOf(o.SizeBytes) * blockSize; err == nil && info.SizeBytes != want {
			c.foundf(name, "it has %d bytes, must have %d", info.SizeBytes, want)
		}
		return err
	})
}
