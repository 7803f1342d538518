package replication

import (
	"fmt"

	"github.com/holdfast-storage/holdfast"
)

// GrantRequest is what decides whether a node becomes the primary.
type GrantRequest struct {
	Self        holdfast.NodeID
	Kind        holdfast.PrimaryKind
	HolderAlive bool // the present holder's lease is there
	Force       bool // also while it is: its reads end by the read window, its writes by its epoch
}

// Grant is the next record, with one epoch more and the asking node as primary.
// It is refused with InUse, naming the holder, while another live node's client
// primary holds the volume, and while this asks for maintenance only and anybody
// live holds it. Whoever asks must make sure that no other process of its own
// node still serves the volume. A client is refused with Busy while a snapshot is
// restored.
func Grant(rec holdfast.Record, g GrantRequest) (holdfast.Record, error) {
	op := "grant volume " + rec.Name
	if rec.Phase != holdfast.PhaseReady {
		return rec, holdfast.E(op, holdfast.Unavailable, fmt.Sprintf("the volume is %s; it can be attached when it is ready", rec.Phase))
	}
	if len(rec.InSyncReplicas()) == 0 {
		return rec, holdfast.E(op, holdfast.Corrupt, "no replica is in sync: nothing can be served without guessing")
	}
	if rec.Restore != nil && g.Kind == holdfast.ClientPrimary {
		return rec, holdfast.E(op, holdfast.Busy, fmt.Sprintf("snapshot %s is being restored; it can be attached when that is done", rec.Restore.Snapshot))
	}
	if h := rec.Primary; h != nil && h.Node != g.Self && g.HolderAlive && !g.Force {
		if h.Kind == holdfast.ClientPrimary || g.Kind == holdfast.MaintenancePrimary {
			return rec, holdfast.E(op, holdfast.InUse, fmt.Sprintf("it is attached to node %s; detach it there first", h.Node))
		}
	}
	next := rec.Clone()
	next.Epoch++
	next.Primary = &holdfast.Primary{Node: g.Self, Kind: g.Kind, Grant: next.Epoch}
	return next, nil
}
