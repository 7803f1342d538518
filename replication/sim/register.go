package sim

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A cell is a register that knows what its users see, and what a power loss may
// bring back: everything written since the last flush. The history of a cell is
// right if each operation has a moment between its call and its answer at which it
// took effect, so that all answers fit. The checker walks through the history once
// and keeps every way in which it may have gone so far; what decides nothing any
// more is forgotten (values that no later answer shows, orders of writes that no
// loss can tell apart). So the effort grows with what is under way at once, not
// with the length of the history: a search that goes back, as for any register,
// took minutes for some histories with many power losses.

// step is one operation on one cell.
type step struct {
	kind      opKind
	value     value // read or written
	fua       bool  // durable when answered
	maybe     bool  // never answered: it may not have happened
	call, ret time.Duration
	slot      int
}

// open is later than anything.
const openEnd = 1000 * time.Hour

// maxSlots is how many operations on one cell may be under way at once, maxWays
// how many ways a history may have gone: more is not judged.
const (
	maxSlots = 64
	maxWays  = 1 << 14
)

// way is one way in which the history may have gone so far.
type way struct {
	done uint64  // operations under way that took effect
	last value   // what reads see
	back []value // sorted: what a power loss may bring back besides
}

func (x *way) key() string {
	b := make([]byte, 0, 16+8*len(x.back))
	b = binary.LittleEndian.AppendUint64(b, x.done)
	b = binary.LittleEndian.AppendUint64(b, x.last)
	for _, v := range x.back {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return string(b)
}

// register is the checker of one cell.
type register struct {
	steps    []*step
	ways     []way
	active   [maxSlots]*step
	lastRead map[value]time.Duration // when a value is answered for the last time
	lastLoss time.Duration
	now      time.Duration
}

// moment is a call or a return of a step; losses are both at once.
type moment struct {
	at   time.Duration
	rank int // calls, then returns, then losses
	s    *step
}

// checkRegister says nil if the steps are a right history; what went wrong by
// when, otherwise.
func checkRegister(steps []*step) error {
	r := &register{steps: steps, ways: []way{{}}, lastRead: map[value]time.Duration{}, lastLoss: -1}
	var ms []moment
	for _, s := range steps {
		switch s.kind {
		case opLoss:
			ms = append(ms, moment{s.call, 2, s})
			r.lastLoss = max(r.lastLoss, s.call)
			continue
		case opRead:
			r.lastRead[s.value] = max(r.lastRead[s.value], s.ret)
		}
		ms = append(ms, moment{s.call, 0, s}, moment{s.ret, 1, s})
	}
	slices.SortStableFunc(ms, func(a, b moment) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.rank, b.rank))
	})
	for _, m := range ms {
		r.now = m.at
		if m.s.maybe && m.s.kind != opRead && r.lastRead[m.s.value] < m.s.call {
			continue // nobody will know
		}
		switch m.rank {
		case 0:
			if err := r.called(m.s); err != nil {
				return err
			}
		case 1:
			r.returned(m.s)
		default:
			r.lost()
		}
		if len(r.ways) == 0 {
			return fmt.Errorf("it goes wrong at the end of:\n%s", describe(steps, m.s))
		}
		if len(r.ways) > maxWays {
			return fmt.Errorf("it is not judged: more than %d ways at %v", maxWays, m.at)
		}
	}
	return nil
}

func (r *register) called(s *step) error {
	s.slot = slices.Index(r.active[:], nil)
	if s.slot < 0 {
		return fmt.Errorf("it is not judged: more than %d operations at once at %v", maxSlots, r.now)
	}
	r.active[s.slot] = s
	switch s.kind {
	case opRead:
		for i := range r.ways {
			r.see(&r.ways[i])
		}
	case opFlush:
		r.flush(s)
	}
	return nil
}

// flush lets a flush take effect at once, which allows most of what follows, and
// only if there is a power loss within its time also later.
func (r *register) flush(s *step) {
	after := make([]way, 0, len(r.ways))
	for _, x := range r.ways {
		if x.done&(1<<s.slot) == 0 {
			after = append(after, way{done: x.done | 1<<s.slot, last: x.last})
		}
		if x.done&(1<<s.slot) != 0 || s.call <= r.lastLoss && r.lastLoss <= s.ret {
			after = append(after, x)
		}
	}
	r.ways = r.distinct(after)
}

// see lets the reads take effect that fit to what is there now.
func (r *register) see(x *way) {
	for _, s := range r.active {
		if s != nil && s.kind == opRead && s.value == x.last {
			x.done |= 1 << s.slot
		}
	}
}

// returned leaves the ways in which s has taken effect.
func (r *register) returned(s *step) {
	bit := uint64(1) << s.slot
	var after []way
	for _, x := range r.ways {
		if len(after) > 4*maxWays {
			break // given up anyway
		}
		switch {
		case x.done&bit != 0:
			after = append(after, x)
			continue
		case s.maybe:
			after = append(after, x)
		case s.kind == opFlush:
			after = append(after, way{done: x.done, last: x.last})
			continue
		}
		for i, w := range r.active {
			if w == nil || w.kind != opWrite && w.kind != opTrim || x.done&(1<<i) != 0 {
				continue
			}
			if s.kind == opRead && w.value == s.value && !r.twin(x.done, i) || w == s {
				after = r.before(after, x, i, 0)
			}
		}
	}
	r.active[s.slot] = nil
	for i := range after {
		after[i].done &^= bit
	}
	r.ways = r.distinct(after)
}

// before adds the ways in which the write in slot takes effect next, after any of
// the others from slot i on that are under way. A write that nobody sees is best
// put right before another one. One that is only seen later is not put before
// another one, which would hide it, unless a loss can bring it back.
func (r *register) before(ways []way, x way, slot, i int) []way {
	for ; i < maxSlots && len(ways) <= maxWays; i++ {
		w := r.active[i]
		if w == nil || i == slot || w.kind != opWrite && w.kind != opTrim || x.done&(1<<i) != 0 {
			continue
		}
		switch {
		case r.unseen(w.value):
			x.done |= 1 << i
		case r.twin(x.done, i):
		case w.value == 0 || r.lastLoss >= r.now || r.awaited(w.value, x.done):
			ways = r.before(ways, r.write(x, i), slot, i+1)
		}
	}
	return append(ways, r.write(x, slot))
}

// unseen says whether nobody is or will be shown a value.
func (r *register) unseen(v value) bool {
	last, ok := r.lastRead[v]
	return !ok || last < r.now
}

// twin says whether another write under way would do the same as the one in a
// slot: the first of them is taken.
func (r *register) twin(done uint64, slot int) bool {
	w := r.active[slot]
	for i, o := range r.active[:slot] {
		if o != nil && o.kind == w.kind && o.value == w.value && o.ret == w.ret && o.maybe && w.maybe && done&(1<<i) == 0 {
			return true
		}
	}
	return false
}

// awaited says whether a read under way is still to be shown a value.
func (r *register) awaited(v value, done uint64) bool {
	for i, s := range r.active {
		if s != nil && s.kind == opRead && s.value == v && done&(1<<i) == 0 {
			return true
		}
	}
	return false
}

// write is the way after the write in a slot.
func (r *register) write(x way, slot int) way {
	back := x.back
	if r.lastLoss >= r.now && r.lastRead[x.last] > r.now {
		if i, ok := slices.BinarySearch(back, x.last); !ok {
			back = slices.Insert(slices.Clone(back), i, x.last)
		}
	}
	if s := r.active[slot]; s.fua && !s.maybe {
		back = nil
	}
	next := way{done: x.done | 1<<slot, last: r.active[slot].value, back: back}
	r.see(&next)
	return next
}

// lost lets any of the values come back that were not flushed. The others stay
// possible: this loss may not have reached every replica, and a later one may take
// more.
func (r *register) lost() {
	var after []way
	for _, x := range r.undone() {
		all := x.back
		if i, ok := slices.BinarySearch(all, x.last); !ok {
			all = slices.Insert(slices.Clone(all), i, x.last)
		}
		for i, v := range all {
			next := way{done: x.done, last: v, back: slices.Delete(slices.Clone(all), i, i+1)}
			r.see(&next)
			after = append(after, next)
		}
	}
	r.ways = r.distinct(after)
	for _, s := range r.active {
		if s != nil && s.kind == opFlush {
			r.flush(s)
		}
	}
}

// undone adds the ways in which a write under way took effect just before a loss,
// to be undone by it: a primary that nobody asks any more may answer it later.
func (r *register) undone() []way {
	ways := slices.Clone(r.ways)
	for i, w := range r.active {
		if w == nil || w.maybe || w.kind != opWrite && w.kind != opTrim {
			continue
		}
		for j, x := range ways {
			if x.done&(1<<i) != 0 {
				continue
			}
			x.done |= 1 << i
			if r.unseen(w.value) {
				ways[j] = x
				continue
			}
			if at, ok := slices.BinarySearch(x.back, w.value); !ok {
				x.back = slices.Insert(slices.Clone(x.back), at, w.value)
			}
			ways = append(ways, x)
		}
		ways = r.distinct(ways)
	}
	return ways
}

// distinct forgets what decides nothing any more, and one of two equal ways.
func (r *register) distinct(ways []way) []way {
	if r.lastLoss < r.now {
		for i := range ways {
			ways[i].back = nil
		}
	}
	if len(ways) < 2 {
		return ways
	}
	seen := make(map[string]bool, len(ways))
	out := ways[:0]
	for _, x := range ways {
		if slices.ContainsFunc(x.back, r.unseen) {
			x.back = slices.DeleteFunc(slices.Clone(x.back), r.unseen)
		}
		if k := x.key(); !seen[k] {
			seen[k] = true
			out = append(out, x)
		}
	}
	return out
}

// describe shows the steps that were under way within a while before s was over.
func describe(steps []*step, s *step) string {
	var last []*step
	for _, x := range steps {
		if x.call <= s.ret {
			last = append(last, x)
		}
	}
	slices.SortStableFunc(last, func(a, b *step) int { return cmp.Compare(a.call, b.call) })
	if i := slices.Index(last, s); i > 25 {
		last = last[i-25:]
	}
	var b strings.Builder
	for _, x := range last {
		ret, mark := fmt.Sprintf("%9.4f", x.ret.Seconds()), ""
		if x.ret >= openEnd {
			ret = "     open"
		}
		if x.maybe {
			mark = "?"
		}
		fmt.Fprintf(&b, "  %9.4f %s %s%s %d\n", x.call.Seconds(), ret, x.kind, mark, x.value)
	}
	return b.String()
}
