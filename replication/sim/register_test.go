package sim

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// model says the same as checkRegister, for a checker that searches: the state is
// the list of values that a loss may bring back, what reads see last.
var model = porcupine.NondeterministicModel{
	Init: func() []any { return []any{"0"} },
	Step: func(state, input, output any) []any {
		all := state.(string)
		last := all[strings.LastIndexByte(all, ',')+1:]
		switch in := input.(*step); in.kind {
		case opRead:
			if strconv.FormatUint(in.value, 10) != last {
				return nil
			}
			return []any{state}
		case opWrite, opTrim:
			after := all + "," + strconv.FormatUint(in.value, 10)
			if in.maybe {
				return []any{state, after}
			}
			return []any{after}
		case opFlush:
			return []any{last}
		}
		var out []any
		values := strings.Split(all, ",")
		for i, v := range values {
			rest := append(slices.Delete(slices.Clone(values), i, i+1), v)
			slices.Sort(rest[:len(rest)-1])
			if after := strings.Join(rest, ","); !slices.Contains(out, any(after)) {
				out = append(out, after)
			}
		}
		return out
	},
	Equal: func(a, b any) bool { return a == b },
}

func searched(steps []*step) bool {
	var ops []porcupine.Operation
	for i, s := range steps {
		ops = append(ops, porcupine.Operation{ClientId: i, Input: s, Call: int64(s.call), Return: int64(s.ret)})
	}
	return porcupine.CheckOperations(model.ToModel(), ops)
}

// history makes a random one that is right, mostly; then one answer is changed in
// some.
func randomHistory(rng *rand.Rand) []*step {
	var steps []*step
	at := func(t int64) time.Duration { return time.Duration(t) * time.Millisecond }
	written := []value{0}
	busyUntil, lossAt := int64(0), int64(0)
	now := int64(1)
	for i := range 4 + rng.IntN(10) {
		now += 2 * rng.Int64N(6) // calls at odd times, answers at even ones
		s := &step{call: at(now), ret: at(now + 1 + 2*rng.Int64N(12))}
		switch x := rng.IntN(20); {
		case x < 8:
			s.kind, s.value = opRead, written[max(0, len(written)-1-rng.IntN(3))]
		case x < 15:
			s.kind, s.value, s.maybe = opWrite, value(i+1), rng.IntN(6) == 0
			written = append(written, s.value)
		case x < 16:
			s.kind = opTrim
			written = append(written, 0)
		case x < 18:
			s.kind = opFlush
		default:
			now = max(now, busyUntil) + 2
			s.kind, s.call, s.ret, lossAt = opLoss, at(now), at(now), now
			now++
			now |= 1
		}
		busyUntil = max(busyUntil, int64(s.ret/time.Millisecond), lossAt)
		steps = append(steps, s)
	}
	return steps
}

// The checker agrees with one that searches, about right and wrong histories.
func TestRegisterAgreesWithSearch(t *testing.T) {
	rng := rand.New(rand.NewPCG(*seed, 11))
	right, wrong := 0, 0
	for range 8_000 {
		steps := randomHistory(rng)
		err, want := checkRegister(steps), searched(steps)
		if (err == nil) != want {
			t.Fatalf("the search says %v, the checker %v, of\n%s", want, err, describe(steps, steps[len(steps)-1]))
		}
		if want {
			right++
		} else {
			wrong++
		}
	}
	if right < 500 || wrong < 500 {
		t.Errorf("%d right, %d wrong histories: too few of one sort to say anything", right, wrong)
	}
}

// A history with much under way and many losses is judged in no time.
func TestRegisterManyLosses(t *testing.T) {
	var steps []*step
	for i := range 4000 {
		at := time.Duration(i) * time.Millisecond
		steps = append(steps, &step{kind: opWrite, value: value(i + 1), call: at, ret: at + 4*time.Millisecond})
		if i%3 == 0 {
			steps = append(steps, &step{kind: opRead, value: value(i), call: at, ret: at + 3*time.Millisecond})
		}
		if i%50 == 49 {
			steps = append(steps, &step{kind: opLoss, call: at, ret: at})
		}
	}
	if err := checkRegister(steps); err != nil {
		t.Error(err)
	}
}

// TestALateAnswerMayBeToALostWrite: seed 802926. A primary that was superseded
// answered a write after the next one served; a power loss in between had undone it.
func TestALateAnswerMayBeToALostWrite(t *testing.T) {
	s := time.Second
	steps := []*step{
		{kind: opWrite, value: 1, call: s, ret: 2 * s}, {kind: opFlush, call: 2 * s, ret: 3 * s},
		{kind: opWrite, value: 2, call: 4 * s, ret: 10 * s}, {kind: opLoss, call: 8 * s, ret: 8 * s},
		{kind: opRead, value: 1, call: 11 * s, ret: 12 * s}, {kind: opRead, value: 1, call: 13 * s, ret: 14 * s},
	}
	if err := checkRegister(steps); err != nil || !searched(steps) {
		t.Errorf("it could be so: %v", err)
	}
	steps[3].call, steps[3].ret = 3*s, 3*s
	if checkRegister(steps) == nil {
		t.Error("the loss came before the write")
	}
}
