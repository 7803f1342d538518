package api

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func TestWaitsComeFromNodesAndRecords(t *testing.T) {
	now := time.Unix(1000, 0)
	r := record(holdfast.InSync, holdfast.Stale)
	r.Replicas[0].Node, r.Replicas[1].Node = "n1", "n2"
	r.Spec.SizeBytes, r.Primary = r.SizeBytes+1, nil
	nodes := nodeIndex{"n1": {ID: "n1", Alive: true}, "n2": {ID: "n2", GoneSince: now.Add(-time.Minute)}}
	view := liveView{volumes: map[holdfast.VolumeID]map[holdfast.NodeID]*holdfastv1.NodeVolume{r.ID: {
		"n1": {Waits: []*holdfastv1.Wait{{What: "attach", WaitingFor: "the take-over", Millis: 700}}},
	}}}
	what := func() string {
		var all []string
		for _, w := range waitsOf(&r, nodes, view, now) {
			all = append(all, w.GetWhat()+"@"+w.GetNode()+"/"+(time.Duration(w.GetMillis())*time.Millisecond).String())
		}
		return strings.Join(all, " ")
	}
	if got := what(); got != "attach@n1/700ms resize@/0s replacement@n2/1m0s" {
		t.Error(got)
	}
	r.Phase = holdfast.PhaseDeleting
	if got := what(); !strings.Contains(got, "deletion@") {
		t.Error(got)
	}
}

func TestRemovalsThatWait(t *testing.T) {
	now := time.Unix(10000, 0)
	ws := removals([]holdfast.Tombstone{
		{Replica: "a", Node: "n2", Made: now.Add(-time.Hour)}, {Replica: "b", Node: "n2", Made: now.Add(-2 * time.Hour)},
		{Replica: "c", Node: "n1", Made: now.Add(-2 * time.Minute)}, {Replica: "d", Node: "n3", Made: now.Add(-time.Second)},
		{Replica: "e", Node: "forgotten", Made: now.Add(-time.Hour)},
	}, indexNodes([]holdfast.Node{{ID: "n1"}, {ID: "n2"}, {ID: "n3"}}), now)
	if len(ws) != 2 || ws[0].GetNode() != "n1" || ws[1].GetMillis() != (2*time.Hour).Milliseconds() || !strings.Contains(ws[1].GetWaitingFor(), "2 replicas") {
		t.Error(ws)
	}
}

func TestSlowReplicasAndScrubsAreProblems(t *testing.T) {
	r := record(holdfast.InSync, holdfast.InSync)
	ps := slowProblems(&r, &holdfastv1.PrimaryStatus{Peers: []*holdfastv1.PeerStatus{{NodeId: "n1"}, {NodeId: "n2", Slow: true, AnswerMicros: 40000}}})
	if len(ps) != 1 || !strings.Contains(ps[0].GetWhat(), "node n2") || !strings.Contains(ps[0].GetWhat(), "40ms") {
		t.Error(ps)
	}
	r.SetScrub(holdfast.Scrub{ID: "s", Ended: time.Unix(5, 0), Mismatches: 3, Healed: 3})
	if len(scrubProblems(&r)) != 0 || !notable(r.Scrub) {
		t.Error("healed damage is no problem, and worth to be shown")
	}
	r.Scrub.Unhealed = 1
	if ps := scrubProblems(&r); len(ps) != 1 || ps[0].GetSeverity() != Critical {
		t.Error(ps)
	}
}
