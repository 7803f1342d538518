package engine

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// recover reads intents and tail, and puts in safety what they know. After a
// power loss, when the memory of a killed process is not there, or when the tail
// cannot be read, the regions with an intent become suspects, durably, before
// either is forgotten; repeating it after a crash at any point does no harm.
func (r *Replica) recover() error {
	f, err := r.pool.fs.Open(r.file(intentFile), disk.Direct)
	if err != nil {
		return mustBeSound(err)
	}
	size := r.size.Load()
	instance, words, damaged, err := readIntents(f, size)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r.intents = newIntents(f, words)
	if err := r.settleDisk(f); err != nil {
		return err
	}
	lost := instance != r.pool.instance || damaged > 0
	kept, err := r.recall(lost)
	if err != nil {
		return err
	}
	lost = lost || !kept && r.meta.Memory != ""
	var tail []byte
	if !kept && !lost {
		tail, err = r.savedTail(size)
		if lost = tail == nil; err != nil {
			return err
		}
	}
	r.meta.Opens++
	if lost {
		r.meta.Losses++
		r.meta.Suspects = merge(append(slices.Clone(r.meta.Suspects), r.intents.extents(size)...))
		if err := r.writeMeta(r.meta); err != nil {
			return err
		}
	}
	if !kept {
		if err := r.remember(tail); err != nil {
			return err
		}
	}
	if err := r.remark(lost); err != nil {
		return err
	}
	// From here on the memory counts, and it has all that the files have.
	r.meta.Memory = r.memory.id
	if err := r.writeMeta(r.meta); err != nil {
		return err
	}
	r.boot = bootName(r.pool, r.meta.Losses)
	if !lost {
		return nil
	}
	if err := writeIntents(f, r.pool.instance, size); err != nil {
		return err
	}
	r.intents = newIntents(f, make([]uint64, len(words)))
	return nil
}

// bootName is what State shows as Boot.
func bootName(p *Pool, losses uint64) string {
	name := p.bootID + "/" + p.instance
	if losses > 0 {
		name += fmt.Sprintf("/%d", losses)
	}
	return name
}

// recall takes over the memory of a process that did not close the replica; false
// when it did, or when the memory is not there, not whole or not the newest. lost
// says that it would not count.
func (r *Replica) recall(lost bool) (kept bool, err error) {
	r.memory = memory{fs: r.pool.memory, dir: string(r.id), id: r.meta.Memory}
	if lost || r.memory.id == "" {
		return false, nil
	}
	size := r.size.Load()
	if r.tail, err = recallTail(r.memory, size); err == nil {
		r.changes, err = openChanges(r.pool.fs, r.file(changesDir), r.memory, openedMaps{r.meta.MapSince, size, true})
	}
	if err == nil {
		return true, r.tidyMemory()
	}
	gone := errors.Is(err, holdfast.NotFound) || errors.Is(err, holdfast.Corrupt)
	if r.tail != nil {
		err = errors.Join(err, r.tail.close())
	}
	if r.tail, r.changes = nil, nil; gone {
		return false, nil
	}
	return false, err
}

// tidyMemory removes pieces of memory that are nobody's.
func (r *Replica) tidyMemory() error {
	known := map[string]bool{tailFile: true}
	for _, m := range r.changes.all(0) {
		known[mapName(m.epoch)] = true
	}
	entries, err := r.memory.fs.List(r.memory.dir)
	for _, e := range entries {
		if !known[e.Name] {
			err = errors.Join(err, r.memory.remove(e.Name))
		}
	}
	return err
}

// savedTail is the content of the tail's file; nil when it cannot be believed.
func (r *Replica) savedTail(size int64) ([]byte, error) {
	f, err := r.pool.fs.Open(r.file(tailFile), 0)
	if err != nil {
		return nil, mustBeSound(err)
	}
	p := make([]byte, tailSize)
	_, err = f.ReadAt(p, 0)
	if err = errors.Join(err, f.Close()); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if _, _, err := decodeTail(p, size); err != nil {
		return nil, nil
	}
	return p, nil
}

// remember makes a fresh memory, of what the files have; no tail stands for an empty
// one.
func (r *Replica) remember(tail []byte) error {
	y, err := r.memory.fresh()
	if err != nil {
		return err
	}
	r.memory = y
	size := r.size.Load()
	if r.tail, err = newTail(y, tail, size); err != nil {
		return err
	}
	r.changes, err = openChanges(r.pool.fs, r.file(changesDir), y, openedMaps{r.meta.MapSince, size, false})
	return err
}

// settleDisk makes durable what a killed process may have left visible, but not
// durable: intents, names, sizes. What is read from them may be relied upon only
// then.
func (r *Replica) settleDisk(intent disk.File) error {
	fs := r.pool.fs
	return errors.Join(intent.Sync(), r.data.Sync(), fs.SyncDir(r.file(changesDir)), fs.SyncDir(r.file(snapshotsDir)), fs.SyncDir(r.dir))
}

// remark adds to the change maps what they may lack: after a power loss, bits of
// any region with an intent; after a killed process, those of a write whose data
// was written but whose bits were not set. No such write was of a later epoch
// than the one promised, so that this epoch's map serves everybody who asks.
func (r *Replica) remark(lost bool) error {
	xs, all := r.tail.extents()
	if lost || all {
		xs = merge(append(xs, r.intents.extents(r.size.Load())...))
	}
	if len(xs) == 0 {
		return nil
	}
	epoch := max(r.promise.Epoch, r.changes.newest())
	m, err := r.changes.of(epoch)
	if err != nil {
		return err
	}
	return m.mark(xs)
}
