package lifecycle

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-storage/holdfast"
)

// Drain puts no new replicas on a node and has reconcile move those it has away:
// others are made elsewhere first. The node's volumes stay attached. It answers
// at once; Undrain stops it.
func (s *Service) Drain(ctx context.Context, node holdfast.NodeID) (holdfast.Node, error) {
	n, err := s.updateNode(ctx, node, func(n *holdfast.Node) { n.Cordoned, n.Draining = true, true })
	return n, holdfast.Wrap("drain node "+string(node), err)
}

// Undrain makes a node usable for new replicas again.
func (s *Service) Undrain(ctx context.Context, node holdfast.NodeID) (holdfast.Node, error) {
	n, err := s.updateNode(ctx, node, func(n *holdfast.Node) { n.Cordoned, n.Draining = false, false })
	return n, holdfast.Wrap("undrain node "+string(node), err)
}

// Cordon puts no new replicas on a node, and leaves those it has.
func (s *Service) Cordon(ctx context.Context, node holdfast.NodeID) (holdfast.Node, error) {
	n, err := s.updateNode(ctx, node, func(n *holdfast.Node) { n.Cordoned = true })
	return n, holdfast.Wrap("cordon node "+string(node), err)
}

func (s *Service) updateNode(ctx context.Context, id holdfast.NodeID, change func(*holdfast.Node)) (holdfast.Node, error) {
	for range maxRaces {
		n, err := s.cfg.Store.Node(ctx, id)
		if err != nil {
			return n, err
		}
		before := [2]bool{n.Cordoned, n.Draining}
		change(&n)
		if before == [2]bool{n.Cordoned, n.Draining} {
			return n, nil
		}
		alive := n.Alive
		n, err = s.cfg.Store.PutNode(ctx, n)
		n.Alive = alive
		if !errors.Is(err, holdfast.Busy) {
			return n, err
		}
	}
	return holdfast.Node{}, errRaced()
}

// Forgotten says what forgetting a node did to its replicas.
type Forgotten struct {
	Removed int                 // replicas taken out of records, with tombstones should the node return
	Leaving int                 // in-sync ones that their volume's primary drops, now or when it next has one
	Only    []holdfast.VolumeID // volumes whose only good copy is there: their replicas stay named
}

// Forget removes a dead node's registration and its replicas; reconcile makes
// others. A replica that is a volume's only good copy stays in its record, so
// that the data is back if the node ever is. It always works for a dead node.
// Errors: InUse while the node is alive. An unknown node's replicas are removed
// too, so that a half-done call can be repeated.
func (s *Service) Forget(ctx context.Context, node holdfast.NodeID) (Forgotten, error) {
	op := "forget node " + string(node)
	var f Forgotten
	alive, err := s.cfg.Store.Alive(ctx, node)
	if err != nil {
		return f, holdfast.Wrap(op, err)
	}
	if alive {
		return f, holdfast.E(op, holdfast.InUse, "it is alive; drain it and stop its daemon first")
	}
	recs, err := s.cfg.Store.Volumes(ctx)
	if err != nil {
		return f, holdfast.Wrap(op, err)
	}
	known := false
	for _, r := range recs {
		if r.On(node) == nil && (r.Primary == nil || r.Primary.Node != node) {
			continue
		}
		known = true
		if err := s.forgetReplica(ctx, r.ID, node, &f); err != nil && !errors.Is(err, holdfast.NotFound) {
			return f, holdfast.Wrap(fmt.Sprintf("%s: volume %s", op, r.Name), err)
		}
	}
	err = s.cfg.Store.DropNode(ctx, node)
	if errors.Is(err, holdfast.NotFound) && known {
		err = nil
	}
	return f, holdfast.Wrap(op, err)
}

// forgetReplica takes a dead node's replica out of one record, or marks it.
func (s *Service) forgetReplica(ctx context.Context, id holdfast.VolumeID, node holdfast.NodeID, f *Forgotten) error {
	for range maxRaces {
		rec, err := s.cfg.Store.Volume(ctx, string(id))
		if err != nil {
			return err
		}
		next := rec.Clone()
		if next.Primary != nil && next.Primary.Node == node {
			next.Primary = nil
		}
		did, stones := s.planForget(&next, node)
		if stones != nil {
			_, err = s.cfg.Store.RetireReplicas(ctx, next, stones)
		} else {
			_, err = s.cfg.Store.SwapVolume(ctx, next)
		}
		if errors.Is(err, holdfast.Busy) {
			continue
		}
		if err == nil {
			did(f)
		}
		return err
	}
	return errRaced()
}

// planForget changes the record and says what to count when that is stored.
func (s *Service) planForget(next *holdfast.Record, node holdfast.NodeID) (did func(*Forgotten), stones []holdfast.Tombstone) {
	x := next.On(node)
	if x == nil {
		return func(*Forgotten) {}, nil
	}
	good := 0
	for _, y := range next.Replicas {
		if y.State == holdfast.InSync && !y.Leaving && y.ID != x.ID {
			good++
		}
	}
	switch {
	case good == 0 && next.Phase == holdfast.PhaseReady:
		return func(f *Forgotten) { f.Only = append(f.Only, next.ID) }, nil
	case x.State == holdfast.InSync:
		x.Leaving = true
		return func(f *Forgotten) { f.Leaving++ }, nil
	}
	gone := *x
	next.Replicas = remove(next.Replicas, gone.ID)
	return func(f *Forgotten) { f.Removed++ }, s.tombstones(*next, []holdfast.Replica{gone})
}

func remove(rs []holdfast.Replica, id holdfast.ReplicaID) []holdfast.Replica {
	var out []holdfast.Replica
	for _, x := range rs {
		if x.ID != id {
			out = append(out, x)
		}
	}
	return out
}
