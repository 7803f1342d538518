package sim

import (
	"fmt"
)

// check verifies the history cell by cell.
func (c *cluster) check() error {
	cells := c.meta.rec.SizeBytes / cellSize
	per, err := c.cellHistories(cells)
	if err != nil {
		return err
	}
	for b, steps := range per {
		if len(steps) == 0 {
			continue
		}
		if err := checkRegister(steps); err != nil {
			return violation{notLinearizable, fmt.Sprintf("cell %d is not a linearizable register: %v", b, err)}
		}
	}
	return nil
}

// cellHistories sorts the history by cell. What was never answered may have
// happened until the next primary served, or not at all. Where all requests are
// made of whole blocks, the cells of a block must be alike, and only the first is
// looked at.
func (c *cluster) cellHistories(cells int64) ([][]*step, error) {
	per := make([][]*step, cells)
	stride := int64(1)
	if !c.unaligned() {
		stride = blockCells
	}
	for _, o := range c.history {
		if o.open && o.kind == opRead || o.kind == opFlush || o.kind == opLoss {
			continue
		}
		if err := o.torn(stride); err != nil {
			return nil, err
		}
		for b := o.first; b < min(o.first+o.cells, cells); b += stride {
			s := &step{kind: o.kind, call: o.call, ret: o.ret, maybe: o.open, fua: o.fua}
			switch o.kind {
			case opRead:
				s.value = o.got[b-o.first]
			case opWrite:
				s.value = o.value + value(b-o.first)
				if o.vals != nil {
					s.value = o.vals[b-o.first]
				}
			}
			if o.open && o.ret == 0 {
				s.ret = openEnd
			}
			per[b] = append(per[b], s)
		}
	}
	for _, o := range c.history {
		if o.kind != opLoss && (o.kind != opFlush || o.open) {
			continue
		}
		for b, steps := range per {
			if len(steps) > 0 {
				per[b] = append(steps, &step{kind: o.kind, call: o.call, ret: o.ret})
			}
		}
	}
	return per, nil
}

// unaligned says whether a request began or ended within a block.
func (c *cluster) unaligned() bool {
	for _, o := range c.history {
		if o.first%blockCells != 0 || o.cells%blockCells != 0 {
			return true
		}
	}
	return false
}

// torn says whether a read shows parts of different writes in one block, although
// all were of whole blocks.
func (o *op) torn(stride int64) error {
	if o.kind != opRead || stride == 1 {
		return nil
	}
	for i := int64(0); i < o.cells; i += stride {
		for j := int64(1); j < stride; j++ {
			if a, b := o.got[i], o.got[i+j]; (a != 0 || b != 0) && b != a+value(j) {
				return violation{notLinearizable, fmt.Sprintf("the read at %.4f shows parts of two writes in cells %d and %d: %d and %d", o.ret.Seconds(), o.first+i, o.first+i+j, a, b)}
			}
		}
	}
	return nil
}

// atRest verifies equality while the volume is served and nothing is under way:
// what differs then may be overwritten before the end.
func (c *cluster) atRest() {
	rec := c.meta.rec
	if len(c.devs) != 1 || rec.Primary == nil || c.damaged {
		return
	}
	d := c.devs[0]
	if d.h.id != rec.Primary.Node || d.h.primary != d.p || len(d.ops) > 0 {
		return
	}
	if st := d.p.Status(); st.State != "serving" || st.InFlight > 0 || st.Epoch != rec.Epoch || st.WaitingFor != "" {
		return
	}
	if err := c.equal(); err != nil {
		panic(err)
	}
}

// equal verifies that the in-sync replicas hold the same. One that lost power,
// and has not been dropped for it yet, does not count.
func (c *cluster) equal() error {
	var first *host
	for _, rep := range c.meta.rec.InSyncReplicas() {
		h := c.host(rep.Node)
		if !h.up || h.replicaID != rep.ID || len(h.disk.suspects) > 0 || len(h.store.tasks) > 0 {
			continue
		}
		if first == nil {
			first = h
			continue
		}
		for b := range c.meta.rec.SizeBytes / cellSize {
			if h.disk.live[b] != first.disk.live[b] {
				return violation{notEqual, fmt.Sprintf("cell %d differs: %d on %s, %d on %s", b, first.disk.live[b], first.id, h.disk.live[b], h.id)}
			}
		}
	}
	return nil
}
