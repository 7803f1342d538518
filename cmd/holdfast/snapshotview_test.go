package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// snapshotServer answers with fixed snapshots and schedules.
type snapshotServer struct {
	holdfastv1.UnimplementedVolumeServiceServer
	holdfastv1.UnimplementedSnapshotServiceServer
	holdfastv1.UnimplementedScheduleServiceServer
	created *holdfastv1.CreateScheduleRequest
}

func (s *snapshotServer) GetVolume(_ context.Context, q *holdfastv1.GetVolumeRequest) (*holdfastv1.Volume, error) {
	v := example()
	switch q.GetVolume() {
	case "db":
		v.Name, v.Snapshots, v.Restoring = "db", 12, "snap-3"
	case "clone", "late":
		v.Name = "clone"
		v.Origin = &holdfastv1.VolumeOrigin{VolumeId: "db", SnapshotId: "db.snap-3"}
		if q.GetVolume() == "late" {
			v.Origin = &holdfastv1.VolumeOrigin{VolumeId: "gone", SnapshotId: "gone.x"}
		}
	case "copy":
		v.Origin = &holdfastv1.VolumeOrigin{VolumeId: "db", SnapshotId: "db.y", Temporary: true}
	default:
		return nil, holdfast.E("inspect volume "+q.GetVolume(), holdfast.NotFound, "there is no such volume")
	}
	return v, nil
}

func exampleSnapshot(i int) *holdfastv1.Snapshot {
	name := fmt.Sprint("snap-", i)
	return &holdfastv1.Snapshot{Id: "db." + name, Name: name, Volume: "db", VolumeId: "db", State: "ready", SizeBytes: 1 << 30, Created: timestamppb.New(time.Now())}
}

func (s *snapshotServer) ListSnapshots(context.Context, *holdfastv1.ListSnapshotsRequest) (*holdfastv1.ListSnapshotsResponse, error) {
	out := &holdfastv1.ListSnapshotsResponse{}
	for i := range 12 {
		out.Snapshots = append(out.Snapshots, exampleSnapshot(i))
	}
	return out, nil
}

func (s *snapshotServer) GetSnapshot(_ context.Context, q *holdfastv1.GetSnapshotRequest) (*holdfastv1.Snapshot, error) {
	if strings.TrimPrefix(q.GetSnapshot(), "db.") != "snap-3" {
		return nil, holdfast.E("inspect snapshot", holdfast.NotFound, "there is no such snapshot")
	}
	return exampleSnapshot(3), nil
}

func (s *snapshotServer) ListSnapshotRanges(q *holdfastv1.ListSnapshotRangesRequest, out grpc.ServerStreamingServer[holdfastv1.SnapshotRanges]) error {
	if q.GetSnapshot() == "same" {
		return out.Send(&holdfastv1.SnapshotRanges{SizeBytes: 1 << 30})
	}
	for i := range int64(3) { // three messages of ten
		m := &holdfastv1.SnapshotRanges{SizeBytes: 1 << 30, ExclusiveBytes: 4096}
		for j := range int64(10) {
			m.Ranges = append(m.Ranges, &holdfastv1.ByteRange{Offset: (i*10 + j) << 20, Length: 64 << 10})
		}
		if err := out.Send(m); err != nil {
			return err
		}
	}
	return nil
}

func (s *snapshotServer) CreateSchedule(_ context.Context, q *holdfastv1.CreateScheduleRequest) (*holdfastv1.Schedule, error) {
	s.created = q
	return exampleSchedule(), nil
}

func (s *snapshotServer) ListSchedules(context.Context, *holdfastv1.ListSchedulesRequest) (*holdfastv1.ListSchedulesResponse, error) {
	return &holdfastv1.ListSchedulesResponse{Schedules: []*holdfastv1.Schedule{exampleSchedule()}}, nil
}

func (s *snapshotServer) GetSchedule(context.Context, *holdfastv1.GetScheduleRequest) (*holdfastv1.Schedule, error) {
	x := exampleSchedule()
	x.Problem, x.Snapshots = "volume db: it is full", []*holdfastv1.Snapshot{exampleSnapshot(3)}
	return x, nil
}

func (s *snapshotServer) PauseSchedule(_ context.Context, q *holdfastv1.PauseScheduleRequest) (*holdfastv1.Schedule, error) {
	return &holdfastv1.Schedule{Name: q.GetSchedule(), Paused: true}, nil
}

func (s *snapshotServer) ResumeSchedule(_ context.Context, q *holdfastv1.ResumeScheduleRequest) (*holdfastv1.Schedule, error) {
	return &holdfastv1.Schedule{Name: q.GetSchedule()}, nil
}

func (s *snapshotServer) DeleteSchedule(context.Context, *holdfastv1.DeleteScheduleRequest) (*holdfastv1.DeleteScheduleResponse, error) {
	return &holdfastv1.DeleteScheduleResponse{}, nil
}

func exampleSchedule() *holdfastv1.Schedule {
	return &holdfastv1.Schedule{Name: "nightly", Cron: "0 3 * * *", Zone: "Europe/Berlin", Labels: map[string]string{"tier": "gold"}, Volumes: 4, KeepLast: 7, KeepSeconds: 14 * 86400,
		NextRun: timestamppb.New(time.Now().Add(time.Hour)), Kept: 28}
}

func serveSnapshots(t *testing.T) (*snapshotServer, string) {
	t.Helper()
	s := &snapshotServer{}
	endpoint := "unix://" + filepath.Join(t.TempDir(), "a.sock")
	var cfg rpc.Config
	l, err := cfg.Listen(t.Context(), endpoint)
	if err != nil {
		t.Fatal(err)
	}
	g := cfg.NewLocalServer()
	holdfastv1.RegisterVolumeServiceServer(g, s)
	holdfastv1.RegisterSnapshotServiceServer(g, s)
	holdfastv1.RegisterScheduleServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	return s, endpoint
}

func TestSnapshotsAndSchedulesAreShown(t *testing.T) {
	s, at := serveSnapshots(t)
	for line, x := range map[string]struct{ has, lacks []string }{
		"volume inspect db":           {[]string{"to snapshot snap-3; it cannot be attached", "2 older ones: holdfast snapshot list db", "snap-2", "snap-11"}, []string{"snap-1 ", "clone of"}},
		"volume inspect clone":        {[]string{"clone of", "volume db, snapshot snap-3"}, []string{"restoring", "Snapshots"}},
		"volume inspect late":         {[]string{"volume gone, which is deleted, snapshot gone.x, which is deleted"}, nil},
		"volume inspect copy":         {[]string{"clone of", "volume db, as it was when this was created"}, nil},
		"snapshot inspect snap-3":     {[]string{"1 GiB, as the volume had", "1.9 MiB of it have data", "12 KiB on each replica"}, nil},
		"snapshot diff a b":           {[]string{"Between a and b at most 1.9 MiB of 1 GiB changed, in 30 ranges", "0 ", "19922944", "and 10 more"}, []string{"20971520"}},
		"snapshot diff a b --all":     {[]string{"20971520", "30408704"}, []string{"more"}},
		"snapshot diff a same":        {[]string{"Nothing changed between a and same"}, nil},
		"snapshot diff a b -o json":   {[]string{`"ranges"`, `"30408704"`}, nil},
		"schedule list":               {[]string{"nightly", "0 3 * * * Europe/Berlin", "volumes with tier=gold (4)", "last 7, 14d", "ready", "28"}, nil},
		"schedule inspect nightly":    {[]string{"nightly: failed", "volume db: it is full", "snap-3", "always the newest"}, nil},
		"schedule pause nightly":      {[]string{"is paused"}, nil},
		"schedule resume nightly":     {[]string{"goes on"}, nil},
		"schedule delete nightly":     {[]string{"is deleted", "stay"}, nil},
		"__complete schedule inspect": {[]string{"nightly"}, nil},
		"__complete snapshot diff a":  {[]string{"snap-3"}, nil},
	} {
		args := strings.Fields(line)
		if strings.HasPrefix(line, "__complete") {
			args = append(args, "")
		}
		code, out, errout := do(t, at, args...)
		if code != 0 {
			t.Errorf("%s ends with %d: %s", line, code, errout)
		}
		for _, w := range x.has {
			if !strings.Contains(out, w) {
				t.Errorf("%s does not show %q:\n%s", line, w, out)
			}
		}
		for _, w := range x.lacks {
			if strings.Contains(out, w) {
				t.Errorf("%s shows %q:\n%s", line, w, out)
			}
		}
	}
	code, out, errout := do(t, at, "schedule", "create", "hourly", "--cron", "0 * * * *", "--zone", "UTC", "--label", "tier=gold", "--keep-last", "3", "--keep-for", "2w")
	if q := s.created; code != 0 || q.GetName() != "hourly" || q.GetCron() != "0 * * * *" || q.GetLabels()["tier"] != "gold" || q.GetKeepLast() != 3 || q.GetKeepSeconds() != 14*86400 {
		t.Errorf("created is %v with %d: %s%s", q, code, out, errout)
	}
	if code, _, errout := do(t, at, "schedule", "create", "x", "--keep-for", "soon"); code == 0 || !strings.Contains(errout, "14d") {
		t.Errorf("a wrong age: %d, %s", code, errout)
	}
}
