package reconcile

import (
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/placement"
)

// View is everything that the planners decide on, as of one moment. Planners do
// not change it; executors put records there as they have stored them.
type View struct {
	Now        time.Time
	Volumes    []holdfast.Record
	Nodes      []holdfast.Node
	Tombstones []holdfast.Tombstone
	// NodeGone and PoolGone say since when a registered node has had no lease, and
	// a pool that replicas are on has failed or is not among its live node's.
	NodeGone map[holdfast.NodeID]time.Time
	PoolGone map[holdfast.PoolID]time.Time
	// Refused are nodes that could not make a replica, and until when they are not
	// asked again.
	Refused map[holdfast.NodeID]time.Time
	// Made are new replicas that their nodes have made.
	Made   map[holdfast.ReplicaID]bool
	Policy placement.Policy
	Limits Limits
}

// Limits bound what reconcile does, and when.
type Limits struct {
	// ReplaceAfter is how long a node or pool is waited for before its replicas
	// are made elsewhere. Default 10 min.
	ReplaceAfter time.Duration
	// Together is how close in time nodes vanish "at once". When that are more
	// than a third of the storage nodes, and more than one, it is taken for a
	// network event and nothing is replaced until some return or the operator
	// forgets them. Default 5 min.
	Together time.Duration
	// FinishAfter is how long a volume may be in creation before reconcile takes
	// it on. Default 150 s, longer than its caller's own attempt lasts.
	FinishAfter time.Duration
	// RefuseFor is how long a node that could not make a replica is not asked
	// again. Default 10 min.
	RefuseFor time.Duration
	// RebuildsPerNode and Rebuilds bound the replicas being built: on one node
	// (default 2) and in the cluster (default 8).
	RebuildsPerNode, Rebuilds int
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		is  *time.Duration
		def time.Duration
	}{{&l.ReplaceAfter, 10 * time.Minute}, {&l.Together, 5 * time.Minute}, {&l.FinishAfter, 150 * time.Second}, {&l.RefuseFor, 10 * time.Minute}} {
		if *d.is <= 0 {
			*d.is = d.def
		}
	}
	if l.RebuildsPerNode <= 0 {
		l.RebuildsPerNode = 2
	}
	if l.Rebuilds <= 0 {
		l.Rebuilds = 8
	}
	return l
}

// Problem is something that reconcile cannot mend, for people to read.
type Problem struct {
	Volume string // name; "" when it is about a node, or none
	Node   holdfast.NodeID
	Text   string
	Remedy string // what a person can do
}

func (p Problem) String() string {
	switch {
	case p.Volume == "" && p.Node == "":
		return p.Text
	case p.Volume == "":
		return fmt.Sprintf("node %s: %s", p.Node, p.Text)
	case p.Node == "":
		return fmt.Sprintf("volume %s: %s", p.Volume, p.Text)
	}
	return fmt.Sprintf("volume %s on node %s: %s", p.Volume, p.Node, p.Text)
}

// node finds a registration; nil for one that was forgotten.
func (v *View) node(id holdfast.NodeID) *holdfast.Node {
	i, ok := slices.BinarySearchFunc(v.Nodes, id, func(n holdfast.Node, id holdfast.NodeID) int {
		switch {
		case n.ID < id:
			return -1
		case n.ID > id:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return &v.Nodes[i]
}

// alive says whether the replica's node and pool serve now.
func (v *View) alive(x holdfast.Replica) bool {
	n := v.node(x.Node)
	if n == nil || !n.Alive {
		return false
	}
	_, gone := v.PoolGone[x.Pool]
	return !gone && failedOn(n, x) == nil
}

// failedOn is what the node says about a replica that it serves no more; nil for
// one that it serves.
func failedOn(n *holdfast.Node, x holdfast.Replica) *holdfast.FailedReplica {
	for _, p := range n.Pools {
		for i := range p.Failed {
			if p.Failed[i].ID == x.ID {
				return &p.Failed[i]
			}
		}
	}
	return nil
}

// lost says whether the replica is to be replaced: its node was forgotten, or its
// node or pool has been gone for too long and that is not a network event, or it
// failed itself that long ago.
func (v *View) lost(x holdfast.Replica) bool {
	n := v.node(x.Node)
	if n == nil {
		return true
	}
	if n.Alive {
		if f := failedOn(n, x); f != nil && v.Now.Sub(f.Since) >= v.Limits.ReplaceAfter {
			return true
		}
		since, gone := v.PoolGone[x.Pool]
		return gone && v.Now.Sub(since) >= v.Limits.ReplaceAfter
	}
	since, gone := v.NodeGone[x.Node]
	return gone && v.Now.Sub(since) >= v.Limits.ReplaceAfter && !v.networkEvent(since)
}

// networkEvent says whether the nodes that vanished around a moment were more
// than a third of those there were.
func (v *View) networkEvent(at time.Time) bool {
	vanished, were := 0, 0
	for _, n := range v.Nodes {
		if len(n.Pools) == 0 {
			continue
		}
		since, gone := v.NodeGone[n.ID]
		if n.Alive || !gone {
			were++
			continue
		}
		switch apart := since.Sub(at); {
		case apart < -v.Limits.Together: // it was gone before
		case apart > v.Limits.Together: // it went later
			were++
		default:
			were, vanished = were+1, vanished+1
		}
	}
	return vanished > 1 && vanished*3 > were
}

func (v *View) draining(x holdfast.Replica) bool {
	n := v.node(x.Node)
	return n != nil && n.Draining
}

// put replaces a record by its newer form.
func (v *View) put(rec holdfast.Record) {
	for i := range v.Volumes {
		if v.Volumes[i].ID == rec.ID {
			v.Volumes[i] = rec
		}
	}
}
