package api

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// shownTombstone is from when on a replica that is to be removed counts as
// waiting: nodes look every few seconds.
const shownTombstone = time.Minute

// waitsOf lists what of a volume cannot go on now: what its nodes say, and what
// its record and the nodes' registrations tell. It is pure.
func waitsOf(r *holdfast.Record, nodes nodeIndex, view liveView, now time.Time) []*holdfastv1.Wait {
	var ws []*holdfastv1.Wait
	for _, id := range sortedNodes(view.volumes[r.ID]) {
		for _, w := range view.volumes[r.ID][id].GetWaits() {
			node := w.GetNode()
			if node == "" {
				node = string(id)
			}
			ws = append(ws, &holdfastv1.Wait{What: w.GetWhat(), WaitingFor: w.GetWaitingFor(), Millis: w.GetMillis(), Node: node})
		}
	}
	if r.Phase == holdfast.PhaseDeleting {
		ws = append(ws, &holdfastv1.Wait{What: "deletion", WaitingFor: "the controller that leads, to finish it"})
	}
	if r.Phase == holdfast.PhaseReady && r.Primary == nil && holdfast.RoundUp(r.Spec.SizeBytes) > r.SizeBytes {
		ws = append(ws, &holdfastv1.Wait{What: "resize", WaitingFor: "the volume to be served: in a moment, if a node with an in-sync replica lives"})
	}
	for _, x := range r.Replicas {
		n := nodes[x.Node]
		if nodes.alive(x.Node) || n.GoneSince.IsZero() || x.Leaving {
			continue
		}
		ws = append(ws, &holdfastv1.Wait{What: "replacement", Node: string(x.Node), Millis: now.Sub(n.GoneSince).Milliseconds(),
			WaitingFor: fmt.Sprintf("node %s to come back; its replica is made elsewhere once it has been gone for times.replaceAfter", x.Node)})
	}
	return ws
}

func sortedNodes(m map[holdfast.NodeID]*holdfastv1.NodeVolume) []holdfast.NodeID {
	ids := make([]holdfast.NodeID, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// eventsOf lists what lately happened to a volume on all of its nodes.
func eventsOf(r *holdfast.Record, view liveView) []*holdfastv1.VolumeEvent {
	var es []*holdfastv1.VolumeEvent
	for _, id := range sortedNodes(view.volumes[r.ID]) {
		for _, e := range view.volumes[r.ID][id].GetEvents() {
			es = append(es, &holdfastv1.VolumeEvent{At: timestamppb.New(time.Unix(0, e.GetUnixNanos())), Node: string(id), What: e.GetWhat()})
		}
	}
	slices.SortStableFunc(es, func(a, b *holdfastv1.VolumeEvent) int { return a.GetAt().AsTime().Compare(b.GetAt().AsTime()) })
	return es
}

// removals lists the nodes that have not yet removed replicas of deleted volumes.
// Those that are forgotten are not waited for: their tombstones are there should
// they return. It is pure.
func removals(ts []holdfast.Tombstone, nodes nodeIndex, now time.Time) []*holdfastv1.Wait {
	type left struct {
		n     int
		since time.Time
	}
	by := map[holdfast.NodeID]left{}
	for _, t := range ts {
		if _, known := nodes[t.Node]; !known || now.Sub(t.Made) < shownTombstone {
			continue
		}
		l := by[t.Node]
		if l.n++; l.since.IsZero() || t.Made.Before(l.since) {
			l.since = t.Made
		}
		by[t.Node] = l
	}
	var ws []*holdfastv1.Wait
	for node, l := range by {
		ws = append(ws, &holdfastv1.Wait{What: "deletion", Node: string(node), Millis: now.Sub(l.since).Milliseconds(),
			WaitingFor: fmt.Sprintf("node %s, to remove %d replicas that are not needed any more", node, l.n)})
	}
	slices.SortFunc(ws, func(a, b *holdfastv1.Wait) int { return cmp.Compare(a.GetNode(), b.GetNode()) })
	return ws
}

// slowProblems reports replicas that live but are much slower than the others.
func slowProblems(r *holdfast.Record, live *holdfastv1.PrimaryStatus) []*holdfastv1.Problem {
	var ps []*holdfastv1.Problem
	for _, p := range live.GetPeers() {
		if !p.GetSlow() {
			continue
		}
		answers := (time.Duration(p.GetAnswerMicros()) * time.Microsecond).Round(100 * time.Microsecond)
		ps = append(ps, &holdfastv1.Problem{Severity: Warning, Subject: "volume " + r.Name,
			What:   fmt.Sprintf("its replica on node %s is much slower than the others: it answers writes in %v, and every write waits for it", p.GetNodeId(), answers),
			Remedy: fmt.Sprintf("check that node's disk and network; to do without it: holdfast volume update %s --slow-replicas drop, or: holdfast node drain %s", quote(r.Name), p.GetNodeId())})
	}
	return ps
}

// scrubProblems reports damage that did not go away.
func scrubProblems(r *holdfast.Record) []*holdfastv1.Problem {
	if r.Scrub == nil || r.Scrub.Unhealed == 0 {
		return nil
	}
	return []*holdfastv1.Problem{{Severity: Critical, Subject: "volume " + r.Name,
		What:   fmt.Sprintf("%d blocks differ between its replicas, and the last scrub could not heal them: a replica was away, so that no majority said which copy is right, or a disk does not keep what is written", r.Scrub.Unhealed),
		Remedy: fmt.Sprintf("when all its replicas are in sync, scrub again: holdfast volume scrub %s; if blocks differ then too, see in the logs of its replicas' nodes which disk gives errors, and drain that node", quote(r.Name))}}
}

// notable says whether a scrub belongs into the cluster's status: it is to be
// done, or found something.
func notable(s *holdfast.Scrub) bool {
	return s != nil && (s.Pending() || s.Mismatches > 0 || s.Unhealed > 0)
}
