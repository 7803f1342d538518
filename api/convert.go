package api

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// volumeProto is a record as users see it, with its health and what the nodes
// say, as far as view has it.
func volumeProto(r *holdfast.Record, nodes nodeIndex, view liveView, now time.Time) *holdfastv1.Volume {
	live := view.primary(r)
	health, problems := volumeHealth(r, nodes, live, now)
	if p := view.unserved(r); p != nil {
		problems = append(problems, p)
		if health == Healthy || health == Degraded {
			health = Waiting
		}
	}
	problems = append(append(problems, slowProblems(r, live)...), scrubProblems(r)...)
	v := &holdfastv1.Volume{
		Waits: waitsOf(r, nodes, view, now), Events: eventsOf(r, view),
		Id: string(r.ID), Name: r.Name, Created: timestamppb.New(r.Created), Spec: specProto(r.Spec),
		Phase: string(r.Phase), Health: health, SizeBytes: r.SizeBytes, Epoch: uint64(r.Epoch),
		AttachedTo: string(r.AttachedTo()), Live: live, Problems: problems, Scrub: scrubProto(r, live),
	}
	if p := r.Primary; p != nil {
		v.Primary = &holdfastv1.Primary{Node: string(p.Node), Kind: string(p.Kind), Grant: uint64(p.Grant)}
	}
	for _, x := range r.Replicas {
		v.Replicas = append(v.Replicas, replicaProto(r, x, nodes, view, live))
	}
	aboutSnapshots(v, r)
	return v
}

func replicaProto(r *holdfast.Record, x holdfast.Replica, nodes nodeIndex, view liveView, live *holdfastv1.PrimaryStatus) *holdfastv1.VolumeReplica {
	p := peer(live, x.ID)
	out := &holdfastv1.VolumeReplica{
		Id: string(x.ID), Node: string(x.Node), Pool: string(x.Pool), State: string(x.State), Since: uint64(x.Since),
		NodeAlive: nodes.alive(x.Node), Connected: p.GetConnected(),
		LeftBytes: p.GetLeftBytes(), CopiedBytes: p.GetCopiedBytes(), RepairBytes: p.GetTotalBytes(), Message: p.GetMessage(),
		AnswerMicros: p.GetAnswerMicros(), Slow: p.GetSlow(),
	}
	if rs := view.volumes[r.ID][x.Node].GetReplica(); rs.GetReplicaId() == string(x.ID) {
		out.AllocatedBytes, out.Failure = rs.GetAllocatedBytes(), rs.GetFailure()
	}
	if f := failedReplica(nodes[x.Node], x.ID); f != nil && nodes.alive(x.Node) && out.Failure == "" {
		out.Failure = f.Why
	}
	return out
}

func specProto(s holdfast.Spec) *holdfastv1.VolumeSpec {
	return &holdfastv1.VolumeSpec{
		SizeBytes: s.SizeBytes, Replicas: int32(s.Replicas), MinInSync: int32(s.MinInSync), FsType: s.FSType,
		Locality: string(s.Locality), LogicalBlock: int32(s.LogicalBlk), Racks: s.Racks, Zones: s.Zones,
		Labels: s.Labels, Parameters: s.Parameters, IoTimeoutMillis: s.IOTimeoutMillis, SlowReplicas: string(s.SlowReplicas),
		Limits: limitsProto(s.Limits),
	}
}

// limitsProto is nil for no limits.
func limitsProto(l holdfast.Limits) *holdfastv1.Limits {
	if l == (holdfast.Limits{}) {
		return nil
	}
	return &holdfastv1.Limits{Iops: l.IOPS, Bandwidth: l.Bandwidth, BurstMillis: l.BurstMillis}
}

func specFrom(q *holdfastv1.CreateVolumeRequest) holdfast.Spec {
	return holdfast.Spec{
		SizeBytes: q.GetSizeBytes(), Replicas: int(q.GetReplicas()), MinInSync: int(q.GetMinInSync()), FSType: q.GetFsType(),
		Locality: holdfast.Locality(q.GetLocality()), LogicalBlk: int(q.GetLogicalBlock()),
		Racks: q.GetRacks(), Zones: q.GetZones(), Labels: q.GetLabels(),
		IOTimeoutMillis: q.GetIoTimeoutMillis(), SlowReplicas: holdfast.SlowPolicy(q.GetSlowReplicas()),
		Limits: holdfast.Limits{IOPS: q.GetLimits().GetIops(), Bandwidth: q.GetLimits().GetBandwidth(), BurstMillis: q.GetLimits().GetBurstMillis()},
	}
}

// placed is what the records put on each node and pool.
type placed struct {
	replicas map[holdfast.NodeID][]string // volumes' names
	attached map[holdfast.NodeID][]string
	inPool   map[holdfast.PoolID]int
}

func place(rs []holdfast.Record) placed {
	p := placed{map[holdfast.NodeID][]string{}, map[holdfast.NodeID][]string{}, map[holdfast.PoolID]int{}}
	for i := range rs {
		r := &rs[i]
		for _, x := range r.Replicas {
			p.replicas[x.Node] = append(p.replicas[x.Node], r.Name)
			p.inPool[x.Pool]++
		}
		if n := r.AttachedTo(); n != "" {
			p.attached[n] = append(p.attached[n], r.Name)
		}
	}
	for _, m := range []map[holdfast.NodeID][]string{p.replicas, p.attached} {
		for _, names := range m {
			slices.Sort(names)
		}
	}
	return p
}

func nodeProto(n holdfast.Node, p placed) *holdfastv1.Node {
	out := &holdfastv1.Node{
		Id: string(n.ID), Alive: n.Alive, State: nodeState(n),
		Domain:      &holdfastv1.Domain{Host: n.Domain.Host, Rack: n.Domain.Rack, Zone: n.Domain.Zone, Region: n.Domain.Region},
		DataAddress: n.DataAddr, ApiAddress: n.APIAddr, Started: timestamppb.New(n.Started), Release: n.Release,
		Replicas: int32(len(p.replicas[n.ID])), Attached: p.attached[n.ID],
	}
	for _, x := range n.Pools {
		out.Pools = append(out.Pools, poolProto(n, x, p))
	}
	if !n.Alive && !n.GoneSince.IsZero() {
		out.GoneSince = timestamppb.New(n.GoneSince)
	}
	return out
}

// failedReplica is what the node registered of a replica that it serves no more;
// nil if it does.
func failedReplica(n holdfast.Node, id holdfast.ReplicaID) *holdfast.FailedReplica {
	for _, p := range n.Pools {
		for i := range p.Failed {
			if p.Failed[i].ID == id {
				return &p.Failed[i]
			}
		}
	}
	return nil
}

// nodeState is a node's state in one word.
func nodeState(n holdfast.Node) string {
	switch {
	case !n.Alive:
		return "dead"
	case n.Draining:
		return "draining"
	case n.Cordoned:
		return "cordoned"
	}
	return "ready"
}

func poolProto(n holdfast.Node, x holdfast.Pool, p placed) *holdfastv1.Pool {
	out := &holdfastv1.Pool{
		Id: string(x.ID), Node: string(n.ID), Device: x.Device, State: string(x.State),
		TotalBytes: x.TotalBytes, FreeBytes: x.FreeBytes, Message: x.Message, Replicas: int32(p.inPool[x.ID]),
	}
	if !n.Alive {
		out.State = "unreachable"
	}
	return out
}

func byName(a, b *holdfastv1.Volume) int { return cmp.Compare(a.GetName(), b.GetName()) }
