package sim

import (
	"time"

	"github.com/holdfast-storage/holdfast/replication"
)

// askAll lets a primary's node ask all nodes that live what replicas of the volume
// they have. It implements replication.Outsiders.
type askAll struct {
	h *host
	p *replication.Primary
}

// Ask asks. Who is cut off does not answer, which the asker finds out after a second.
func (a *askAll) Ask() {
	h, w := a.h, a.h.c.w
	life, open, told := h.life, 0, false
	var heard []replication.Outsider
	tell := func() {
		if !told {
			told = true
			h.run(life, func() {
				if h.primary == a.p {
					a.p.OnOutsiders(heard)
				}
			})
		}
	}
	for _, o := range h.c.meta.hosts {
		if o != h && !h.c.meta.alive(o.id) {
			continue
		}
		open++
		w.after(w.between(50*time.Microsecond, time.Millisecond), func() {
			if h.cut(o) {
				return
			}
			o.run(o.life, func() {
				x := replication.Outsider{Node: o.id}
				if o.disk != nil && o.replica != nil {
					x.Record, x.Promise = o.disk.record.Clone(), o.disk.promise.Epoch
				}
				w.after(w.between(50*time.Microsecond, time.Millisecond), func() {
					if o.cut(h) {
						return
					}
					heard = append(heard, x)
					if open--; open == 0 {
						tell()
					}
				})
			})
		})
	}
	w.after(time.Second, tell)
}
