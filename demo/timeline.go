package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// timeline prints what happens as it happens, and again at the end. On a
// terminal its last line is live.
type timeline struct {
	w     io.Writer
	tty   bool
	start time.Time

	mu     sync.Mutex
	events []event
	live   func() string
	drawn  bool
	stop   chan struct{}
	ended  chan struct{}
}

// event is one line of the time line.
type event struct {
	at   time.Duration
	text string
}

// newTimeline starts a time line at zero. Close it.
func newTimeline(w io.Writer, tty bool) *timeline {
	t := &timeline{w: w, tty: tty, start: time.Now(), stop: make(chan struct{}), ended: make(chan struct{})}
	go t.redraw()
	return t
}

// note adds an event.
func (t *timeline) note(format string, a ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := event{time.Since(t.start), fmt.Sprintf(format, a...)}
	t.events = append(t.events, e)
	t.clear()
	fmt.Fprintln(t.w, e.line())
}

// say prints a line that is not part of the time line.
func (t *timeline) say(format string, a ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	fmt.Fprintf(t.w, format+"\n", a...)
}

// heading begins a chapter.
func (t *timeline) heading(text string) { t.say("\n%s", text) }

// watch makes f the text of the live line; nil ends it.
func (t *timeline) watch(f func() string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.clear()
	t.live = f
}

func (t *timeline) clear() {
	if t.drawn {
		fmt.Fprint(t.w, "\r\x1b[K")
		t.drawn = false
	}
}

func (t *timeline) redraw() {
	defer close(t.ended)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-t.stop:
			return
		case <-tick.C:
			t.draw()
		}
	}
}

func (t *timeline) draw() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil || !t.tty {
		return
	}
	fmt.Fprintf(t.w, "\r\x1b[K%8s   ... %s", seconds(time.Since(t.start)), t.live())
	t.drawn = true
}

// close ends the redrawing.
func (t *timeline) close() {
	t.watch(nil)
	close(t.stop)
	<-t.ended
}

// summary is the whole time line.
func (t *timeline) summary() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	for _, e := range t.events {
		b.WriteString(e.line() + "\n")
	}
	return b.String()
}

func (e event) line() string { return fmt.Sprintf("%8s   %s", seconds(e.at), e.text) }

// seconds shows a duration as "12.34 s".
func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }
