package main

import (
	"fmt"
	"io"
	"time"

	"github.com/holdfast-storage/holdfast/api"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

const (
	ioTimeoutHelp    = "I/O that cannot go on fails after so long, such as 30s; 0: it waits without limit"
	slowReplicasHelp = "what becomes of a replica that is much slower than the others: off, report or drop (default: as the node is configured)"
)

// policyText says what a volume does when something is slow or away.
func policyText(s *holdfastv1.VolumeSpec) string {
	text := "I/O waits without limit"
	if ms := s.GetIoTimeoutMillis(); ms > 0 {
		text = fmt.Sprintf("I/O that cannot go on fails after %v", time.Duration(ms)*time.Millisecond)
	}
	if p := s.GetSlowReplicas(); p != "" {
		return text + ", slow replicas: " + p
	}
	return text + ", slow replicas: as the node is configured"
}

// waitsView lists what waits.
func waitsView(w io.Writer, ws []*holdfastv1.Wait) {
	if len(ws) == 0 {
		return
	}
	fmt.Fprintln(w, "\nWaiting")
	for _, x := range ws {
		subject := x.GetWhat()
		if x.GetVolume() != "" {
			subject += " of volume " + x.GetVolume()
		}
		if x.GetNode() != "" {
			subject += " on node " + x.GetNode()
		}
		long := ""
		if x.GetMillis() > 0 {
			long = ", for " + (time.Duration(x.GetMillis()) * time.Millisecond).Round(100*time.Millisecond).String()
		}
		fmt.Fprintf(w, "  %s: waits for %s%s\n", subject, x.GetWaitingFor(), long)
	}
}

// shownEvents is how many events inspect shows to people; JSON has all.
const shownEvents = 8

func eventsView(w io.Writer, es []*holdfastv1.VolumeEvent) {
	if len(es) == 0 {
		return
	}
	fmt.Fprintln(w, "\nEvents")
	for _, e := range es[max(0, len(es)-shownEvents):] {
		fmt.Fprintf(w, "  %s  %s  %s\n", e.GetAt().AsTime().Local().Format(time.DateTime), e.GetNode(), e.GetWhat())
	}
}

// scrubsView lists the scrubs that are under way, or found something.
func scrubsView(w io.Writer, ss []*holdfastv1.VolumeScrub) {
	if len(ss) == 0 {
		return
	}
	fmt.Fprintln(w, "\nScrubs")
	for _, s := range ss {
		done := ""
		if x := s.GetScrub(); x.GetEnded() == nil && x.GetTotalBytes() > 0 {
			done = fmt.Sprintf(", %s of %s done", api.Bytes(x.GetDoneBytes()), api.Bytes(x.GetTotalBytes()))
		}
		fmt.Fprintf(w, "  volume %s: %s%s\n", s.GetVolume(), scrubLine(s.GetScrub(), time.Now()), done)
	}
}
