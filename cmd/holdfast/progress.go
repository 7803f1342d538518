package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// bar shows how far something is: redrawn in place on a terminal, a line every
// few seconds elsewhere.
type bar struct {
	w     io.Writer
	label string
	start time.Time
	last  time.Time
	drawn bool
}

// newBar makes a bar that writes to w.
func newBar(w io.Writer, label string) *bar { return &bar{w: w, label: label, start: time.Now()} }

// set shows that done of total is finished; text follows the bar.
func (b *bar) set(done, total int64, text string) {
	now := time.Now()
	width, tty := terminal(b.w)
	every := 200 * time.Millisecond
	if !tty {
		every = 5 * time.Second
	}
	if now.Sub(b.last) < every && done < total {
		return
	}
	b.last = now
	line := b.line(done, total, text)
	if !tty {
		fmt.Fprintln(b.w, line)
		return
	}
	if r := []rune(line); len(r) >= width {
		line = string(r[:width-1])
	}
	fmt.Fprintf(b.w, "\r\x1b[K%s", line)
	b.drawn = true
}

func (b *bar) line(done, total int64, text string) string {
	const cells = 24
	frac := 1.0
	if total > 0 {
		frac = min(1, max(0, float64(done)/float64(total)))
	}
	full := int(frac * cells)
	s := fmt.Sprintf("%s [%s%s] %3.0f%%", b.label, strings.Repeat("#", full), strings.Repeat(".", cells-full), frac*100)
	if text != "" {
		s += "  " + text
	}
	if took := time.Since(b.start); frac > 0.02 && frac < 1 && took > 2*time.Second {
		s += fmt.Sprintf("  about %s left", (time.Duration(float64(took) * (1 - frac) / frac)).Round(time.Second))
	}
	return s
}

// end finishes the line.
func (b *bar) end() {
	if b.drawn {
		fmt.Fprintln(b.w)
	}
}
