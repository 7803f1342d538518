package lifecycle

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// DefaultSnapshotPercent is how much of a pool snapshots may take before none is
// taken any more of the volumes there, unless configured otherwise.
const DefaultSnapshotPercent = 50

// shareTimeout bounds asking the nodes what snapshots take: one that does not
// answer in time is left out, since snapshots are taken also while nodes are away.
const shareTimeout = 2 * time.Second

// admit refuses a snapshot for which there is no room; one that is there already
// needs none. It asks nodes, and is done before anything is held or frozen.
func (s *Service) admit(ctx context.Context, q SnapshotRequest) error {
	rec, err := s.Get(ctx, q.Volume)
	if err != nil || slices.ContainsFunc(rec.Snapshots, func(x holdfast.Snapshot) bool { return x.Name == q.Name }) {
		return err
	}
	return s.roomForSnapshots(ctx, rec)
}

// roomForSnapshots refuses, with kind NoSpace, a new snapshot of a volume when
// snapshots take more than their share of a pool that an in-sync replica is on.
// What they take grows as live data is overwritten, so that the share is a bound
// for new ones, not for writes: these go on.
func (s *Service) roomForSnapshots(ctx context.Context, rec holdfast.Record) error {
	if s.cfg.SnapshotPercent >= 100 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, min(shareTimeout, s.cfg.CallTimeout))
	defer cancel()
	var all sync.WaitGroup
	in := rec.InSyncReplicas()
	full := make([]error, len(in))
	for i, x := range in {
		all.Go(func() {
			err := s.call(ctx, x.Node, func(ctx context.Context, c holdfastv1.NodeServiceClient) error {
				r, err := c.NodeVolumes(ctx, &holdfastv1.NodeVolumesRequest{VolumeId: string(rec.ID)})
				for _, p := range r.GetPools() {
					if p.GetPoolId() == string(x.Pool) {
						full[i] = s.shareTaken(x, p)
					}
				}
				return err
			})
			if err != nil {
				s.cfg.Log.Debug("a node does not say what its snapshots take", "node", string(x.Node), "err", err)
			}
		})
	}
	all.Wait()
	for _, err := range full {
		if err != nil {
			return err
		}
	}
	return nil
}

// shareTaken is the error for a pool of which snapshots take too much.
func (s *Service) shareTaken(x holdfast.Replica, p *holdfastv1.PoolUsage) error {
	limit := p.GetTotalBytes() / 100 * int64(s.cfg.SnapshotPercent)
	if p.GetTotalBytes() == 0 || p.GetSnapshotBytes() <= limit {
		return nil
	}
	return holdfast.E("", holdfast.NoSpace, fmt.Sprintf("snapshots take %d MiB of pool %s on node %s, more than the %d %% (%d MiB) that they may; delete some of the volumes there (holdfast snapshot list), or raise placement.snapshotPercent",
		p.GetSnapshotBytes()>>20, x.Pool, x.Node, s.cfg.SnapshotPercent, limit>>20))
}

// roomForGroup is roomForSnapshots for all members of a group.
func (s *Service) roomForGroup(ctx context.Context, g holdfast.Group) error {
	var all sync.WaitGroup
	errs := make([]error, len(g.Members))
	for i, m := range g.Members {
		all.Go(func() {
			rec, err := s.cfg.Store.Volume(ctx, string(m.Volume))
			if err == nil {
				err = s.roomForSnapshots(ctx, rec)
			}
			errs[i] = holdfast.Wrap("volume "+string(m.Volume), err)
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
