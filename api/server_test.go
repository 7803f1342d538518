package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	control "github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// lifecycle does to the store what the controller does, without nodes.
type lifecycle struct{ store metadata.Store }

func (l lifecycle) Create(ctx context.Context, name string, spec holdfast.Spec) (holdfast.Record, error) {
	r := holdfast.Record{
		Version: holdfast.RecordVersion, ID: holdfast.NewVolumeID(), Name: name, Created: time.Now(), Spec: spec,
		Phase: holdfast.PhaseReady, SizeBytes: holdfast.RoundUp(spec.SizeBytes), Epoch: 1,
	}
	for i := range spec.Replicas {
		r.Replicas = append(r.Replicas, holdfast.Replica{ID: holdfast.NewReplicaID(), Node: nodeID(i), Pool: holdfast.PoolID("pool" + string(nodeID(i))), State: holdfast.InSync, Since: 1})
	}
	return l.store.CreateVolume(ctx, r)
}

func (l lifecycle) change(ctx context.Context, v string, f func(*holdfast.Record)) (holdfast.Record, error) {
	r, err := l.store.Volume(ctx, v)
	if err != nil {
		return r, err
	}
	f(&r)
	return l.store.SwapVolume(ctx, r)
}

func (l lifecycle) Expand(ctx context.Context, v string, n int64) (holdfast.Record, error) {
	return l.change(ctx, v, func(r *holdfast.Record) { r.Spec.SizeBytes = n })
}

func (l lifecycle) Attach(ctx context.Context, v string, n holdfast.NodeID, _ bool) (holdfast.Record, string, error) {
	if n == "n9" {
		return holdfast.Record{}, "", holdfast.E("attach volume "+v, holdfast.InUse, "node n1 holds it")
	}
	r, err := l.change(ctx, v, func(r *holdfast.Record) {
		r.Epoch++
		r.Primary = &holdfast.Primary{Node: n, Kind: holdfast.ClientPrimary, Grant: r.Epoch}
	})
	return r, "/dev/loop7", err
}

func (l lifecycle) Detach(ctx context.Context, v string, _ bool) (holdfast.Record, error) {
	return l.change(ctx, v, func(r *holdfast.Record) { r.Primary = nil })
}

func (l lifecycle) Delete(ctx context.Context, v string) error {
	r, err := l.store.Volume(ctx, v)
	if err != nil {
		return err
	}
	return l.store.DropVolume(ctx, r, nil)
}

func nodeID(i int) holdfast.NodeID { return holdfast.NodeID([]string{"n1", "n2", "n3"}[i]) }

// node answers as a node's daemon would. Silent ones wait for the caller to go.
type node struct {
	holdfastv1.UnimplementedNodeServiceServer
	silent  bool
	volumes []*holdfastv1.NodeVolume
}

func (n *node) NodeVolumes(ctx context.Context, q *holdfastv1.NodeVolumesRequest) (*holdfastv1.NodeVolumesResponse, error) {
	if n.silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	out := &holdfastv1.NodeVolumesResponse{}
	for _, v := range n.volumes {
		if q.GetVolumeId() == "" || q.GetVolumeId() == v.GetVolumeId() {
			out.Volumes = append(out.Volumes, v)
		}
	}
	return out, nil
}

func (n *node) CheckPool(_ *holdfastv1.CheckPoolRequest, s grpc.ServerStreamingServer[holdfastv1.CheckPoolResponse]) error {
	for i := range int64(3) {
		if err := s.Send(&holdfastv1.CheckPoolResponse{Done: i, Total: 2, Finished: i == 2}); err != nil {
			return err
		}
	}
	return nil
}

type cluster struct {
	store      metadata.Store
	nodes      map[holdfast.NodeID]*node
	conns      *rpc.Conns
	addrs      map[holdfast.NodeID]string
	http, unix string
	groups     *groups
	vol        holdfastv1.VolumeServiceClient
	all        holdfastv1.ClusterServiceClient
}

func (c *cluster) Client(_ context.Context, id holdfast.NodeID) (holdfastv1.NodeServiceClient, error) {
	cc, err := c.conns.Conn(c.addrs[id])
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewNodeServiceClient(cc), nil
}

// newCluster has three living nodes with a pool each and one API server on
// loopback and a Unix socket.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	var cfg rpc.Config
	c := &cluster{store: memory.New(), nodes: map[holdfast.NodeID]*node{}, addrs: map[holdfast.NodeID]string{}, conns: rpc.NewConns(cfg), groups: &groups{made: map[string]control.GroupSnapshot{}}}
	t.Cleanup(func() { _ = c.conns.Close(); _ = c.store.Close() })
	for i := range 3 {
		c.startNode(t, cfg, nodeID(i))
	}
	admin, err := control.New(control.Config{Store: c.store, Nodes: c})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(admin.Close)
	srv, err := api.New(api.Config{Self: "n1", Release: "test", Store: c.store, Lifecycle: lifecycle{c.store}, Snapshots: admin, Groups: c.groups, Schedules: newSchedules(t, c.store, admin), Admin: admin, Nodes: c, Findings: found{}, RPC: cfg, NodeTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	c.unix = "unix://" + filepath.Join(t.TempDir(), "api.sock")
	var ls []net.Listener
	for _, a := range []string{"127.0.0.1:0", c.unix} {
		l, err := cfg.Listen(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		ls = append(ls, l)
	}
	c.http = "http://" + ls[0].Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ls...) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve ended with: %v", err)
		}
	})
	cc, err := c.conns.Conn(ls[0].Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c.vol, c.all = holdfastv1.NewVolumeServiceClient(cc), holdfastv1.NewClusterServiceClient(cc)
	return c
}

func (c *cluster) startNode(t *testing.T, cfg rpc.Config, id holdfast.NodeID) {
	t.Helper()
	l, err := cfg.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := cfg.NewServer()
	c.nodes[id], c.addrs[id] = &node{}, l.Addr().String()
	holdfastv1.RegisterNodeServiceServer(g, c.nodes[id])
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	_, err = c.store.PutNode(t.Context(), holdfast.Node{
		Version: holdfast.NodeVersion, ID: id, Domain: holdfast.Domain{Host: string(id)}, DataAddr: "127.0.0.1:1", APIAddr: l.Addr().String(), Started: time.Now(),
		Pools: []holdfast.Pool{{ID: holdfast.PoolID("pool" + string(id)), Device: "/dev/x", State: holdfast.PoolOnline, TotalBytes: 100 << 30, FreeBytes: 90 << 30}},
	})
	if err != nil {
		t.Fatal(err)
	}
	lease, err := c.store.Join(t.Context(), id, "i", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lease.Close() })
}

func (c *cluster) create(t *testing.T, name string) *holdfastv1.Volume {
	t.Helper()
	v, err := c.vol.CreateVolume(t.Context(), &holdfastv1.CreateVolumeRequest{Name: name, SizeBytes: 1 << 30, Labels: map[string]string{"app": "db"}})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAVolumesLifeOverGRPC(t *testing.T) {
	c := newCluster(t)
	v := c.create(t, "db 1") // a name that needs escaping in URLs
	if v.GetHealth() != api.Healthy || len(v.GetReplicas()) != 3 || v.GetSpec().GetFsType() != "xfs" {
		t.Fatalf("created: %v", v)
	}
	at, err := c.vol.AttachVolume(t.Context(), &holdfastv1.AttachVolumeRequest{Volume: "db 1", Node: "n2"})
	if err != nil || at.GetDevicePath() != "/dev/loop7" || at.GetVolume().GetAttachedTo() != "n2" {
		t.Fatalf("attach: %v, %v", at, err)
	}
	if at, err := c.vol.AttachVolume(t.Context(), &holdfastv1.AttachVolumeRequest{Volume: v.GetId()}); err != nil || at.GetNode() != "n1" {
		t.Errorf("the default node is the one that answers: %v, %v", at, err)
	}
	if v, err := c.vol.ExpandVolume(t.Context(), &holdfastv1.ExpandVolumeRequest{Volume: "db 1", SizeBytes: 2 << 30}); err != nil || v.GetSpec().GetSizeBytes() != 2<<30 {
		t.Errorf("expand: %v, %v", v, err)
	}
	if v, err := c.vol.DetachVolume(t.Context(), &holdfastv1.DetachVolumeRequest{Volume: "db 1"}); err != nil || v.GetAttachedTo() != "" {
		t.Errorf("detach: %v, %v", v, err)
	}
	if v, err := c.vol.UpdateVolumeLabels(t.Context(), &holdfastv1.UpdateVolumeLabelsRequest{Volume: "db 1", Set: map[string]string{"x": "y"}, Remove: []string{"app"}}); err != nil ||
		len(v.GetSpec().GetLabels()) != 1 || v.GetSpec().GetLabels()["x"] != "y" {
		t.Errorf("labels: %v, %v", v, err)
	}
	for _, again := range []string{"first", "second"} {
		if _, err := c.vol.DeleteVolume(t.Context(), &holdfastv1.DeleteVolumeRequest{Volume: v.GetId()}); err != nil {
			t.Errorf("%s delete: %v", again, err)
		}
	}
	if ls, err := c.vol.ListVolumes(t.Context(), &holdfastv1.ListVolumesRequest{}); err != nil || len(ls.GetVolumes()) != 0 {
		t.Errorf("list after delete: %v, %v", ls, err)
	}
}

func TestListFilters(t *testing.T) {
	c := newCluster(t)
	c.create(t, "b")
	c.create(t, "a")
	for name, tc := range map[string]struct {
		q    *holdfastv1.ListVolumesRequest
		want string
	}{
		"all, by name": {&holdfastv1.ListVolumesRequest{}, "a b"},
		"label":        {&holdfastv1.ListVolumesRequest{Labels: map[string]string{"app": "db"}}, "a b"},
		"other label":  {&holdfastv1.ListVolumesRequest{Labels: map[string]string{"app": "web"}}, ""},
		"node":         {&holdfastv1.ListVolumesRequest{Node: "n3"}, "a b"},
		"other node":   {&holdfastv1.ListVolumesRequest{Node: "n4"}, ""},
	} {
		ls, err := c.vol.ListVolumes(t.Context(), tc.q)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, v := range ls.GetVolumes() {
			names = append(names, v.GetName())
		}
		if got := strings.Join(names, " "); got != tc.want {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
	}
}

func TestBadRequestsSayWhatIsWrong(t *testing.T) {
	c := newCluster(t)
	c.create(t, "taken")
	for name, tc := range map[string]struct {
		call func() error
		kind holdfast.Kind
		says string
	}{
		"slash in name": {func() error {
			_, err := c.vol.CreateVolume(t.Context(), &holdfastv1.CreateVolumeRequest{Name: "a/b", SizeBytes: 1 << 30})
			return err
		}, holdfast.Invalid, "slashes"},
		"zero size": {func() error {
			_, err := c.vol.CreateVolume(t.Context(), &holdfastv1.CreateVolumeRequest{Name: "a"})
			return err
		}, holdfast.OutOfRange, "64 TiB"},
		"locality": {func() error {
			_, err := c.vol.CreateVolume(t.Context(), &holdfastv1.CreateVolumeRequest{Name: "a", SizeBytes: 1 << 30, Locality: "near"})
			return err
		}, holdfast.Invalid, "required, preferred or none"},
		"unknown volume": {func() error {
			_, err := c.vol.GetVolume(t.Context(), &holdfastv1.GetVolumeRequest{Volume: "nope"})
			return err
		}, holdfast.NotFound, "holdfast volume list"},
		"held by another": {func() error {
			_, err := c.vol.AttachVolume(t.Context(), &holdfastv1.AttachVolumeRequest{Volume: "taken", Node: "n9"})
			return err
		}, holdfast.InUse, "node n1 holds it"},
		"negative expand": {func() error {
			_, err := c.vol.ExpandVolume(t.Context(), &holdfastv1.ExpandVolumeRequest{Volume: "taken", SizeBytes: -1})
			return err
		}, holdfast.OutOfRange, "new size"},
		"shrink": {func() error {
			_, err := c.vol.ExpandVolume(t.Context(), &holdfastv1.ExpandVolumeRequest{Volume: "taken", SizeBytes: 1 << 20})
			return err
		}, holdfast.OutOfRange, "1 GiB already"},
		"delete nothing": {func() error {
			_, err := c.vol.DeleteVolume(t.Context(), &holdfastv1.DeleteVolumeRequest{})
			return err
		}, holdfast.Invalid, "name the volume"},
		"unknown node": {func() error {
			_, err := c.all.GetNode(t.Context(), &holdfastv1.GetNodeRequest{Node: "n7"})
			return err
		}, holdfast.NotFound, "n1, n2, n3"},
		"forget a living node": {func() error {
			_, err := c.all.ForgetNode(t.Context(), &holdfastv1.ForgetNodeRequest{Node: "n1"})
			return err
		}, holdfast.InUse, "drain"},
	} {
		err := tc.call()
		if holdfast.KindOf(err) != tc.kind || err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v of kind %v, want kind %v with %q", name, err, holdfast.KindOf(err), tc.kind, tc.says)
		}
	}
}

func TestInspectShowsWhatTheNodesSay(t *testing.T) {
	c := newCluster(t)
	v := c.create(t, "db")
	if _, err := c.vol.AttachVolume(t.Context(), &holdfastv1.AttachVolumeRequest{Volume: "db", Node: "n2"}); err != nil {
		t.Fatal(err)
	}
	c.nodes["n2"].volumes = []*holdfastv1.NodeVolume{{VolumeId: v.GetId(), Primary: &holdfastv1.PrimaryStatus{
		Kind: "client", WaitingFor: "space in pool on n3", WaitingMillis: 9000,
		Peers: []*holdfastv1.PeerStatus{{ReplicaId: v.GetReplicas()[2].GetId(), Connected: true, LeftBytes: 4096, CopiedBytes: 8192, TotalBytes: 12288}},
	}}}
	c.nodes["n1"].volumes = []*holdfastv1.NodeVolume{{VolumeId: v.GetId(), Replica: &holdfastv1.ReplicaStatus{ReplicaId: v.GetReplicas()[0].GetId(), AllocatedBytes: 777}}}
	c.nodes["n3"].silent = true // must delay the answer by NodeTimeout only
	start := time.Now()
	got, err := c.vol.GetVolume(t.Context(), &holdfastv1.GetVolumeRequest{Volume: "db"})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("a silent node delayed the answer by %v", took)
	}
	if got.GetHealth() != api.Waiting || got.GetLive().GetWaitingFor() == "" {
		t.Errorf("health %s, live %v: want waiting", got.GetHealth(), got.GetLive())
	}
	if r := got.GetReplicas()[2]; r.GetLeftBytes() != 4096 || !r.GetConnected() {
		t.Errorf("replica on n3: %v", r)
	}
	if r := got.GetReplicas()[0]; r.GetAllocatedBytes() != 777 {
		t.Errorf("replica on n1: %v", r)
	}
	st, err := c.all.GetStatus(t.Context(), &holdfastv1.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if st.GetHealth() != api.Critical || len(st.GetRepairs()) != 1 || st.GetProblems()[0].GetSubject() != "volume db" {
		t.Errorf("status: %v", st)
	}
	if !strings.Contains(st.String(), "does not answer calls") {
		t.Errorf("the silent node is not reported: %v", st.GetProblems())
	}
}

func TestDrainAndUndrain(t *testing.T) {
	c := newCluster(t)
	for range 2 {
		if n, err := c.all.DrainNode(t.Context(), &holdfastv1.DrainNodeRequest{Node: "n2"}); err != nil || n.GetState() != "draining" {
			t.Fatalf("drain: %v, %v", n, err)
		}
	}
	c.create(t, "db")
	if st, err := c.all.GetStatus(t.Context(), &holdfastv1.GetStatusRequest{}); err != nil || len(st.GetProblems()) != 2 ||
		!strings.Contains(st.GetProblems()[1].GetWhat(), "1 replicas are still there") { // the other one: nobody leads here
		t.Errorf("status while draining: %v, %v", st, err)
	}
	if n, err := c.all.UndrainNode(t.Context(), &holdfastv1.UndrainNodeRequest{Node: "n2"}); err != nil || n.GetState() != "ready" || !n.GetAlive() {
		t.Fatalf("undrain: %v, %v", n, err)
	}
}

func TestCheckPoolStreamsAndFindsByPrefix(t *testing.T) {
	c := newCluster(t)
	s, err := c.all.CheckPool(t.Context(), &holdfastv1.CheckPoolRequest{PoolId: "pooln3"})
	if err != nil {
		t.Fatal(err)
	}
	var got int
	for {
		m, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if got++; m.GetFinished() != (got == 3) {
			t.Errorf("message %d: %v", got, m)
		}
	}
	if got != 3 {
		t.Errorf("%d messages, want 3", got)
	}
	s, err = c.all.CheckPool(t.Context(), &holdfastv1.CheckPoolRequest{PoolId: "pool"})
	if err == nil {
		_, err = s.Recv()
	}
	if !errors.Is(err, holdfast.Invalid) {
		t.Errorf("an ambiguous beginning: %v", err)
	}
}

func (c *cluster) rest(t *testing.T, method, path, body string) (int, map[string]any) {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), method, c.http+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var m map[string]any
	if err := json.NewDecoder(resp.Body).Decode(&m); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return resp.StatusCode, m
}

func TestREST(t *testing.T) {
	c := newCluster(t)
	if code, m := c.rest(t, "POST", "/v1/volumes", `{"name":"db 1","sizeBytes":"1073741824"}`); code != 200 || m["health"] != "healthy" {
		t.Fatalf("create: %d %v", code, m)
	}
	if code, m := c.rest(t, "GET", "/v1/volumes/db%201", ""); code != 200 || m["name"] != "db 1" {
		t.Errorf("get: %d %v", code, m)
	}
	code, m := c.rest(t, "GET", "/v1/volumes/nope", "")
	details, _ := m["details"].([]any)
	if code != 404 || len(details) != 1 || !strings.Contains(m["message"].(string), "no such volume") {
		t.Errorf("unknown volume: %d %v", code, m)
	}
	if code, m := c.rest(t, "POST", "/v1/volumes", `{"name":"..","sizeBytes":"1073741824"}`); code != 400 {
		t.Errorf("bad name: %d %v", code, m)
	}
	if code, m := c.rest(t, "GET", "/v1/status", ""); code != 200 || m["health"] == nil {
		t.Errorf("status: %d %v", code, m)
	}
	if code, m := c.rest(t, "GET", "/openapi.json", ""); code != 200 || m["swagger"] != "2.0" {
		t.Errorf("openapi: %d", code)
	}
	if code, m := c.rest(t, "POST", "/v1/pools/pooln1/check", `{}`); code != 200 || m["result"] == nil {
		t.Errorf("pool check: %d %v", code, m)
	}
}

func TestHealthzAndForeignPages(t *testing.T) {
	c := newCluster(t)
	for name, tc := range map[string]struct {
		host, origin string
		want         int
	}{
		"plain":          {"", "", 200},
		"own page":       {"", c.http, 200},
		"localhost":      {"localhost:9811", "", 200},
		"foreign page":   {"", "https://evil.example", 403},
		"rebound name":   {"evil.example", "", 403},
		"rebound, named": {"evil.example:80", "http://evil.example:80", 403},
	} {
		q, err := http.NewRequestWithContext(t.Context(), "GET", c.http+"/healthz", nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Host = tc.host
		if tc.origin != "" {
			q.Header.Set("Origin", tc.origin)
		}
		resp, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != tc.want {
			t.Errorf("%s: got %d, want %d", name, resp.StatusCode, tc.want)
		}
	}
}

func TestGRPCOverTheUnixSocket(t *testing.T) {
	c := newCluster(t)
	cc, err := c.conns.Conn(c.unix)
	if err != nil {
		t.Fatal(err)
	}
	st, err := holdfastv1.NewClusterServiceClient(cc).GetStatus(t.Context(), &holdfastv1.GetStatusRequest{})
	if err != nil || st.GetNodes().GetTotal() != 3 || st.GetNodes().GetWell() != 3 || st.GetAnsweredBy() != "n1" {
		t.Errorf("status: %v, %v", st, err)
	}
}
