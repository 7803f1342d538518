package sim

import "errors"

// breach is what sort of promise a run has broken: a shrunk run must break the same.
type breach string

const (
	notLinearizable breach = "a block is not a linearizable register"
	notEqual        breach = "in-sync replicas differ"
	notWell         breach = "not well after the faults"
	notAnswered     breach = "operations are never answered"
	earlyAnswer     breach = "a write is answered too early"
	tooMuchCopied   breach = "a repair copied too much"
	twoWriters      breach = "two primaries wrote"
	wrongScrub      breach = "a scrub found or left what it should not"
	panicked        breach = "panic"
)

// violation is a promise that was broken.
type violation struct {
	what breach
	text string
}

func (v violation) Error() string { return v.text }

// breachOf names what sort of promise an error says was broken.
func breachOf(err error) breach {
	var v violation
	if errors.As(err, &v) {
		return v.what
	}
	return panicked
}
