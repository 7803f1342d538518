package engine

import (
	"errors"
	"path"

	"github.com/holdfast-storage/holdfast"
)

// dependence is what a clone rests upon.
type dependence struct {
	origin   holdfast.ReplicaID
	snapshot holdfast.SnapshotID
}

// depends notes that a clone rests upon an origin.
func (p *Pool) depends(clone holdfast.ReplicaID, on dependence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clones[clone] = on
}

// independent notes that it does not any more.
func (p *Pool) independent(clone holdfast.ReplicaID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.clones, clone)
}

// dependent is an error of kind Busy that names a clone which rests upon the
// replica's snapshot, or upon any of its snapshots if none is named.
func (p *Pool) dependent(rep holdfast.ReplicaID, id holdfast.SnapshotID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for clone, d := range p.clones {
		if d.origin == rep && (id == "" || d.snapshot == id) {
			return errorf("check what depends on it", holdfast.Busy,
				"replica %s is a clone that still reads from snapshot %s; it has to become independent, or be removed, first", clone, d.snapshot)
		}
	}
	return nil
}

// acquire gives a replica's chain, which it opens unless it is open; admin is
// held.
func (p *Pool) acquire(id holdfast.ReplicaID) (*chain, error) {
	p.mu.Lock()
	c := p.chains[id]
	if c != nil {
		c.refs++
	}
	p.mu.Unlock()
	if c != nil {
		return c, nil
	}
	var m meta
	if err := readSealed(p.fs, path.Join(replicaPath(id), metaFile), "replica", &m); err != nil {
		return nil, mustBeSound(err)
	}
	c, err := openChain(p, id, &m)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.refs = 1
	p.chains[id] = c
	return c, nil
}

// discharge gives a chain back; the last one closes it.
func (p *Pool) discharge(c *chain) error {
	p.mu.Lock()
	c.refs--
	last := c.refs == 0
	if last && p.chains[c.id] == c {
		delete(p.chains, c.id)
	}
	p.mu.Unlock()
	if !last {
		return nil
	}
	return errors.Join(c.close())
}
