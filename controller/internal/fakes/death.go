package fakes

import (
	"fmt"
	"sync"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/memory"
)

// Death ends a controller at its n-th step, a call to the store or to a node.
type Death struct {
	At    int
	After bool // that call is carried out, but its answer is lost
	Once  bool // only that call fails: the controller lives on

	mu   sync.Mutex
	step int
}

func (d *Death) strike() (fails, carriedOut bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.step++
	switch {
	case d.step == d.At:
		return true, d.After
	case d.step > d.At && !d.Once:
		return true, false
	}
	return false, false
}

// Struck says whether that step was reached.
func (d *Death) Struck() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.step >= d.At
}

// On puts the faults on a store client and on the cluster's nodes.
func (d *Death) On(c *Cluster, store *memory.Store) {
	store.Inject(func(op memory.Op) memory.Fault {
		switch fails, done := d.strike(); {
		case fails && done:
			return memory.Fault{Lose: memory.Lost()}
		case fails:
			return memory.Fault{Refuse: memory.Lost()}
		}
		return memory.Fault{}
	})
	var mu sync.Mutex
	lost := map[string]bool{}
	c.SetFault(func(n holdfast.NodeID, method string, after bool) error {
		key := fmt.Sprint(n, method)
		mu.Lock()
		defer mu.Unlock()
		if after {
			if lost[key] {
				delete(lost, key)
				return memory.Lost()
			}
			return nil
		}
		fails, done := d.strike()
		if fails && done {
			lost[key] = true
			return nil
		}
		if fails {
			return memory.Lost()
		}
		return nil
	})
}
