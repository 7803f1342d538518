package sim

import (
	"fmt"
	"slices"
	"strings"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// Coverage counts what of the protocol runs have reached, by name: "group: state".
type Coverage map[string]int

func (c Coverage) add(o Coverage) {
	for k, n := range o {
		c[k] += n
	}
}

// Never lists the states that were not reached.
func (c Coverage) Never() []string {
	var never []string
	for _, s := range States() {
		if c[s] == 0 {
			never = append(never, s)
		}
	}
	return never
}

// messages are the requests of the protocol, with the statuses besides OK, Fenced
// and Failed that can answer them.
func messages() map[replication.MsgType]string {
	return map[replication.MsgType]string{
		replication.MsgHello: "hello", replication.MsgEpoch: "epoch", replication.MsgPing: "ping", replication.MsgWrite: "write",
		replication.MsgTrim: "trim", replication.MsgFlush: "flush", replication.MsgRead: "read", replication.MsgChanged: "changed",
		replication.MsgAllocated: "allocated", replication.MsgHash: "hash", replication.MsgMark: "mark", replication.MsgGrow: "grow",
		replication.MsgSettle: "settle", replication.MsgRecord: "record", replication.MsgQuiet: "quiet", replication.MsgRoom: "room",
	}
}

var statuses = [...]string{replication.StatusOK: "ok", replication.StatusFenced: "fenced", replication.StatusNoSpace: "no space", replication.StatusFailed: "failed",
	replication.StatusInvalid: "invalid", replication.StatusUnknown: "unknown", replication.StatusNoMap: "no map", replication.StatusRolledBack: "rolled back"}

// States lists everything that coverage counts.
func States() []string {
	var all []string
	group := func(name string, states ...string) {
		for _, s := range states {
			all = append(all, name+": "+s)
		}
	}
	group("primary", "connecting", "reconciling", "serving", "releasing", "ended", "connecting>reconciling", "connecting>serving", "reconciling>serving", "reconciling>connecting",
		"serving>releasing", "connecting>releasing", "connecting>ended", "reconciling>ended", "serving>ended", "releasing>ended")
	group("end", "released", "fenced", "corrupt", "refused after a rollback")
	group("replica", "in-sync>stale", "stale>rebuilding", "new>rebuilding", "rebuilding>in-sync", "rebuilding>stale", "none>new", "new>none", "stale>none", "rebuilding>none", "leaving")
	group("membership", "granted", "granted by force", "granted again to the same node", "granted though another one is named", "released or cleared", "one dropped", "several dropped", "one in sync again", "several in sync again",
		"dropped and in sync at once", "grown")
	group("promise", "first", "newer grant", "newer epoch of the same grant", "the same again", "record only")
	group("session", "first", "under another grant", "again under the same grant", "its connection ended")
	group("repair", replication.RepairStages()...)
	for _, w := range waits() {
		all = append(all, "wait: "+w)
	}
	group("scrub", "running", "healing", "waiting", "done", "cancelled")
	for m, name := range messages() {
		group("answer", name+" ok")
		if m != replication.MsgQuiet && m != replication.MsgSettle {
			group("answer", name+" fenced")
		}
	}
	group("answer", "hello failed", "hello rolled back", "write failed", "trim failed", "flush failed", "read failed", "changed failed", "allocated failed", "hash failed", "epoch failed",
		"write no space", "changed no map")
	group("swap", "done", "changed meanwhile", "outcome unknown, done", "outcome unknown, late", "outcome unknown, not done")
	for _, s := range groups()["scenes"] {
		group("scene", s+" begun", s+" complete")
	}
	for _, k := range Faults() {
		all = append(all, "fault: "+k)
	}
	slices.Sort(all)
	return all
}

// waits are the reasons for which I/O waits, as they begin.
func waits() []string {
	return []string{"the in-sync replicas to answer", "the replicas to be made equal", "the metadata store, to change the membership", "the membership to change",
		"2 replicas to be in sync", "space in the pool", "a replica to answer"}
}

// hit counts one state.
func (c *cluster) hit(group, state string) { c.covered[group+": "+state]++ }

// begun and complete count how often a scene was begun, and how often it came to its
// last fault: one that never does shows nothing.
func (c *cluster) begun(scene string)    { c.hit("scene", scene+" begun") }
func (c *cluster) complete(scene string) { c.hit("scene", scene+" complete") }

// answer counts an answer.
func (c *cluster) answer(m *replication.Message) { c.answers[m.Type][m.Status]++ }

// coverage is all that was counted.
func (c *cluster) coverage() Coverage {
	all := Coverage{}
	all.add(c.covered)
	for m, name := range messages() {
		for st, n := range c.answers[m] {
			if n > 0 {
				all["answer: "+name+" "+statuses[st]] += n
			}
		}
	}
	for k, n := range c.faults {
		all["fault: "+k] += n
	}
	return all
}

// waited notes what I/O waits for, and how a scrub is.
func (d *device) waited() {
	st := d.p.Status()
	if st.WaitingFor != d.wait {
		d.wait = st.WaitingFor
		for _, w := range waits() {
			if strings.HasPrefix(d.wait, w) {
				d.c.hit("wait", w)
			}
		}
	}
	if st.Scrub.State != d.scrub {
		d.scrub = st.Scrub.State
		d.c.hit("scrub", string(d.scrub))
	}
}

// welcomed notes the beginning of a session on a replica.
func (c *cluster) welcomed(h *host, grant holdfast.Epoch) {
	switch h.sessionGrant {
	case 0:
		c.hit("session", "first")
	case grant:
		c.hit("session", "again under the same grant")
	default:
		c.hit("session", "under another grant")
	}
	h.sessionGrant = grant
}

// look notes where a primary is, and whence it came.
func (d *device) look() {
	phase := d.p.Phase()
	if phase != d.phase {
		d.c.hit("primary", phase)
		if d.phase != "" {
			d.c.hit("primary", d.phase+">"+phase)
		}
		d.phase = phase
	}
	d.p.EachRepair(func(id holdfast.ReplicaID, stage string) {
		if d.stages[id] != stage {
			d.stages[id] = stage
			d.c.hit("repair", stage)
			if stage == "copying" {
				d.c.resync(d, id)
			}
		}
	})
}

// ended notes how a primary ended.
func (c *cluster) ended(err error) {
	c.lastEnd = err
	switch holdfast.KindOf(err) {
	case holdfast.Fenced:
		c.hit("end", "fenced")
	case holdfast.Corrupt:
		c.hit("end", "corrupt")
	default:
		c.hit("end", "released")
	}
}

// recorded notes what a swap has changed.
func (c *cluster) recorded(old, next holdfast.Record) {
	c.hit("swap", "done")
	dropped, back := 0, 0
	for _, x := range next.Replicas {
		was := old.Replica(x.ID)
		switch {
		case was == nil:
			c.hit("replica", fmt.Sprintf("none>%s", x.State))
			continue
		case was.State != x.State:
			c.hit("replica", fmt.Sprintf("%s>%s", was.State, x.State))
		}
		if x.Leaving && !was.Leaving {
			c.hit("replica", "leaving")
		}
		if was.State == holdfast.InSync && x.State != holdfast.InSync {
			dropped++
		} else if was.State != holdfast.InSync && x.State == holdfast.InSync {
			back++
		}
	}
	for _, x := range old.Replicas {
		if next.Replica(x.ID) == nil {
			c.hit("replica", fmt.Sprintf("%s>none", x.State))
		}
	}
	c.membership(old, next, dropped, back)
}

func (c *cluster) membership(old, next holdfast.Record, dropped, back int) {
	many := func(n int, one, several string) {
		switch {
		case n == 1:
			c.hit("membership", one)
		case n > 1:
			c.hit("membership", several)
		}
	}
	many(dropped, "one dropped", "several dropped")
	many(back, "one in sync again", "several in sync again")
	if dropped > 0 && back > 0 {
		c.hit("membership", "dropped and in sync at once")
	}
	if next.SizeBytes > old.SizeBytes {
		c.hit("membership", "grown")
	}
	switch {
	case next.Primary == nil && old.Primary != nil:
		c.hit("membership", "released or cleared")
	case next.Primary == nil || old.Primary != nil && old.Primary.Grant == next.Primary.Grant:
	case old.Primary == nil:
		c.hit("membership", "granted")
	case old.Primary.Node == next.Primary.Node:
		c.hit("membership", "granted again to the same node")
	case c.meta.alive(old.Primary.Node):
		c.hit("membership", "granted by force")
	default:
		c.hit("membership", "granted though another one is named")
	}
}

// promised notes what a replica makes durable; newer: with a newer record.
func (c *cluster) promised(old, next replication.Promise, newer bool) {
	switch {
	case old.Epoch == 0:
		c.hit("promise", "first")
	case next.Grant != old.Grant:
		c.hit("promise", "newer grant")
	case next.Epoch > old.Epoch:
		c.hit("promise", "newer epoch of the same grant")
	case newer:
		c.hit("promise", "record only")
	default:
		c.hit("promise", "the same again")
	}
}
