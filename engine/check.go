package engine

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

// Check verifies what the pool holds: its identity, and of every replica the
// sealed files, sizes, checksums, intents, tail, change maps and extents, and
// that the space adds up; it also names what belongs to nobody. It changes
// nothing. Replicas that are open stand still while each is checked. progress,
// which may be nil, is told how many of how many replicas are done. The error is
// not nil only when the check itself could not be done.
func (p *Pool) Check(ctx context.Context, progress func(done, total int64)) ([]Problem, error) {
	p.admin.Lock()
	defer p.admin.Unlock()
	if err := p.usable(ctx); err != nil {
		return nil, err
	}
	c := &checker{p: p}
	if id, err := readIdentity(p.fs); err != nil {
		c.found(identityFile, err)
	} else if id != p.id {
		c.foundf(identityFile, "it names pool %s of cluster %s, not what it did when it was opened", id.Pool, id.Cluster)
	}
	replicas, err := c.list()
	if err != nil {
		return nil, holdfast.Wrap("check pool", err)
	}
	for i, rep := range replicas {
		if err := ctx.Err(); err != nil {
			return nil, holdfast.WrapKind("check pool", holdfast.Unavailable, err)
		}
		c.replica(rep)
		if progress != nil {
			progress(int64(i+1), int64(len(replicas)))
		}
	}
	c.rep = ""
	u, err := p.fs.Usage()
	if err != nil {
		return nil, holdfast.Wrap("check pool", err)
	}
	if used := u.TotalBytes - u.FreeBytes; c.allocated > used {
		c.foundf(".", "the replicas' files have %d bytes allocated, but only %d are in use", c.allocated, used)
	}
	return c.problems, nil
}

type checker struct {
	p         *Pool
	rep       holdfast.ReplicaID
	allocated int64
	problems  []Problem
}

func (c *checker) foundf(name, format string, a ...any) {
	c.problems = append(c.problems, Problem{Replica: c.rep, Path: name, Message: fmt.Sprintf(format, a...)})
}

func (c *checker) found(name string, err error) {
	if err != nil {
		c.foundf(name, "%v", err)
	}
}

// list gives the replicas, and names what should not be beside them.
func (c *checker) list() ([]holdfast.ReplicaID, error) {
	top, err := c.p.fs.List(".")
	if err != nil {
		return nil, err
	}
	known := map[string]bool{identityFile: true, lockFile: true, mountedFile: true, replicasDir: true, "lost+found": true}
	for _, e := range top {
		if !known[e.Name] && !disk.IsTemporary(e.Name) {
			c.foundf(e.Name, "it belongs to nobody")
		}
	}
	entries, err := c.p.fs.List(replicasDir)
	if err != nil {
		return nil, err
	}
	var ids []holdfast.ReplicaID
	for _, e := range entries {
		switch {
		case e.Dir && safeName(e.Name):
			ids = append(ids, holdfast.ReplicaID(e.Name))
		case strings.HasPrefix(e.Name, newPrefix), strings.HasPrefix(e.Name, gonePrefix):
			// left by a call that failed; gone when the pool is opened next
		default:
			c.foundf(path.Join(replicasDir, e.Name), "it belongs to nobody")
		}
	}
	return ids, nil
}

// replica checks one replica; an open one stands still meanwhile.
func (c *checker) replica(rep holdfast.ReplicaID) {
	c.rep = rep
	if r := c.p.opened(rep); r != nil {
		r.durable.Lock()
		defer r.durable.Unlock()
		r.mu.Lock()
		defer r.mu.Unlock()
		if err := r.Err(); err != nil {
			c.foundf(r.dir, "it has failed: %v", err)
			return
		}
	}
	dir := replicaPath(rep)
	m := c.sealed(dir)
	c.names(dir, m)
	size, ok := c.data(dir)
	if !ok {
		return
	}
	for _, x := range m.Suspects {
		if x.Offset < 0 || x.Length <= 0 || x.Offset > size || x.Length > size-x.Offset {
			c.foundf(path.Join(dir, metaFile), "a suspect region is beyond the data: %d bytes at %d", x.Length, x.Offset)
		}
	}
	c.file(dir, intentFile, func(f disk.File, name string) error { return c.intent(f, name, size) })
	c.file(dir, tailFile, func(f disk.File, name string) error { return c.tail(f, 0, size) })
	c.memory(m, size)
	c.changes(path.Join(dir, changesDir), m.MapSince, size)
	c.snapshots(dir, m, size)
	c.origin(dir, m, size)
}

func (c *checker) names(dir string, m meta) {
	entries, err := c.p.fs.List(dir)
	c.found(dir, err)
	known := map[string]bool{metaFile: true, dataFile: true, recordFile: true, promiseFile: true, intentFile: true,
		tailFile: true, changesDir: true, snapshotsDir: true, ownedFile: m.Origin != nil}
	for _, e := range entries {
		if !known[e.Name] && !disk.IsTemporary(e.Name) {
			c.foundf(path.Join(dir, e.Name), "it belongs to nobody")
		}
	}
}

// sealed checks meta, promise and record, also against each other.
func (c *checker) sealed(dir string) meta {
	var m meta
	var promise Promise
	var record holdfast.Record
	err := readSealed(c.p.fs, path.Join(dir, metaFile), "replica", &m)
	c.found(path.Join(dir, metaFile), err)
	if err == nil && m.Replica != c.rep {
		c.foundf(path.Join(dir, metaFile), "it is of replica %q", m.Replica)
	}
	c.found(path.Join(dir, promiseFile), readSealed(c.p.fs, path.Join(dir, promiseFile), "promise", &promise))
	if promise.Grant > promise.Epoch {
		c.foundf(path.Join(dir, promiseFile), "its grant %d is later than its epoch %d", promise.Grant, promise.Epoch)
	}
	name := path.Join(dir, recordFile)
	switch err := readSealed(c.p.fs, name, "record", &record); {
	case errors.Is(err, holdfast.NotFound):
	case err != nil:
		c.found(name, err)
	case record.ID != m.Volume:
		c.foundf(name, "it is of volume %q, the replica of %q", record.ID, m.Volume)
	default:
		c.found(name, record.Validate())
	}
	return m
}

func (c *checker) file(dir, base string, check func(f disk.File, name string) error) {
	name := path.Join(dir, base)
	f, err := c.p.fs.Open(name, 0)
	if err != nil {
		c.found(name, err)
		return
	}
	c.found(name, check(f, name))
	if info, err := f.Stat(); err != nil {
		c.found(name, err)
	} else {
		c.allocated += info.AllocatedBytes
	}
	c.found(name, f.Close())
}

// data checks the data's size and extents, and gives the size.
func (c *checker) data(dir string) (size int64, ok bool) {
	c.file(dir, dataFile, func(f disk.File, name string) error {
		info, err := f.Stat()
		if err != nil {
			return err
		}
		size = info.SizeBytes
		ok = size > 0 && size%blockSize == 0
		if !ok {
			c.foundf(name, "its size of %d bytes is no multiple of %d", size, blockSize)
			return nil
		}
		xs, err := f.Extents(0, size)
		sum := int64(0)
		for _, x := range xs {
			sum += x.Length
		}
		if sum > info.AllocatedBytes {
			c.foundf(name, "%d bytes of data in %d allocated bytes", sum, info.AllocatedBytes)
		}
		return errors.Join(err, c.uncount(f, size))
	})
	return size, ok
}

func (c *checker) intent(f disk.File, name string, size int64) error {
	instance, words, damaged, err := readIntents(f, size)
	if err != nil {
		return err
	}
	if damaged > 0 {
		c.foundf(name, "%d of its pages are damaged; all their regions count as changed", damaged)
	}
	if r := c.p.opened(c.rep); r != nil && damaged == 0 && instance != c.p.instance {
		c.foundf(name, "it is of instance %q although the replica is open", instance)
	}
	regions := (size + regionSize - 1) / regionSize
	for i, w := range words {
		for b := int64(0); w != 0 && damaged == 0; b, w = b+1, w>>1 {
			if w&1 != 0 && int64(i)*64+b >= regions {
				c.foundf(name, "region %d is beyond the data", int64(i)*64+b)
				return nil
			}
		}
	}
	return nil
}

// tail checks a tail that is at off in a file.
func (c *checker) tail(f disk.File, off, size int64) error {
	mem := make([]byte, tailSize)
	if _, err := f.ReadAt(mem, off); err != nil {
		return err
	}
	_, _, err := decodeTail(mem, size)
	return err
}

// memory checks what the replica has in memory, if it is there: where it is not,
// the next opening treats that as a loss of power.
func (c *checker) memory(m meta, size int64) {
	y := memory{fs: c.p.memory, dir: string(c.rep), id: m.Memory}
	name := path.Join(y.dir, tailFile)
	if m.Memory == "" {
		return
	}
	f, err := y.fs.Open(name, 0)
	if errors.Is(err, holdfast.NotFound) {
		return
	}
	if err == nil {
		err = errors.Join(c.memoryTail(f, y, size), f.Close())
	}
	c.found("memory/"+name, err)
}

func (c *checker) memoryTail(f disk.File, y memory, size int64) error {
	head := make([]byte, memoryHeader)
	if err := readPage(f, head, 0); err != nil {
		return err
	}
	if err := decodeMemoryHeader(head, y.id, tailFile); err != nil {
		return nil // of an opening that did not come to its end: it does not count
	}
	return c.tail(f, memoryHeader, size)
}

// changes checks every change map's name, header and length.
func (c *checker) changes(dir string, since holdfast.Epoch, size int64) {
	entries, err := c.p.fs.List(dir)
	c.found(dir, err)
	for _, e := range entries {
		if disk.IsTemporary(e.Name) {
			continue
		}
		epoch, ok := parseMapName(e.Name)
		switch {
		case !ok:
			c.foundf(path.Join(dir, e.Name), "it belongs to nobody")
		case epoch < since:
			// given up by Settle; removed when the replica is opened next
		default:
			c.file(dir, e.Name, func(f disk.File, name string) error { return c.changeMap(f, name, epoch, size) })
		}
	}
}

func (c *checker) changeMap(f disk.File, name string, epoch holdfast.Epoch, size int64) error {
	b := buf.Get(256 << 10)
	defer b.Release()
	head := b.B[:mapHeader]
	if err := readPage(f, head, 0); err != nil {
		return err
	}
	if err := decodeMapHeader(head, epoch); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// Bits beyond the data can only be where the last blocks' bits are, or after.
	from := size / blockSize / 8 / disk.PageSize * disk.PageSize
	for off := int64(mapHeader) + from; off < info.SizeBytes; off += int64(len(b.B)) {
		p := b.B[:min(int64(len(b.B)), info.SizeBytes-off)]
		if err := readPage(f, p, off); err != nil {
			return err
		}
		if n := strayBits(p, size-(off-mapHeader)*8*blockSize); n > 0 {
			c.foundf(name, "%d of its bits are beyond the data", n)
			return nil
		}
	}
	return nil
}
