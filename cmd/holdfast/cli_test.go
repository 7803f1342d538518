package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"
	"sigs.k8s.io/yaml"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// server answers with fixed things and notes what it was asked.
type server struct {
	holdfastv1.UnimplementedVolumeServiceServer
	holdfastv1.UnimplementedClusterServiceServer
	created  *holdfastv1.CreateVolumeRequest
	expanded *holdfastv1.ExpandVolumeRequest
	labelled *holdfastv1.UpdateVolumeLabelsRequest
	policy   *holdfastv1.UpdateVolumePolicyRequest
	scrubbed *holdfastv1.ScrubVolumeRequest
	deleted  string
	inspects int
}

func (s *server) CreateVolume(_ context.Context, q *holdfastv1.CreateVolumeRequest) (*holdfastv1.Volume, error) {
	s.created = q
	v := example()
	v.Name, v.Spec.SizeBytes = q.GetName(), q.GetSizeBytes()
	return v, nil
}

func (s *server) ListVolumes(context.Context, *holdfastv1.ListVolumesRequest) (*holdfastv1.ListVolumesResponse, error) {
	return &holdfastv1.ListVolumesResponse{Volumes: []*holdfastv1.Volume{example()}}, nil
}

func (s *server) GetVolume(_ context.Context, q *holdfastv1.GetVolumeRequest) (*holdfastv1.Volume, error) {
	if q.GetVolume() != "db-1" && q.GetVolume() != "mending" {
		return nil, holdfast.E("inspect volume "+q.GetVolume(), holdfast.NotFound, "there is no such volume")
	}
	v := example()
	if q.GetVolume() == "mending" && s.mended() {
		v.Health, v.Replicas[2].State, v.Replicas[2].LeftBytes = "healthy", "in-sync", 0
	}
	return v, nil
}

// mended is true from the third time on.
func (s *server) mended() bool {
	s.inspects++
	return s.inspects > 2
}

func (s *server) ExpandVolume(_ context.Context, q *holdfastv1.ExpandVolumeRequest) (*holdfastv1.Volume, error) {
	s.expanded = q
	v := example()
	v.Spec.SizeBytes = q.GetSizeBytes()
	return v, nil
}

func (s *server) AttachVolume(context.Context, *holdfastv1.AttachVolumeRequest) (*holdfastv1.AttachVolumeResponse, error) {
	return nil, holdfast.E("attach volume db-1", holdfast.InUse, "node n4 holds it")
}

func (s *server) DetachVolume(context.Context, *holdfastv1.DetachVolumeRequest) (*holdfastv1.Volume, error) {
	return example(), nil
}

func (s *server) DeleteVolume(_ context.Context, q *holdfastv1.DeleteVolumeRequest) (*holdfastv1.DeleteVolumeResponse, error) {
	s.deleted = q.GetVolume()
	return &holdfastv1.DeleteVolumeResponse{}, nil
}

func (s *server) UpdateVolumeLabels(_ context.Context, q *holdfastv1.UpdateVolumeLabelsRequest) (*holdfastv1.Volume, error) {
	s.labelled = q
	return example(), nil
}

func (s *server) GetStatus(context.Context, *holdfastv1.GetStatusRequest) (*holdfastv1.ClusterStatus, error) {
	return &holdfastv1.ClusterStatus{
		ClusterId: "c0ffee00c0ffee00", Health: "warning", Leader: "n1", AnsweredBy: "n1", Release: "test",
		Nodes: &holdfastv1.Count{Total: 4, Well: 3}, Pools: &holdfastv1.Count{Total: 3, Well: 3}, Volumes: &holdfastv1.Count{Total: 1},
		Repairs:  []*holdfastv1.Repair{{Volume: "db-1", Node: "n3", LeftBytes: 4096, CopiedBytes: 8192, TotalBytes: 12288}},
		Problems: []*holdfastv1.Problem{{Severity: "warning", Subject: "node n4", What: "its daemon does not answer", Remedy: "start it"}},
	}, nil
}

func (s *server) ListNodes(context.Context, *holdfastv1.ListNodesRequest) (*holdfastv1.ListNodesResponse, error) {
	return &holdfastv1.ListNodesResponse{Nodes: []*holdfastv1.Node{exampleNode()}}, nil
}

func (s *server) GetNode(context.Context, *holdfastv1.GetNodeRequest) (*holdfastv1.Node, error) {
	return exampleNode(), nil
}

func (s *server) DrainNode(context.Context, *holdfastv1.DrainNodeRequest) (*holdfastv1.Node, error) {
	return exampleNode(), nil
}

func (s *server) UndrainNode(context.Context, *holdfastv1.UndrainNodeRequest) (*holdfastv1.Node, error) {
	return exampleNode(), nil
}

func (s *server) ForgetNode(context.Context, *holdfastv1.ForgetNodeRequest) (*holdfastv1.ForgetNodeResponse, error) {
	return &holdfastv1.ForgetNodeResponse{Removed: 2, Only: []string{"db-9"}}, nil
}

func (s *server) ListPools(context.Context, *holdfastv1.ListPoolsRequest) (*holdfastv1.ListPoolsResponse, error) {
	return &holdfastv1.ListPoolsResponse{Pools: exampleNode().GetPools()}, nil
}

func (s *server) CheckPool(q *holdfastv1.CheckPoolRequest, out grpc.ServerStreamingServer[holdfastv1.CheckPoolResponse]) error {
	if err := out.Send(&holdfastv1.CheckPoolResponse{Done: 1, Total: 2}); err != nil {
		return err
	}
	last := &holdfastv1.CheckPoolResponse{Done: 2, Total: 2, Finished: true}
	if q.GetPoolId() == "bad" {
		last.Problems = []string{"replicas/x/data: block 7 is wrong"}
	}
	return out.Send(last)
}

func example() *holdfastv1.Volume {
	v := &holdfastv1.Volume{
		Id: "0123456789abcdef0123456789abcdef", Name: "db-1", Created: timestamppb.New(time.Now().Add(-2 * time.Hour)), Phase: "ready", Health: "degraded",
		SizeBytes: 10 << 30, Epoch: 7, AttachedTo: "n4", Primary: &holdfastv1.Primary{Node: "n4", Kind: "client", Grant: 6},
		Spec: &holdfastv1.VolumeSpec{SizeBytes: 10 << 30, Replicas: 3, MinInSync: 1, FsType: "xfs", Locality: "preferred", LogicalBlock: 4096, Labels: map[string]string{"app": "shop"}},
		Live: &holdfastv1.PrimaryStatus{Kind: "client", State: "serving", DevicePath: "/dev/loop7", Reads: 5, Writes: 6, ReadBytes: 4096, WriteBytes: 1 << 20,
			WaitingFor: "replica on n3", WaitingMillis: 1200},
		Problems: []*holdfastv1.Problem{{Severity: "warning", Subject: "volume db-1", What: "2 of 3 replicas in sync", Remedy: "wait"}},
	}
	for i, n := range []string{"n1", "n2", "n3"} {
		v.Replicas = append(v.Replicas, &holdfastv1.VolumeReplica{Id: "r" + n, Node: n, Pool: "aaaabbbbcccc", State: "in-sync", Since: uint64(i), NodeAlive: true, Connected: true, AllocatedBytes: 1 << 20})
	}
	v.Replicas[2].State, v.Replicas[2].LeftBytes, v.Replicas[2].CopiedBytes, v.Replicas[2].RepairBytes = "rebuilding", 1<<20, 3<<20, 4<<20
	return v
}

func exampleNode() *holdfastv1.Node {
	return &holdfastv1.Node{
		Id: "n1", Alive: true, State: "ready", Domain: &holdfastv1.Domain{Host: "n1", Rack: "r1", Zone: "a"}, DataAddress: "10.0.0.1:9810", ApiAddress: "10.0.0.1:9812",
		Started: timestamppb.New(time.Now().Add(-time.Minute)), Release: "test", Replicas: 3, Attached: []string{"db-1"}, ReplicaVolumes: []string{"db-1", "logs"},
		Pools: []*holdfastv1.Pool{{Id: "aaaabbbbcccc", Node: "n1", Device: "/dev/sdb", State: "online", TotalBytes: 100 << 30, FreeBytes: 60 << 30, Replicas: 3}},
	}
}

// serve starts the server and returns its endpoint.
func serve(t *testing.T) (*server, string) {
	t.Helper()
	s := &server{}
	endpoint := "unix://" + filepath.Join(t.TempDir(), "a.sock")
	var cfg rpc.Config
	l, err := cfg.Listen(t.Context(), endpoint)
	if err != nil {
		t.Fatal(err)
	}
	g := cfg.NewLocalServer()
	holdfastv1.RegisterVolumeServiceServer(g, s)
	holdfastv1.RegisterClusterServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	return s, endpoint
}

// do runs a command line against an endpoint.
func do(t *testing.T, endpoint string, args ...string) (code int, out, errout string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), append([]string{"--endpoint", endpoint, "--timeout", "5s"}, args...), strings.NewReader(""), &o, &e)
	return code, o.String(), e.String()
}

func TestEveryCommandShowsWhatMatters(t *testing.T) {
	_, at := serve(t)
	for line, wants := range map[string][]string{
		"status":                          {"Cluster c0ffee00: warning", "4, 3 of them alive", "3, all online", "volume db-1 on node n3: 8 KiB copied, 4 KiB left", "warning: node n4: its daemon does not answer", "do: start it"},
		"volume list":                     {"NAME", "db-1", "10 GiB", "2/3", "degraded", "n4", "n1, n2, n3", "2h0m"},
		"volume inspect db-1":             {"Volume db-1: degraded", "n4 as /dev/loop7", "client primary, granted in epoch 6): serving", "6 writes (1 MiB) since it serves", "for replica on n3, since 1.2s", "app=shop", "rebuilding", "3 MiB copied, 1 MiB left", "do: wait"},
		"volume inspect --watch mending":  {"Volume db-1: healthy"},
		"volume create db-1 -s 10GiB":     {"Volume db-1 (10 GiB, 3 replicas on n1, n2, n3) is ready"},
		"volume expand db-1 +1GiB":        {"grows from 10 GiB to 11 GiB"},
		"volume detach db-1":              {"is detached"},
		"volume delete -y db-1":           {"is deleted"},
		"volume label db-1 a=b c-":        {"app=shop"},
		"node list":                       {"n1", "ready", "a/r1", "60 GiB"},
		"node inspect n1":                 {"Node n1: ready", "rack r1, zone a, region -", "db-1, logs", "/dev/sdb"},
		"node drain n1":                   {"3 replicas to move away"},
		"node undrain n1":                 {"Node n1 is ready"},
		"node forget -y n1":               {"2 replicas to be made again", "bring the node back", "db-9"},
		"pool list":                       {"aaaabbbb", "online", "/dev/sdb"},
		"pool check aaaa":                 {"is sound"},
		"version":                         {"holdfast "},
		"completion bash":                 {"holdfast"},
		"__complete volume inspect ":      {"db-1"},
		"__complete node drain ":          {"n1"},
		"volume list -o json":             {`"name": "db-1"`},
		"volume inspect -o yaml db-1":     {"health: degraded"},
		"node forget -y n1 --output json": {`"only"`},
		"volume":                          {"Usage:", "inspect"},
		"node --help":                     {"embedded-etcd", "drain"},
	} {
		code, out, errout := do(t, at, strings.Fields(line)...)
		if strings.HasPrefix(line, "__complete") {
			line = strings.TrimSpace(line)
			code, out, errout = do(t, at, append(strings.Fields(line), "")...)
		}
		if code != exitOK {
			t.Errorf("%s: exit %d: %s", line, code, errout)
			continue
		}
		for _, w := range wants {
			if !strings.Contains(out, w) {
				t.Errorf("%s: %q is missing in:\n%s", line, w, out)
			}
		}
	}
}

func TestMachineOutputParses(t *testing.T) {
	_, at := serve(t)
	for _, line := range []string{"status", "volume list", "volume inspect db-1", "node list", "node inspect n1", "pool list", "pool check aaaa"} {
		var v map[string]any
		if _, out, _ := do(t, at, append(strings.Fields(line), "-o", "json")...); json.Unmarshal([]byte(out), &v) != nil {
			t.Errorf("%s: no JSON:\n%s", line, out)
		}
		if _, out, _ := do(t, at, append(strings.Fields(line), "-o", "yaml")...); yaml.Unmarshal([]byte(out), &v) != nil {
			t.Errorf("%s: no YAML:\n%s", line, out)
		}
	}
}

func TestMistakesSayWhatToDoAndHaveTheirExitCode(t *testing.T) {
	_, at := serve(t)
	for line, tc := range map[string]struct {
		code int
		says string
	}{
		"volume create db-1":                {exitUsage, "--size 10GiB"},
		"volume create":                     {exitUsage, "NAME is missing"},
		"volume create a b -s 1G":           {exitUsage, "one argument too many"},
		"volume create a -s 10XB":           {exitUsage, "unknown unit"},
		"volume creat a":                    {exitUsage, "did you mean create?"},
		"volum list":                        {exitUsage, "volume"},
		"node ddrain n1":                    {exitUsage, "did you mean drain"},
		"node":                              {exitUsage, "--config FILE"},
		"node --config /nonexistent":        {exitUsage, "/nonexistent"},
		"node --embedded-etcd --pool x,fmt": {exitUsage, "PATH[,format]"},
		"volume inspect nope":               {exitNotFound, "no such volume"},
		"volume attach db-1":                {exitConflict, "node n4 holds it"},
		"volume delete db-1":                {exitUsage, "--yes"},
		"node forget n1":                    {exitUsage, "--yes"},
		"status --check":                    {exitUnhealthy, ""},
		"status --nope":                     {exitUsage, "--help"},
		"status -o xml":                     {exitUsage, "table, json or yaml"},
		"volume label db-1 x":               {exitUsage, "key=value"},
		"pool check bad":                    {exitFailed, "1 problems found"},
	} {
		code, _, errout := do(t, at, strings.Fields(line)...)
		if code != tc.code || !strings.Contains(errout, tc.says) {
			t.Errorf("%s: exit %d (want %d), want %q in:\n%s", line, code, tc.code, tc.says, errout)
		}
	}
}

func TestNoDaemonSaysHowToStartOne(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	for _, at := range []string{addr, "unix://" + filepath.Join(t.TempDir(), "nobody.sock")} {
		code, _, errout := do(t, at, "status")
		if code != exitUnavailable || !strings.Contains(errout, "holdfast node --config") || !strings.Contains(errout, endpointVar) {
			t.Errorf("at %s: exit %d:\n%s", at, code, errout)
		}
	}
}

func TestRequestsCarryTheFlags(t *testing.T) {
	s, at := serve(t)
	if code, _, errout := do(t, at, strings.Fields("volume create logs --size 1.5T --replicas 2 --fs ext4 --zone a,b --label app=x,tier=y --locality required --logical-block 512 --min-in-sync 2")...); code != 0 {
		t.Fatal(errout)
	}
	q := s.created
	if q.GetSizeBytes() != 3<<39 || q.GetReplicas() != 2 || q.GetFsType() != "ext4" || len(q.GetZones()) != 2 || q.GetLabels()["tier"] != "y" ||
		q.GetLocality() != "required" || q.GetLogicalBlock() != 512 || q.GetMinInSync() != 2 {
		t.Errorf("created with %v", q)
	}
	do(t, at, "volume", "expand", "db-1", "+5GiB")
	if s.expanded.GetSizeBytes() != 15<<30 {
		t.Errorf("expanded with %v", s.expanded)
	}
	do(t, at, "volume", "label", "db-1", "a=b=c", "old-")
	if s.labelled.GetSet()["a"] != "b=c" || len(s.labelled.GetRemove()) != 1 {
		t.Errorf("labelled with %v", s.labelled)
	}
	if do(t, at, "volume", "delete", "db-1"); s.deleted != "" {
		t.Error("deleted without being asked to go ahead")
	}
}

func TestBarOnATerminalAndElsewhere(t *testing.T) {
	var b bytes.Buffer
	p := newBar(&b, "check")
	for i := range int64(101) {
		p.set(i, 100, "")
	}
	p.end()
	if n := strings.Count(b.String(), "\n"); n != 2 { // the first and the last
		t.Errorf("%d lines, want 2:\n%s", n, b.String())
	}
	if !strings.Contains(b.String(), "100%") {
		t.Errorf("the end is not shown:\n%s", b.String())
	}
}
