package demo

import (
	"bytes"
	"strings"
	"testing"
)

func TestTimelineShowsEventsInOrderAndAgainAtTheEnd(t *testing.T) {
	var b bytes.Buffer
	tl := newTimeline(&b, false)
	tl.note("one %d", 1)
	tl.watch(func() string { return "live" })
	tl.note("two")
	tl.close()
	if got := tl.summary(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "one 1") || strings.Index(got, "one") > strings.Index(got, "two") {
		t.Errorf("summary:\n%s", got)
	}
	if strings.Contains(b.String(), "live") {
		t.Errorf("the live line is drawn although this is no terminal:\n%s", b.String())
	}
}
