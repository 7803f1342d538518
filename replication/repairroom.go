package replication

import (
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// What a repair reads on one node and writes on another is work for these nodes
// too, and only they know what else they are asked for. So a primary asks a
// replica elsewhere for room before it locks a piece: what waits there is in
// nobody's way. The answer comes when there is some, and a node always comes to
// that: its limits only say in which order and how fast.

// room is what one replica's node has granted a repair.
type room struct {
	bytes int64 // granted and not yet used
	asked bool  // for more
	since time.Duration
}

// roomLong is after which a wait for room is shown.
const roomLong = 500 * time.Millisecond

// hasRoom says whether the nodes of source and target have room for n bytes, and
// asks them early enough that a busy repair does not wait for the answer.
func (p *Primary) hasRoom(r *repair, n int64) bool {
	target := p.roomAt(r, r.t, &r.rooms[0], n)
	source := p.roomAt(r, r.source, &r.rooms[1], n)
	return target && source
}

func (p *Primary) roomAt(r *repair, t *peer, x *room, n int64) bool {
	if t.rep.Node == p.cfg.Self || t.welcome == nil || !t.welcome.Room {
		x.bytes = n // this node's own limits are asked elsewhere
		return true
	}
	ahead := min(max(n, int64(p.cfg.RepairDepth)*p.cfg.RepairChunk), maxRoom)
	if x.bytes < ahead && !x.asked {
		x.asked, x.since = true, p.now()
		m := &Message{Type: MsgRoom, Length: ahead}
		if t == r.t {
			m.Offset = min(max(r.left, 0), holdfast.MaxVolumeBytes) // only its target counts a repair as one
		}
		p.ask(t, m, func(a *Message) {
			x.asked = false
			if r.dead || a == nil {
				return
			}
			x.bytes += ahead
			p.pump(r)
		})
	}
	return x.bytes >= n
}

// useRoom takes a piece's bytes from what was granted.
func (r *repair) useRoom(n int64) {
	for i := range r.rooms {
		r.rooms[i].bytes -= n
	}
}

// roomWait says which node a repair waits for.
func (r *repair) roomWait(now time.Duration) string {
	for i, t := range []*peer{r.t, r.source} {
		x := r.rooms[i]
		if r.pending != nil && x.asked && x.bytes < r.pending.cost() && now-x.since >= roomLong {
			return fmt.Sprintf("node %s to have room: it takes part in other repairs too", t.rep.Node)
		}
	}
	return ""
}

// room answers when this replica's node has room for what a repair is to copy. It
// is answered in the session's epoch, as a ping is (see alive).
func (r *Replica) room(s *session, m *Message) {
	if r.session != s {
		return
	}
	if r.cfg.Room != nil && !r.cfg.Room(m.Length, m.Offset, func() { r.room(s, m) }) {
		return
	}
	r.answer(s, &Message{Type: m.Type, ID: m.ID})
}

// maxRoom bounds what is asked for at once, in bytes.
const maxRoom = 64 << 20

func sensibleRoom(m *Message) bool {
	return m.Length > 0 && m.Length <= maxRoom && m.Offset >= 0 && m.Offset <= holdfast.MaxVolumeBytes
}
