package sim

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// A cell is a register whose state is the list of values it may fall back to in
// a power loss, and the last of them is what reads see. A flush leaves the last
// alone; a loss makes any of them the last.

type step struct {
	kind  opKind
	value value
	maybe bool // never answered: it may not have happened
}

var model = porcupine.NondeterministicModel{
	Init: func() []any { return []any{"0"} },
	Step: func(state, input, output any) []any {
		all := state.(string)
		last := all[strings.LastIndexByte(all, ',')+1:]
		switch in := input.(step); in.kind {
		case opRead:
			if strconv.FormatUint(output.(value), 10) != last {
				return nil
			}
			return []any{state}
		case opWrite, opTrim:
			after := state.(string) + "," + strconv.FormatUint(in.value, 10)
			if in.maybe {
				return []any{state, after}
			}
			return []any{after}
		case opFlush:
			return []any{last}
		default:
			var out []any
			values := strings.Split(all, ",")
			for i, v := range values {
				// The others stay possible: this loss may not have reached every
				// replica, and a later one may take more.
				rest := append(slices.Delete(slices.Clone(values), i, i+1), v)
				slices.Sort(rest[:len(rest)-1])
				if after := strings.Join(rest, ","); !slices.Contains(out, any(after)) {
					out = append(out, after)
				}
			}
			return out
		}
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		in := input.(step)
		name := [...]string{"read", "write", "trim", "flush", "loss"}[in.kind]
		if in.maybe {
			name += "?"
		}
		return fmt.Sprintf("%s(%v) -> %v", name, in.value, output)
	},
}

// check verifies the history cell by cell.
func (c *cluster) check() error {
	m := model.ToModel()
	for b := range c.meta.rec.SizeBytes / cellSize {
		ops := c.cellHistory(b)
		if len(ops) == 0 {
			continue
		}
		if res := porcupine.CheckOperationsTimeout(m, ops, time.Minute); res != porcupine.Ok {
			return fmt.Errorf("cell %d is not a linearizable register (%s); it goes wrong at the end of:\n%s", b, res, describe(culprit(m, ops)))
		}
	}
	return nil
}

// culprit cuts a history after the first answer that makes it wrong, and shows
// what was under way within a while before.
func culprit(m porcupine.Model, ops []porcupine.Operation) []porcupine.Operation {
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	lo, hi := 0, len(ops) // ops[:lo] is right, ops[:hi] is wrong
	for hi-lo > 1 {
		mid := (lo + hi) / 2
		if porcupine.CheckOperations(m, ops[:mid]) {
			lo = mid
		} else {
			hi = mid
		}
	}
	return ops[max(0, hi-25):hi]
}

// cellHistory is what happened to one cell. What was never answered may have
// happened until the next primary served, or not at all; if nobody has read it,
// it need not be looked at.
func (c *cluster) cellHistory(b int64) []porcupine.Operation {
	var ops []porcupine.Operation
	touched := false
	seen := map[value]bool{}
	for _, o := range c.history {
		if o.kind == opRead && o.ok && b >= o.first && b < o.first+o.cells {
			seen[o.got[b-o.first]] = true
		}
	}
	for i, o := range c.history {
		all := o.kind == opFlush || o.kind == opLoss
		if !all && (b < o.first || b >= o.first+o.cells) || o.open && (o.kind == opRead || o.kind == opFlush) {
			continue
		}
		touched = touched || !all
		in := step{kind: o.kind}
		var out any
		switch o.kind {
		case opRead:
			out = o.got[b-o.first]
		case opWrite:
			in.value = o.value + value(b-o.first)
		}
		ret := int64(o.ret)
		if o.open {
			if !seen[in.value] {
				continue
			}
			in.maybe = true
			if o.ret == 0 {
				ret = int64(1000 * time.Hour)
			}
		}
		ops = append(ops, porcupine.Operation{ClientId: i, Input: in, Output: out, Call: int64(o.call), Return: ret})
	}
	if !touched {
		return nil
	}
	return ops
}

func describe(ops []porcupine.Operation) string {
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var s strings.Builder
	for _, o := range ops {
		ret := fmt.Sprintf("%9.4f", time.Duration(o.Return).Seconds())
		if o.Return >= int64(999*time.Hour) {
			ret = "     open"
		}
		fmt.Fprintf(&s, "  %9.4f %s %s\n", time.Duration(o.Call).Seconds(), ret, model.DescribeOperation(o.Input, o.Output))
	}
	return s.String()
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
		if !h.up || len(h.disk.suspects) > 0 || len(h.store.tasks) > 0 {
			continue
		}
		if first == nil {
			first = h
			continue
		}
		for b := range c.meta.rec.SizeBytes / cellSize {
			if h.disk.live[b] != first.disk.live[b] {
				return fmt.Errorf("cell %d differs: %d on %s, %d on %s", b, first.disk.live[b], first.id, h.disk.live[b], h.id)
			}
		}
	}
	return nil
}
