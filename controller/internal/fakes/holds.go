package fakes

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// Hold is one hold of a volume's writes.
type Hold struct {
	Token       string
	From, Until time.Time
}

// Cut is when a group's snapshot was taken, and since when its volume was held.
type Cut struct{ Held, At time.Time }

// Held says whether a volume's writes are held now.
func (c *Cluster) Held(id holdfast.VolumeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Before(c.holds[id].Until)
}

// LapseHolds ends all holds, as time does.
func (c *Cluster) LapseHolds() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.holds)
}

// Cuts are the groups' snapshots that were ever taken.
func (c *Cluster) Cuts() map[holdfast.SnapshotID]Cut {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[holdfast.SnapshotID]Cut{}
	for id, x := range c.cuts {
		out[id] = x
	}
	return out
}

// PrepareHold implements the node's service: the primary's node, or one with an
// in-sync replica.
func (n *Node) PrepareHold(ctx context.Context, in *holdfastv1.PrepareHoldRequest, _ ...grpc.CallOption) (*holdfastv1.PrepareHoldResponse, error) {
	err := n.serve("PrepareHold", func() error {
		rec, err := n.c.Store.Volume(ctx, in.VolumeId)
		if err != nil {
			return err
		}
		x := rec.On(n.ID)
		if p := rec.Primary; p != nil && p.Node != n.ID || p == nil && (x == nil || x.State != holdfast.InSync) {
			return holdfast.E("", holdfast.Unavailable, "it is not served here")
		}
		return nil
	})
	return &holdfastv1.PrepareHoldResponse{}, err
}

// serveUntil is serve whose caller may leave, as over gRPC.
func (n *Node) serveUntil(ctx context.Context, method string, f func() error) error {
	answer := make(chan error, 1)
	go func() { answer <- n.serve(method, f) }()
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return grpcstatus.To(holdfast.WrapKind(method, holdfast.Unavailable, ctx.Err()))
	}
}

// Hold implements the node's service.
func (n *Node) Hold(ctx context.Context, in *holdfastv1.HoldRequest, _ ...grpc.CallOption) (*holdfastv1.HoldResponse, error) {
	err := n.serveUntil(ctx, "Hold", func() error {
		n.c.mu.Lock()
		defer n.c.mu.Unlock()
		id, now := holdfast.VolumeID(in.VolumeId), time.Now()
		if h := n.c.holds[id]; now.Before(h.Until) && h.Token != in.Token {
			return holdfast.E("", holdfast.Busy, "it is held for another snapshot")
		}
		if ctx.Err() != nil {
			return holdfast.WrapKind("", holdfast.Unavailable, ctx.Err()) // nothing stays held
		}
		n.c.holds[id] = Hold{in.Token, now, now.Add(time.Duration(in.TtlMillis) * time.Millisecond)}
		return nil
	})
	return &holdfastv1.HoldResponse{}, err
}

func (c *Cluster) hold(id, token string) (Hold, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.holds[holdfast.VolumeID(id)]
	if h.Token != token || !time.Now().Before(h.Until) {
		return h, holdfast.E("", holdfast.Unavailable, "the hold of its writes is over")
	}
	return h, nil
}

// Cut implements the node's service.
func (n *Node) Cut(ctx context.Context, in *holdfastv1.CutRequest, _ ...grpc.CallOption) (*holdfastv1.CutResponse, error) {
	err := n.serveUntil(ctx, "Cut", func() error {
		h, err := n.c.hold(in.VolumeId, in.Token)
		if err != nil {
			return err
		}
		_, err = n.c.swap(ctx, in.VolumeId, func(r *holdfast.Record) (bool, error) {
			x := r.Snapshot(holdfast.SnapshotID(in.SnapshotId))
			if x == nil || x.State != holdfast.SnapshotWanted {
				return false, holdfast.E("", holdfast.Unavailable, "the record shows no such snapshot as wanted")
			}
			n.c.mu.Lock()
			n.c.cuts[x.ID] = Cut{h.From, time.Now()}
			cut := fmt.Sprint("group ", len(n.c.cuts))
			n.c.mu.Unlock()
			r.Epoch++
			next := *x
			next.State, next.Epoch, next.Cut, next.SizeBytes = holdfast.SnapshotReady, r.Epoch, cut, r.SizeBytes
			r.PutSnapshot(next)
			return true, nil
		})
		return err
	})
	return &holdfastv1.CutResponse{}, err
}

// Unhold implements the node's service.
func (n *Node) Unhold(_ context.Context, in *holdfastv1.UnholdRequest, _ ...grpc.CallOption) (*holdfastv1.UnholdResponse, error) {
	err := n.serve("Unhold", func() error {
		if _, err := n.c.hold(in.VolumeId, in.Token); err != nil {
			return err
		}
		n.c.mu.Lock()
		defer n.c.mu.Unlock()
		delete(n.c.holds, holdfast.VolumeID(in.VolumeId))
		return nil
	})
	return &holdfastv1.UnholdResponse{}, err
}
