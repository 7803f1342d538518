package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// GetStatus implements the service; see api.proto.
func (s *Server) GetStatus(ctx context.Context, _ *holdfastv1.GetStatusRequest) (*holdfastv1.ClusterStatus, error) {
	const op = "read cluster status"
	cluster, err := s.cfg.Store.Cluster(ctx)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	rs, ns, err := s.everything(ctx)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	leader, err := s.cfg.Store.Leader(ctx)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	var alive []holdfast.NodeID
	for _, n := range ns {
		if n.Alive {
			alive = append(alive, n.ID)
		}
	}
	st := summarise(rs, ns, s.live.read(ctx, "", alive), time.Now())
	st.ClusterId, st.Leader, st.AnsweredBy, st.Release = string(cluster), leader, string(s.cfg.Self), s.cfg.Release
	if leader == "" {
		st.Problems = append(st.Problems, &holdfastv1.Problem{Severity: Warning, Subject: "cluster", What: "no controller leads: lost replicas are not replaced",
			Remedy: "one is elected within seconds while a daemon runs; if this stays, see the daemons' logs"})
	}
	stones, err := s.cfg.Store.Tombstones(ctx)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	st.Waits = append(st.Waits, removals(stones, indexNodes(ns), time.Now())...)
	st.Problems = append(st.Problems, s.findings(ctx, leader)...)
	sortProblems(st.Problems)
	st.Health = worst(st.Problems)
	return st, nil
}

// findings are what the leader's background duties could not mend.
func (s *Server) findings(ctx context.Context, leader string) []*holdfastv1.Problem {
	if s.cfg.Findings == nil || leader == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.NodeTimeout)
	defer cancel()
	fs, err := s.cfg.Findings.Findings(ctx, leader)
	if err != nil {
		s.cfg.Log.Debug("the leader does not say what it found", "leader", leader, "err", err)
		return nil // that it does not answer is said of its node
	}
	var ps []*holdfastv1.Problem
	for _, f := range fs {
		subject := "volume " + f.GetVolume()
		switch {
		case f.GetVolume() == "" && f.GetNode() == "":
			subject = "cluster"
		case f.GetVolume() == "":
			subject = "node " + f.GetNode()
		case f.GetNode() != "":
			subject += " on node " + f.GetNode()
		}
		ps = append(ps, &holdfastv1.Problem{Severity: Warning, Subject: subject, What: f.GetWhat(), Remedy: f.GetRemedy()})
	}
	return ps
}

// summarise is the status that records, nodes and live view make. It is pure.
func summarise(rs []holdfast.Record, ns []holdfast.Node, view liveView, now time.Time) *holdfastv1.ClusterStatus {
	st := &holdfastv1.ClusterStatus{
		Nodes: &holdfastv1.Count{}, Pools: &holdfastv1.Count{}, Volumes: &holdfastv1.Count{},
		Problems: nodeProblems(ns, place(rs), now),
	}
	idx := indexNodes(ns)
	for _, n := range ns {
		count(st.Nodes, n.Alive)
		if n.Alive && !view.answered[n.ID] {
			st.Problems = append(st.Problems, &holdfastv1.Problem{Severity: Warning, Subject: "node " + string(n.ID),
				What: "its lease is alive, but it does not answer calls", Remedy: "check that " + n.APIAddr + " can be reached from here; see the daemon's log"})
		}
		for _, p := range n.Pools {
			count(st.Pools, n.Alive && p.State == holdfast.PoolOnline)
			st.TotalBytes += p.TotalBytes
			if n.Alive {
				st.FreeBytes += p.FreeBytes
			}
		}
	}
	for i := range rs {
		r := &rs[i]
		v := volumeProto(r, idx, view, now)
		count(st.Volumes, v.Health == Healthy)
		st.Problems = append(st.Problems, v.Problems...)
		st.ProvisionedBytes += r.Spec.SizeBytes
		if v.AttachedTo != "" {
			st.Attached++
		}
		st.Repairs = append(st.Repairs, repairs(v)...)
		for _, w := range v.Waits {
			w.Volume = r.Name
			st.Waits = append(st.Waits, w)
		}
		if notable(r.Scrub) {
			st.Scrubs = append(st.Scrubs, &holdfastv1.VolumeScrub{Volume: r.Name, Scrub: v.Scrub})
		}
	}
	return st
}

func count(c *holdfastv1.Count, well bool) {
	c.Total++
	if well {
		c.Well++
	}
}

// repairs lists the replicas of a volume that are being brought up to date.
func repairs(v *holdfastv1.Volume) []*holdfastv1.Repair {
	var out []*holdfastv1.Repair
	for _, x := range v.Replicas {
		if x.State == string(holdfast.Rebuilding) || x.LeftBytes > 0 {
			out = append(out, &holdfastv1.Repair{Volume: v.Name, Replica: x.Id, Node: x.Node,
				LeftBytes: x.LeftBytes, CopiedBytes: x.CopiedBytes, TotalBytes: x.RepairBytes})
		}
	}
	return out
}

// everything reads all records and nodes.
func (s *Server) everything(ctx context.Context) ([]holdfast.Record, []holdfast.Node, error) {
	rs, err := s.cfg.Store.Volumes(ctx)
	if err != nil {
		return nil, nil, err
	}
	ns, err := s.cfg.Store.Nodes(ctx)
	return rs, ns, err
}

// ListNodes implements the service; see api.proto.
func (s *Server) ListNodes(ctx context.Context, _ *holdfastv1.ListNodesRequest) (*holdfastv1.ListNodesResponse, error) {
	rs, ns, err := s.everything(ctx)
	if err != nil {
		return nil, holdfast.Wrap("list nodes", err)
	}
	p := place(rs)
	out := &holdfastv1.ListNodesResponse{}
	for _, n := range ns {
		out.Nodes = append(out.Nodes, nodeProto(n, p))
	}
	return out, nil
}

// GetNode implements the service; see api.proto.
func (s *Server) GetNode(ctx context.Context, q *holdfastv1.GetNodeRequest) (*holdfastv1.Node, error) {
	op := "inspect node " + q.GetNode()
	n, err := s.cfg.Store.Node(ctx, holdfast.NodeID(q.GetNode()))
	if err != nil {
		return nil, s.unknownNode(ctx, op, err)
	}
	// Node does not fill in Alive by its contract; the lease is asked.
	if n.Alive, err = s.cfg.Store.Alive(ctx, n.ID); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	rs, err := s.cfg.Store.Volumes(ctx)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	p := place(rs)
	out := nodeProto(n, p)
	out.ReplicaVolumes = p.replicas[n.ID]
	return out, nil
}

// DrainNode implements the service; see api.proto.
func (s *Server) DrainNode(ctx context.Context, q *holdfastv1.DrainNodeRequest) (*holdfastv1.Node, error) {
	if _, err := s.cfg.Admin.Drain(ctx, holdfast.NodeID(q.GetNode())); err != nil {
		return nil, s.unknownNode(ctx, "drain node "+q.GetNode(), err)
	}
	return s.GetNode(ctx, &holdfastv1.GetNodeRequest{Node: q.GetNode()})
}

// UndrainNode implements the service; see api.proto.
func (s *Server) UndrainNode(ctx context.Context, q *holdfastv1.UndrainNodeRequest) (*holdfastv1.Node, error) {
	if _, err := s.cfg.Admin.Undrain(ctx, holdfast.NodeID(q.GetNode())); err != nil {
		return nil, s.unknownNode(ctx, "undrain node "+q.GetNode(), err)
	}
	return s.GetNode(ctx, &holdfastv1.GetNodeRequest{Node: q.GetNode()})
}

// ForgetNode implements the service; see api.proto.
func (s *Server) ForgetNode(ctx context.Context, q *holdfastv1.ForgetNodeRequest) (*holdfastv1.ForgetNodeResponse, error) {
	f, err := s.cfg.Admin.Forget(ctx, holdfast.NodeID(q.GetNode()))
	if err != nil {
		return nil, s.unknownNode(ctx, "forget node "+q.GetNode(), err)
	}
	out := &holdfastv1.ForgetNodeResponse{Removed: int32(f.Removed), Leaving: int32(f.Leaving)}
	for _, v := range f.Only {
		out.Only = append(out.Only, string(v))
	}
	return out, nil
}

// unknownNode makes a NotFound name the nodes there are.
func (s *Server) unknownNode(ctx context.Context, op string, err error) error {
	if !errors.Is(err, holdfast.NotFound) {
		return err
	}
	msg := "there is no such node"
	if ns, lerr := s.cfg.Store.Nodes(ctx); lerr == nil && len(ns) > 0 {
		var ids []string
		for _, n := range ns[:min(len(ns), 20)] {
			ids = append(ids, string(n.ID))
		}
		msg += "; there are: " + strings.Join(ids, ", ")
	}
	return holdfast.E(op, holdfast.NotFound, msg)
}

// ListPools implements the service; see api.proto.
func (s *Server) ListPools(ctx context.Context, q *holdfastv1.ListPoolsRequest) (*holdfastv1.ListPoolsResponse, error) {
	rs, ns, err := s.everything(ctx)
	if err != nil {
		return nil, holdfast.Wrap("list pools", err)
	}
	p := place(rs)
	out := &holdfastv1.ListPoolsResponse{}
	for _, n := range ns {
		if q.GetNode() != "" && q.GetNode() != string(n.ID) {
			continue
		}
		for _, x := range n.Pools {
			out.Pools = append(out.Pools, poolProto(n, x, p))
		}
	}
	return out, nil
}

// CheckPool implements the service: it passes on what the pool's node says.
// The pool may be named by the beginning of its id, if that is unique.
func (s *Server) CheckPool(q *holdfastv1.CheckPoolRequest, out grpc.ServerStreamingServer[holdfastv1.CheckPoolResponse]) error {
	op := "check pool " + q.GetPoolId()
	ctx := out.Context()
	node, pool, err := s.findPool(ctx, op, q.GetPoolId())
	if err != nil {
		return err
	}
	c, err := s.cfg.Nodes.Client(ctx, node)
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	in, err := c.CheckPool(ctx, &holdfastv1.CheckPoolRequest{PoolId: string(pool)})
	if err != nil {
		return holdfast.Wrap(op+" on node "+string(node), err)
	}
	for {
		m, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return holdfast.Wrap(op+" on node "+string(node), err)
		}
		if err := out.Send(m); err != nil {
			return holdfast.Wrap(op, err)
		}
	}
}

func (s *Server) findPool(ctx context.Context, op, prefix string) (holdfast.NodeID, holdfast.PoolID, error) {
	ns, err := s.cfg.Store.Nodes(ctx)
	if err != nil {
		return "", "", holdfast.Wrap(op, err)
	}
	type at struct {
		node holdfast.Node
		pool holdfast.PoolID
	}
	var found []at
	for _, n := range ns {
		for _, p := range n.Pools {
			if prefix != "" && strings.HasPrefix(string(p.ID), prefix) {
				found = append(found, at{n, p.ID})
			}
		}
	}
	if i := slices.IndexFunc(found, func(a at) bool { return string(a.pool) == prefix }); i >= 0 {
		found = found[i : i+1]
	}
	switch {
	case len(found) == 0:
		return "", "", holdfast.E(op, holdfast.NotFound, "there is no such pool; holdfast pool list shows those there are")
	case len(found) > 1:
		return "", "", holdfast.E(op, holdfast.Invalid, fmt.Sprintf("%d pools begin with %s; give more of the id", len(found), prefix))
	case !found[0].node.Alive:
		return "", "", holdfast.E(op, holdfast.Unavailable, deadNodes([]string{string(found[0].node.ID)})+"; start its daemon, then check again")
	}
	return found[0].node.ID, found[0].pool, nil
}
