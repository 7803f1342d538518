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
	// a live node's pool has failed.
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
	Volume string // name; "" when it is about a node
	Node   holdfast.NodeID
	Text   string
}

func (p Problem) String() string {
	switch {
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
	return !gone
}

// lost says whether the replica is to be replaced: its node was forgotten, or its
// node or pool has been gone for too long and that is not a network event.
func (v *View) lost(x holdfast.Replica) bool {
	n := v.node(x.Node)
	if n == nil {
		return true
	}
	if n.Alive {
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

// remember updates since when nodes and pools are gone.
func remember(nodes []holdfast.Node, now time.Time, nodeGone map[holdfast.NodeID]time.Time, poolGone map[holdfast.PoolID]time.Time) {
	known, knownPool := map[holdfast.NodeID]bool{}, map[holdfast.PoolID]bool{}
	for _, n := range nodes {
		if n.Alive {
			delete(nodeGone, n.ID)
		} else if _, ok := nodeGone[n.ID]; !ok {
			nodeGone[n.ID] = now
		}
		known[n.ID] = true
		for _, p := range n.Pools {
			knownPool[p.ID] = true
			if p.State != holdfast.PoolFailed {
				delete(poolGone, p.ID)
			} else if _, ok := poolGone[p.ID]; !ok && n.Alive {
				poolGone[p.ID] = now
			}
		}
	}
	for id := range nodeGone {
		if !known[id] {
			delete(nodeGone, id)
		}
	}
	for id := range poolGone {
		if !knownPool[id] {
			delete(poolGone, id)
		}
	}
}
