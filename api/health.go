package api

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// What a volume's health can be, see Volume.health in api.proto.
const (
	Healthy     = "healthy"
	Degraded    = "degraded"
	Waiting     = "waiting"
	Unavailable = "unavailable"
)

// What a cluster's health can be, and a problem's severity.
const (
	Notice   = "notice" // nothing is wrong, but somebody may wait for it
	Warning  = "warning"
	Critical = "critical"
)

// slowCreate is how long a volume may be in creation before that is a problem.
const slowCreate = 30 * time.Second

// longWait is from when on I/O that waits is a problem and not just latency.
const longWait = 500 * time.Millisecond

// nodeIndex is the nodes by id.
type nodeIndex map[holdfast.NodeID]holdfast.Node

func indexNodes(ns []holdfast.Node) nodeIndex {
	idx := make(nodeIndex, len(ns))
	for _, n := range ns {
		idx[n.ID] = n
	}
	return idx
}

func (idx nodeIndex) alive(id holdfast.NodeID) bool { return idx[id].Alive }

// volumeHealth judges one volume from its record, the nodes and, when its
// primary said something, that. It is pure: now is handed in.
func volumeHealth(r *holdfast.Record, nodes nodeIndex, live *holdfastv1.PrimaryStatus, now time.Time) (string, []*holdfastv1.Problem) {
	j := judge{r: r, nodes: nodes, live: live, subject: "volume " + r.Name}
	switch r.Phase {
	case holdfast.PhaseCreating:
		if now.Sub(r.Created) > slowCreate {
			j.add(Warning, fmt.Sprintf("its creation has not finished for %s", age(now.Sub(r.Created))),
				"it is tried again or undone by itself while a controller leads; see that all nodes are alive: holdfast node list")
		}
		return string(holdfast.PhaseCreating), j.problems
	case holdfast.PhaseDeleting:
		return string(holdfast.PhaseDeleting), j.problems
	}
	health := j.reach()
	if holder := r.AttachedTo(); holder != "" && !nodes.alive(holder) {
		j.add(Warning, fmt.Sprintf("it is attached to node %s, which is dead", holder),
			fmt.Sprintf("start the volume's task on another node, or: holdfast volume attach %s --node NODE", quote(r.Name)))
	}
	return health, j.problems
}

// judge collects what is wrong with one volume.
type judge struct {
	r        *holdfast.Record
	nodes    nodeIndex
	live     *holdfastv1.PrimaryStatus
	subject  string
	problems []*holdfastv1.Problem
}

func (j *judge) add(severity, what, remedy string) {
	j.problems = append(j.problems, &holdfastv1.Problem{Severity: severity, Subject: j.subject, What: what, Remedy: remedy})
}

// broken is why a replica's data cannot be had although its node is alive: it, or
// the whole pool, failed; "" if it can.
func (j *judge) broken(x holdfast.Replica) string {
	n := j.nodes[x.Node]
	if f := failedReplica(n, x.ID); f != nil {
		return f.Why
	}
	for _, p := range n.Pools {
		if p.ID == x.Pool && p.State == holdfast.PoolFailed {
			return "its pool failed: " + p.Message
		}
	}
	return ""
}

// reach says how far the volume's data can be reached.
func (j *judge) reach() string {
	in := j.r.InSyncReplicas()
	var dead []string
	var bad []holdfast.Replica
	for _, x := range in {
		switch {
		case !j.nodes.alive(x.Node):
			dead = append(dead, string(x.Node))
		case j.broken(x) != "":
			bad = append(bad, x)
		}
	}
	if len(dead)+len(bad) == len(in) {
		j.unreachable(dead, bad)
		return Unavailable
	}
	if w := time.Duration(j.live.GetWaitingMillis()) * time.Millisecond; j.live.GetWaitingFor() != "" && w >= longWait {
		j.add(Critical, fmt.Sprintf("its I/O has been waiting for %s for %s", j.live.GetWaitingFor(), age(w)), j.waitRemedy(dead, bad))
		j.missing(len(in))
		return Waiting
	}
	if !j.missing(len(in)) && len(dead)+len(bad) == 0 {
		return Healthy
	}
	for _, n := range dead {
		j.add(Warning, "its replica on node "+n+" cannot be reached: the node is dead", deadRemedy(n))
	}
	for _, x := range bad {
		j.add(Warning, fmt.Sprintf("its replica on node %s failed: %s", x.Node, j.broken(x)), brokenRemedy(x.Node))
	}
	return Degraded
}

// unreachable reports that nobody has the data at hand.
func (j *judge) unreachable(dead []string, bad []holdfast.Replica) {
	const what = "no in-sync replica can be reached: "
	switch {
	case len(bad) > 0:
		x := bad[0]
		j.add(Critical, what+fmt.Sprintf("the one on node %s failed: %s", x.Node, j.broken(x)),
			fmt.Sprintf("keep the disk: the newest data is there. It is opened anew by itself when it answers; to try at once, restart the daemon on %s%s", x.Node, deadToo(dead)))
	case len(dead) > 0:
		j.add(Critical, what+deadNodes(dead), "start the daemon on "+orList(dead)+"; the data is there and safe")
	default:
		j.add(Critical, "no replica is in sync", "see what the replicas lack: holdfast volume inspect "+quote(j.r.Name))
	}
}

func deadToo(dead []string) string {
	if len(dead) == 0 {
		return ""
	}
	return "; or start the daemon on " + orList(dead)
}

// waitRemedy points at the likeliest cause of waiting I/O.
func (j *judge) waitRemedy(dead []string, bad []holdfast.Replica) string {
	for _, x := range j.r.Replicas {
		for _, p := range j.nodes[x.Node].Pools {
			if p.ID == x.Pool && p.State == holdfast.PoolFull {
				return fmt.Sprintf("pool %s on node %s is full: delete volumes there, or move replicas away: holdfast node drain %s", short(string(p.ID)), x.Node, x.Node)
			}
		}
	}
	switch {
	case len(j.r.InSyncReplicas()) < j.r.Spec.MinInSync:
		for _, x := range j.r.Replicas {
			if x.State != holdfast.InSync && !j.nodes.alive(x.Node) && !slices.Contains(dead, string(x.Node)) {
				dead = append(dead, string(x.Node))
			}
		}
		if len(dead) > 0 {
			return "start the daemon on " + orList(dead) + "; the replica there is then repaired, and I/O goes on"
		}
		return "it goes on when the replicas are repaired: holdfast volume inspect --watch " + quote(j.r.Name)
	case len(dead) > 0:
		return "it goes on by itself when the replica there is dropped; if it does not, etcd does not answer: see the daemons' logs"
	case len(bad) > 0:
		return brokenRemedy(bad[0].Node)
	}
	return "see that all nodes and etcd answer: holdfast node list; and the replicas' messages: holdfast volume inspect " + quote(j.r.Name)
}

// missing reports replicas that are not in sync or were never placed; it says
// whether there are any.
func (j *judge) missing(inSync int) bool {
	if inSync >= j.r.Spec.Replicas {
		return false
	}
	head := fmt.Sprintf("%d of %d replicas in sync", inSync, j.r.Spec.Replicas)
	for _, x := range j.r.Replicas {
		switch {
		case x.State == holdfast.InSync:
		case !j.nodes.alive(x.Node):
			j.add(Warning, fmt.Sprintf("%s: the replica on node %s is %s and the node is dead", head, x.Node, x.State), deadRemedy(string(x.Node)))
		case j.broken(x) != "":
			j.add(Warning, fmt.Sprintf("%s: the replica on node %s is %s and failed: %s", head, x.Node, x.State, j.broken(x)), brokenRemedy(x.Node))
		default:
			j.repairing(head, x)
		}
	}
	if n := j.r.Spec.Replicas - len(j.r.Replicas); n > 0 {
		j.add(Warning, fmt.Sprintf("%s: %d could not be placed", head, n), "add a storage node, or free space in a pool: holdfast pool list")
	}
	return true
}

func (j *judge) repairing(head string, x holdfast.Replica) {
	what := fmt.Sprintf("%s: the replica on node %s is %s", head, x.Node, x.State)
	p := peer(j.live, x.ID)
	if p.GetLeftBytes() > 0 {
		what += fmt.Sprintf(", %s left to copy", Bytes(p.GetLeftBytes()))
	}
	if p.GetMessage() != "" {
		what += " (" + p.GetMessage() + ")"
	}
	j.add(Warning, what, "it is repaired by itself; watch it with: holdfast volume inspect --watch "+quote(j.r.Name))
}

// nodeProblems judges the nodes and their pools.
func nodeProblems(ns []holdfast.Node, at placed, now time.Time) []*holdfastv1.Problem {
	var ps []*holdfastv1.Problem
	pools := 0
	for _, n := range ns {
		pools += len(n.Pools)
		if !n.Alive {
			ps = append(ps, &holdfastv1.Problem{Severity: Warning, Subject: "node " + string(n.ID),
				What: "its daemon does not answer: its lease ran out" + ago(n.GoneSince, now), Remedy: deadRemedy(string(n.ID))})
			continue
		}
		for _, p := range n.Pools {
			ps = append(ps, poolProblem(n.ID, p)...)
		}
		if left := len(at.replicas[n.ID]); n.Draining && left > 0 {
			ps = append(ps, &holdfastv1.Problem{Severity: Notice, Subject: "node " + string(n.ID), What: fmt.Sprintf("it is draining, %d replicas are still there", left),
				Remedy: "wait while others are made elsewhere; if no other node has room, add one, or: holdfast node undrain " + string(n.ID)})
		}
	}
	if pools == 0 {
		ps = append(ps, &holdfastv1.Problem{Severity: Warning, Subject: "cluster", What: "no node has a pool: volumes cannot be created",
			Remedy: "list a disk under pools in a node's configuration and restart its daemon; holdfast pool format --help"})
	}
	return ps
}

func poolProblem(n holdfast.NodeID, p holdfast.Pool) []*holdfastv1.Problem {
	subject := fmt.Sprintf("pool %s on node %s", short(string(p.ID)), n)
	switch {
	case p.State == holdfast.PoolFailed:
		return []*holdfastv1.Problem{{Severity: Critical, Subject: subject, What: "it failed: " + p.Message,
			Remedy: "it is opened anew by itself when the disk " + p.Device + " answers; if that is broken, replace it: its replicas are made again after a while (times.replaceAfter)"}}
	case !p.SilentSince.IsZero():
		return []*holdfastv1.Problem{{Severity: Critical, Subject: subject, What: p.Message + ": its volumes go on with their other replicas",
			Remedy: "see the kernel's messages on " + string(n) + " about " + p.Device + "; when it answers again, its replicas are repaired by themselves; otherwise drain the node: holdfast node drain " + string(n)}}
	case len(p.Failed) > 0:
		return []*holdfastv1.Problem{{Severity: Warning, Subject: subject, What: p.Message + "; it takes no new ones",
			Remedy: brokenRemedy(n) + "; check the disk: holdfast pool check " + short(string(p.ID))}}
	case p.State == holdfast.PoolFull:
		return []*holdfastv1.Problem{{Severity: Critical, Subject: subject, What: "it is full: writes to volumes on it wait",
			Remedy: "delete volumes that have a replica there, or drain the node: holdfast node drain " + string(n)}}
	case p.TotalBytes > 0 && p.FreeBytes < p.TotalBytes/10:
		return []*holdfastv1.Problem{{Severity: Warning, Subject: subject, What: fmt.Sprintf("only %s of %s are free", Bytes(p.FreeBytes), Bytes(p.TotalBytes)),
			Remedy: "add a disk or a storage node, or delete volumes"}}
	}
	return nil
}

// worst is the cluster's health given its problems.
func worst(ps []*holdfastv1.Problem) string {
	h := Healthy
	for _, p := range ps {
		if p.Severity == Critical {
			return Critical
		}
		if p.Severity == Warning {
			h = Warning
		}
	}
	return h
}

// sortProblems puts the gravest first and keeps the order otherwise.
func sortProblems(ps []*holdfastv1.Problem) {
	rank := map[string]int{Critical: 0, Warning: 1, Notice: 2}
	sort.SliceStable(ps, func(a, b int) bool { return rank[ps[a].Severity] < rank[ps[b].Severity] })
}

func deadRemedy(node string) string {
	return fmt.Sprintf("start the daemon on %s; if the node is gone for good: holdfast node forget %s", node, node)
}

// brokenRemedy is what to do about a replica whose disk failed.
func brokenRemedy(node holdfast.NodeID) string {
	return fmt.Sprintf("it is made again elsewhere after a while (times.replaceAfter); to try the disk again at once, restart the daemon on %s", node)
}

// ago says how long ago something was that is known; "" if it is not.
func ago(t, now time.Time) string {
	if t.IsZero() || now.Before(t) {
		return ""
	}
	return " " + age(now.Sub(t)) + " ago"
}

func deadNodes(ns []string) string {
	if len(ns) == 1 {
		return "node " + ns[0] + " is dead"
	}
	return "nodes " + strings.Join(ns, ", ") + " are dead"
}

func orList(ns []string) string { return strings.Join(ns, " or ") }

// quote makes a name safe to paste into a shell.
func quote(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-+:@", r))
	}) {
		return "'" + strings.ReplaceAll(name, "'", `'\''`) + "'"
	}
	return name
}

// short is how long identities are shown where a person reads them.
func short(id string) string { return id[:min(len(id), 8)] }

func age(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// Bytes shows a size as people read it: "1.5 GiB", exact sizes without a
// fraction.
func Bytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 && n > -1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, u := float64(n)/1024, 0
	for f >= 1024 || f <= -1024 {
		f /= 1024
		u++
	}
	s := fmt.Sprintf("%.1f", f)
	return strings.TrimSuffix(s, ".0") + " " + units[u:u+1] + "iB"
}
