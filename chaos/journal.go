package main

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// journal prints what happens, when it happens, and keeps it.
type journal struct {
	start time.Time

	mu    sync.Mutex
	w     io.Writer
	lines []string
}

func newJournal(w io.Writer) *journal { return &journal{start: time.Now(), w: w} }

// note adds a line with the time since the start.
func (j *journal) note(format string, a ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := time.Now()
	line := fmt.Sprintf("%s %8.2f  %s", now.UTC().Format("15:04:05.000"), now.Sub(j.start).Seconds(), fmt.Sprintf(format, a...))
	j.lines = append(j.lines, line)
	fmt.Fprintln(j.w, line)
}

// round begins a new time line.
func (j *journal) round(n int) {
	j.mu.Lock()
	j.lines = nil
	j.mu.Unlock()
	j.note("round %d", n)
}

// sinceRound is the time line of the present round.
func (j *journal) sinceRound() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]string(nil), j.lines...)
}
