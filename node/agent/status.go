package agent

import (
	"context"
	"slices"
	"strings"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/ask"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// NodeVolumes says how the volumes served or stored here are, and what lately
// happened to them here, ordered by id; an empty id means all. A volume that is
// neither is shown only if asked for by its id, for what happened.
func (a *Agent) NodeVolumes(only holdfast.VolumeID) ([]*holdfastv1.NodeVolume, error) {
	byID := map[holdfast.VolumeID]*holdfastv1.NodeVolume{}
	get := func(id holdfast.VolumeID) *holdfastv1.NodeVolume {
		v := byID[id]
		if v == nil {
			v = &holdfastv1.NodeVolume{VolumeId: string(id)}
			byID[id] = v
		}
		return v
	}
	for _, x := range a.serving() {
		if only == "" || only == x.id {
			get(x.id).Primary = primaryStatus(x)
		}
	}
	for _, p := range a.openedPools() {
		for _, r := range a.stored(p.pool, only) {
			if r.Volume != "" && (only == "" || only == r.Volume) {
				get(r.Volume).Replica = replicaStatus(p.id, r)
			}
		}
	}
	for id, ws := range a.Waits(only) {
		v := get(id)
		for _, w := range ws {
			v.Waits = append(v.Waits, &holdfastv1.Wait{What: w.What, WaitingFor: w.For, Millis: w.Long.Milliseconds(), Node: string(w.Node)})
		}
	}
	if only != "" && len(a.Events(only)) > 0 {
		get(only)
	}
	all := make([]*holdfastv1.NodeVolume, 0, len(byID))
	for id, v := range byID {
		for _, e := range a.Events(id) {
			v.Events = append(v.Events, &holdfastv1.NodeEvent{UnixNanos: e.At.UnixNano(), What: e.What})
		}
		all = append(all, v)
	}
	slices.SortFunc(all, func(x, y *holdfastv1.NodeVolume) int { return strings.Compare(x.GetVolumeId(), y.GetVolumeId()) })
	return all, nil
}

// stored is what a pool holds, of a volume or of all. When its disk fails, that must
// not hide what is on the others, nor which of its own failed.
func (a *Agent) stored(p Pool, only holdfast.VolumeID) []Stored {
	stored, err := a.listed(p, only)
	if err != nil {
		for _, f := range p.Info().Failed {
			stored = append(stored, Stored{Volume: f.Volume, Replica: f.ID, Failure: f.Why})
		}
	}
	return stored
}

func replicaStatus(pool holdfast.PoolID, r Stored) *holdfastv1.ReplicaStatus {
	s := &holdfastv1.ReplicaStatus{
		ReplicaId: string(r.Replica), PoolId: string(pool),
		AllocatedBytes: r.AllocatedBytes, PromisedEpoch: uint64(r.Promised),
		Failure: r.Failure,
	}
	for _, x := range r.Snapshots {
		s.Snapshots = append(s.Snapshots, &holdfastv1.SnapshotUsage{SnapshotId: string(x.ID), HeldBytes: x.HeldBytes, AllocatedBytes: x.AllocatedBytes})
	}
	return s
}

// listing is what a pool says of its replicas.
type listing struct {
	stored []Stored
	err    error
}

// listed is what a pool holds, of a volume or of all, as it was last known when its
// disk does not answer.
func (a *Agent) listed(p Pool, only holdfast.VolumeID) ([]Stored, error) {
	of, all := a.questions(p, only)
	l, silent := of.Ask(func() listing {
		stored, err := p.Replicas(Named{Volume: only})
		return listing{stored, err}
	})
	if only != "" && silent.IsZero() {
		a.mu.Lock()
		for _, s := range a.pools {
			if s.pool == p && s.single[only] == of {
				delete(s.single, only)
			}
		}
		a.mu.Unlock()
	}
	if l.stored == nil && !silent.IsZero() {
		l = all.Last()
	}
	return slices.Clone(l.stored), l.err
}

// questions are those for a volume's replicas on a pool, and for all.
func (a *Agent) questions(p Pool, only holdfast.VolumeID) (of, all *ask.Question[listing]) {
	a.mu.Lock()
	defer a.mu.Unlock()
	of, all = &ask.Question[listing]{}, &ask.Question[listing]{}
	for _, s := range a.pools {
		if s.pool != p {
			continue
		}
		if s.listing == nil {
			s.listing, s.single = all, map[holdfast.VolumeID]*ask.Question[listing]{}
		}
		all = s.listing
		if only != "" && s.single[only] == nil {
			s.single[only] = of
		}
		if only != "" {
			of = s.single[only]
		}
	}
	if only == "" {
		of = all
	}
	return of, all
}

// served is one primary of this node.
type served struct {
	id   holdfast.VolumeID
	kind holdfast.PrimaryKind
	path string
	vol  Volume
}

func (a *Agent) serving() []served {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []served
	for id, s := range a.volumes {
		if s.vol == nil {
			continue
		}
		x := served{id: id, kind: holdfast.ClientPrimary, vol: s.vol}
		if s.dev != nil {
			x.path = s.dev.Path()
		}
		all = append(all, x)
	}
	for id, u := range a.upkeep {
		if u.vol != nil {
			all = append(all, served{id: id, kind: holdfast.MaintenancePrimary, vol: u.vol})
		}
	}
	return all
}

// CheckPool verifies everything that a pool of this node holds and lists what is
// wrong.
func (a *Agent) CheckPool(ctx context.Context, id holdfast.PoolID, progress func(done, total int64)) ([]string, error) {
	p, err := a.findPool(id)
	if err != nil {
		return nil, err
	}
	problems, err := p.Check(ctx, progress)
	return problems, holdfast.Wrap("check pool "+string(id), err)
}

func primaryStatus(x served) *holdfastv1.PrimaryStatus {
	s := x.vol.Status()
	p := &holdfastv1.PrimaryStatus{
		Kind: string(x.kind), State: s.State, WaitingFor: s.WaitingFor, WaitingMillis: s.Waiting.Milliseconds(),
		DevicePath: x.path, Epoch: uint64(s.Epoch),
		FailedWrites: int64(s.FailedWrites), Expired: s.Counters.Expired,
		Reads: s.Counters.Reads, Writes: s.Counters.Writes, ReadBytes: s.Counters.ReadBytes, WriteBytes: s.Counters.WriteBytes,
	}
	if x := s.Scrub; x.ID != "" {
		p.Scrub = &holdfastv1.ScrubStatus{Id: x.ID, State: string(x.State), WaitingFor: x.WaitingFor, DoneBytes: x.DoneBytes, TotalBytes: x.TotalBytes,
			Blocks: x.Blocks, Mismatches: x.Mismatches, Healed: x.Healed, Unhealed: x.Unhealed, TookMillis: x.Took.Milliseconds()}
	}
	for _, r := range s.Peers {
		p.Peers = append(p.Peers, &holdfastv1.PeerStatus{
			ReplicaId: string(r.Replica.ID), NodeId: string(r.Replica.Node), State: string(r.Replica.State), Connected: r.Connected,
			LeftBytes: r.LeftBytes, CopiedBytes: r.CopiedBytes, TotalBytes: r.TotalBytes, Message: r.Message,
			AnswerMicros: r.Answers.Microseconds(), Slow: r.Slow,
		})
	}
	return p
}
