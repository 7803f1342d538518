package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/placement"
)

// Source is what a new volume's content is: that of a snapshot, or that of a
// volume at a moment after the call. One of both is set.
type Source struct {
	Snapshot SnapshotRef
	Volume   holdfast.VolumeID
}

func (x Source) String() string {
	if x.Volume != "" {
		return "volume " + string(x.Volume)
	}
	return "snapshot " + x.Snapshot.String()
}

// isOf says whether a volume was made from this source, whichever temporary
// snapshot was between.
func (x Source) isOf(rec holdfast.Record) bool {
	o := rec.Origin
	switch {
	case o == nil:
		return false
	case x.Volume != "":
		return o.Temporary && o.Volume == x.Volume
	}
	return !o.Temporary && x.Snapshot == SnapshotRef{o.Volume, o.Snapshot}
}

// CloneLabel marks the snapshot without a name that is taken of a volume to clone
// it, and names the clone. It is deleted when the clone exists, at the latest by
// reconcile.
const CloneLabel = holdfast.DriverName + "/clone"

// fillFromSource fills in what a clone has from its source unless asked for: size,
// filesystem, block size, number of replicas and locality. The source need not exist any more if the clone does.
func (s *Service) fillFromSource(ctx context.Context, q *CreateRequest) error {
	if q.Source == nil {
		return nil
	}
	rec, err := s.cfg.Store.Volume(ctx, q.Name)
	if err != nil && !errors.Is(err, holdfast.NotFound) {
		return err
	}
	like, least := rec.Spec, int64(0)
	if err != nil || rec.Phase == holdfast.PhaseDeleting || !q.Source.isOf(rec) {
		if like, least, err = s.lookAtSource(ctx, *q.Source); err != nil {
			return err
		}
	}
	want := &q.Spec
	if want.SizeBytes == 0 {
		want.SizeBytes = like.SizeBytes
	}
	if want.FSType == "" {
		want.FSType = like.FSType
	}
	if want.LogicalBlk == 0 {
		want.LogicalBlk = like.LogicalBlk
	}
	if want.Replicas == 0 {
		want.Replicas, want.MinInSync = like.Replicas, cmp.Or(want.MinInSync, like.MinInSync)
	}
	want.Locality = cmp.Or(want.Locality, like.Locality)
	switch {
	case holdfast.RoundUp(want.SizeBytes) < least:
		return tooSmall(want.SizeBytes, *q.Source, least)
	case q.MaxBytes != 0 && want.SizeBytes > q.MaxBytes:
		return holdfast.E("", holdfast.OutOfRange, fmt.Sprintf("%s has %d bytes, more than the limit of %d; allow a larger volume", q.Source, want.SizeBytes, q.MaxBytes))
	case want.FSType != like.FSType:
		return holdfast.E("", holdfast.Invalid, fmt.Sprintf("%s is for the filesystem %s, and a clone is what its source is; ask for that instead of %s, or for none", q.Source, like.FSType, want.FSType))
	case want.LogicalBlk > like.LogicalBlk:
		return holdfast.E("", holdfast.Invalid, fmt.Sprintf("%s has logical blocks of %d bytes, and what was written to it needs them; ask for the same instead of %d", q.Source, like.LogicalBlk, want.LogicalBlk))
	}
	return nil
}

func tooSmall(bytes int64, x Source, least int64) error {
	return holdfast.E("", holdfast.OutOfRange, fmt.Sprintf("%d bytes are less than the %d of %s; a clone has at least its source's size", bytes, least, x))
}

// lookAtSource reads what a clone of the source has to be like, and the least
// bytes it needs. Errors: NotFound; Unavailable while it cannot be cloned yet.
func (s *Service) lookAtSource(ctx context.Context, x Source) (like holdfast.Spec, least int64, err error) {
	src, err := s.sourceVolume(ctx, x)
	if err != nil {
		return like, 0, err
	}
	if x.Volume != "" {
		return src.Spec, src.SizeBytes, nil
	}
	snap, err := readySnapshot(src, x.Snapshot.Snapshot)
	if err != nil {
		return like, 0, err
	}
	like = src.Spec
	if holdfast.RoundUp(like.SizeBytes) != snap.SizeBytes { // it has grown since
		like.SizeBytes = snap.SizeBytes
	}
	return like, snap.SizeBytes, nil
}

func (s *Service) sourceVolume(ctx context.Context, x Source) (holdfast.Record, error) {
	id := x.Volume
	if id == "" {
		id = x.Snapshot.Volume
	}
	src, err := s.cfg.Store.Volume(ctx, string(id))
	switch {
	case errors.Is(err, holdfast.NotFound) || err == nil && src.ID != id:
		return src, holdfast.E("", holdfast.NotFound, fmt.Sprintf("there is no %s to clone", x))
	case err == nil && src.Phase != holdfast.PhaseReady:
		return src, holdfast.Wrap(x.String(), notReady(src))
	}
	return src, err
}

func readySnapshot(src holdfast.Record, id holdfast.SnapshotID) (holdfast.Snapshot, error) {
	switch x := src.Snapshot(id); {
	case x == nil || x.State == holdfast.SnapshotDeleting:
		return holdfast.Snapshot{}, holdfast.E("", holdfast.NotFound, fmt.Sprintf("there is no snapshot %s to clone", SnapshotRef{src.ID, id}))
	case x.State != holdfast.SnapshotReady:
		return *x, holdfast.E("", holdfast.Unavailable, fmt.Sprintf("snapshot %s is not ready yet; try again when it is", SnapshotRef{src.ID, id}))
	default:
		return *x, nil
	}
}

// beginClone stores the record of a clone, in phase Creating. For the content of
// a volume a snapshot is taken first, always a new one: an older one that a failed
// attempt left would lack what was written since.
func (s *Service) beginClone(ctx context.Context, q CreateRequest) (holdfast.Record, error) {
	src, err := s.sourceVolume(ctx, *q.Source)
	if err != nil {
		return holdfast.Record{}, err
	}
	from := q.Source.Snapshot
	temporary := q.Source.Volume != ""
	if temporary {
		if from, err = s.takeTemporary(ctx, src.ID, q.Name); err != nil {
			return holdfast.Record{}, err
		}
	}
	rec, err := s.storeClone(ctx, q, from, temporary)
	if err != nil && temporary && !errors.Is(err, holdfast.Unavailable) {
		s.dropTemporary(ctx, from)
	}
	return rec, err
}

// takeTemporary takes a snapshot without a name of a volume to be cloned. If it
// cannot be had, it is withdrawn.
func (s *Service) takeTemporary(ctx context.Context, src holdfast.VolumeID, clone string) (SnapshotRef, error) {
	ref := SnapshotRef{src, holdfast.NewSnapshotID()}
	_, err := s.update(ctx, src, func(r *holdfast.Record) (bool, error) {
		return s.addSnapshot(r, ref.Snapshot, SnapshotRequest{Labels: map[string]string{CloneLabel: clone}, Max: holdfast.MaxSnapshots})
	})
	if err == nil {
		_, err = s.waitReady(ctx, ref)
	}
	if err != nil {
		s.dropTemporary(ctx, ref)
		return ref, holdfast.Wrap("take a snapshot of volume "+string(src)+" to clone it", err)
	}
	return ref, nil
}

// dropTemporary deletes a snapshot that was taken for a clone. If that fails,
// reconcile does it.
func (s *Service) dropTemporary(ctx context.Context, ref SnapshotRef) {
	ctx, end := s.background(context.WithoutCancel(ctx))
	defer end()
	if err := s.DeleteSnapshot(ctx, ref); err != nil {
		s.cfg.Log.Debug("a snapshot that was taken for a clone could not be deleted; reconcile does it", "snapshot", ref.String(), "err", err)
	}
}

func (s *Service) storeClone(ctx context.Context, q CreateRequest, from SnapshotRef, temporary bool) (holdfast.Record, error) {
	src, err := s.sourceVolume(ctx, Source{Snapshot: from})
	if err != nil {
		return holdfast.Record{}, err
	}
	snap, err := readySnapshot(src, from.Snapshot)
	if err != nil {
		return holdfast.Record{}, err
	}
	rec := s.newRecord(q)
	if rec.SizeBytes < snap.SizeBytes {
		return rec, tooSmall(q.Spec.SizeBytes, *q.Source, snap.SizeBytes)
	}
	rec.SetOrigin(holdfast.Origin{Volume: src.ID, Snapshot: snap.ID, Temporary: temporary})
	where, err := s.site(ctx, rec)
	if err != nil {
		return rec, err
	}
	choices, err := where.choose(placement.Request{Count: q.Spec.Replicas, From: q.From})
	if err != nil {
		return rec, err
	}
	rec.Replicas = newReplicas(choices)
	return s.store(ctx, rec)
}

// site is where a volume's first replicas can go. A clone's can only be where its
// source's are; there are as many as wanted and possible, and the rest is added by
// reconcile, as repaired ones, when the clone is ready.
type site struct {
	cluster placement.Cluster
	spec    holdfast.Spec
	src     *holdfast.Record // nil for a volume that is no clone
}

// site reads what placement needs to know. Errors: NotFound for a source that is
// gone.
func (s *Service) site(ctx context.Context, rec holdfast.Record) (site, error) {
	cluster, err := s.Cluster(ctx)
	x := site{cluster: cluster, spec: rec.Spec}
	if err == nil && rec.Origin != nil {
		var src holdfast.Record
		src, err = s.sourceVolume(ctx, Source{Snapshot: SnapshotRef{rec.Origin.Volume, rec.Origin.Snapshot}})
		x.src = &src
	}
	return x, err
}

func (x site) choose(r placement.Request) ([]placement.Choice, error) {
	r.Cluster, r.Spec = x.cluster, x.spec
	if x.src == nil {
		return placement.Choose(r)
	}
	return chooseBeside(r, *x.src)
}

// chooseBeside chooses among the pools where the source's in-sync replicas are.
func chooseBeside(r placement.Request, src holdfast.Record) ([]placement.Choice, error) {
	var beside []holdfast.Node
	for _, n := range r.Nodes {
		x := src.On(n.ID)
		if x == nil || x.State != holdfast.InSync {
			continue
		}
		n.Pools = slices.DeleteFunc(slices.Clone(n.Pools), func(p holdfast.Pool) bool { return p.ID != x.Pool })
		beside = append(beside, n)
	}
	r.Nodes = beside
	var err error
	for r.Count = min(r.Count, len(beside)); r.Count > 0; r.Count-- {
		var choices []placement.Choice
		if choices, err = placement.Choose(r); err == nil {
			return choices, nil
		}
	}
	if len(r.Existing) > 0 {
		return nil, nil
	}
	kind, why := holdfast.Unavailable, "none is in sync now"
	if err != nil {
		if kind, why = holdfast.KindOf(err), err.Error(); kind == holdfast.Invalid {
			kind = holdfast.NoSpace
		}
	}
	return nil, holdfast.E("place clone", kind, fmt.Sprintf("a clone begins where the replicas of its source, volume %s, are, and no replica can be made there: %s", src.Name, why))
}

// originOf is the replica that a clone's replica is made from, on the same pool.
func (s *Service) originOf(ctx context.Context, rec holdfast.Record, x holdfast.Replica) (holdfast.ReplicaID, error) {
	src, err := s.sourceVolume(ctx, Source{Snapshot: SnapshotRef{rec.Origin.Volume, rec.Origin.Snapshot}})
	if err != nil {
		return "", err
	}
	y := src.On(x.Node)
	if y == nil || y.Pool != x.Pool {
		return "", holdfast.E("", holdfast.NotFound, fmt.Sprintf("volume %s, which is cloned, has no replica on pool %s any more", src.Name, x.Pool))
	}
	return y.ID, nil
}
