package csi_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/csi"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// metadataRig is a volume "db" with snapshots "old" and "new", and one "other".
type metadataRig struct {
	c             *fakes.Cluster
	cl            csipb.SnapshotMetadataClient
	old, new, alt string
}

func newMetadataRig(t *testing.T) metadataRig {
	t.Helper()
	c := fakes.New(t)
	c.AddThree()
	c.TakeSnapshots(t)
	s := newServer(t, c, csi.Config{})
	cl := dial(t, s)
	sock := filepath.Join(t.TempDir(), "meta.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	s.Register(g)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	take := func(volume, name string) string {
		v := cl.mustCreate(t, create(volume, gib))
		r, err := cl.CreateSnapshot(t.Context(), &csipb.CreateSnapshotRequest{SourceVolumeId: v.GetVolumeId(), Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetSnapshot().GetSnapshotId()
	}
	return metadataRig{c, csipb.NewSnapshotMetadataClient(conn), take("db", "old"), take("db", "new"), take("elsewhere", "other")}
}

// delta reads a whole listing: its messages' ranges.
func (r metadataRig) delta(t *testing.T, q *csipb.GetMetadataDeltaRequest) ([]string, error) {
	t.Helper()
	stream, err := r.cl.GetMetadataDelta(t.Context(), q)
	if err != nil {
		return nil, err
	}
	var out []string
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		if m.GetBlockMetadataType() != csipb.BlockMetadataType_VARIABLE_LENGTH || m.GetVolumeCapacityBytes() != gib {
			t.Errorf("the message says %v", m)
		}
		text := ""
		for _, x := range m.GetBlockMetadata() {
			text += fmt.Sprintf("%d+%d ", x.GetByteOffset(), x.GetSizeBytes())
		}
		out = append(out, strings.TrimSpace(text))
	}
}

func TestSnapshotMetadataRefuses(t *testing.T) {
	r := newMetadataRig(t)
	for name, x := range map[string]struct {
		q     *csipb.GetMetadataDeltaRequest
		code  codes.Code
		words string
	}{
		"no base":       {&csipb.GetMetadataDeltaRequest{TargetSnapshotId: r.new}, codes.InvalidArgument, "base_snapshot_id"},
		"no target":     {&csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.old}, codes.InvalidArgument, "target_snapshot_id"},
		"unknown base":  {&csipb.GetMetadataDeltaRequest{BaseSnapshotId: "x", TargetSnapshotId: r.new}, codes.NotFound, "no snapshot"},
		"unknown":       {&csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.old, TargetSnapshotId: "a.b"}, codes.NotFound, "no such snapshot"},
		"wrong order":   {&csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.new, TargetSnapshotId: r.old}, codes.InvalidArgument, "older one"},
		"the same":      {&csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.old, TargetSnapshotId: r.old}, codes.InvalidArgument, "older one"},
		"other volumes": {&csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.alt, TargetSnapshotId: r.new}, codes.InvalidArgument, "another volume"},
		"below zero":    {&csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.old, TargetSnapshotId: r.new, StartingOffset: -1}, codes.OutOfRange, "offset"},
		"beyond":        {&csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.old, TargetSnapshotId: r.new, StartingOffset: gib + 1}, codes.OutOfRange, "offset"},
		"maximum":       {&csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.old, TargetSnapshotId: r.new, MaxResults: -1}, codes.InvalidArgument, "at most"},
		"no replica":    {&csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.old, TargetSnapshotId: r.new}, codes.Unavailable, "no such snapshot"},
	} {
		_, err := r.delta(t, x.q)
		wantCode(t, name, err, x.code, x.words)
	}
	stream, err := r.cl.GetMetadataAllocated(t.Context(), &csipb.GetMetadataAllocatedRequest{SnapshotId: "gone.gone"})
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, "allocated of none", err, codes.NotFound)
}

// A listing goes on at another replica when one fails, joins ranges that touch,
// and keeps to the maximum.
func TestSnapshotMetadataGoesOn(t *testing.T) {
	r := newMetadataRig(t)
	failed := false
	r.c.SetListing(func(_ holdfast.NodeID, q *holdfastv1.ListSnapshotRequest) ([]*holdfastv1.ListSnapshotResponse, error) {
		if q.GetSnapshotId() == "" || q.GetCut() == "" || (q.GetBaseId() == "") != (q.GetBaseCut() == "") {
			t.Errorf("asked for %v", q)
		}
		var out []*holdfastv1.ListSnapshotResponse
		for at := q.GetOffset(); at < gib; at += gib / 4 {
			if at == gib/2 && !failed {
				failed = true
				return out, holdfast.E("", holdfast.Corrupt, "the disk failed")
			}
			out = append(out, &holdfastv1.ListSnapshotResponse{End: at + gib/4, Ranges: []*holdfastv1.ByteRange{
				{Offset: at, Length: 65536}, {Offset: at + 1<<20, Length: 4096}, {Offset: at + gib/4 - 4096, Length: 4096}}})
		}
		return out, nil
	})
	got, err := r.delta(t, &csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.old, TargetSnapshotId: r.new, MaxResults: 4})
	want := []string{
		"0+65536 1048576+4096 268431360+69632 269484032+4096",
		"536866816+69632 537919488+4096 805302272+69632 806354944+4096",
		"1073737728+4096"}
	if err != nil || !failed || strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("listed is %q, %v; want %q", got, err, want)
	}
	got, err = r.delta(t, &csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.old, TargetSnapshotId: r.new, StartingOffset: gib})
	if err != nil || strings.Join(got, "|") != "" || len(got) != 1 {
		t.Errorf("from the end on: %q, %v", got, err)
	}
	stream, err := r.cl.GetMetadataAllocated(context.WithoutCancel(t.Context()), &csipb.GetMetadataAllocatedRequest{SnapshotId: r.alt, StartingOffset: gib/4*3 + 5})
	if err != nil {
		t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil || len(m.GetBlockMetadata()) != 3 || m.GetBlockMetadata()[0].GetByteOffset() != gib/4*3 || m.GetVolumeCapacityBytes() != gib {
		t.Errorf("allocated is %v, %v", m, err)
	}
}

// A base that is deleted while it is listed is not found, rather than away.
func TestSnapshotMetadataOfADeletedBase(t *testing.T) {
	r := newMetadataRig(t)
	ref, _ := lifecycle.ParseSnapshotRef(r.old)
	r.c.SetListing(func(holdfast.NodeID, *holdfastv1.ListSnapshotRequest) ([]*holdfastv1.ListSnapshotResponse, error) {
		rec, err := r.c.Store.Volume(t.Context(), string(ref.Volume))
		if err == nil && rec.Snapshot(ref.Snapshot) != nil {
			rec.RemoveSnapshot(ref.Snapshot)
			_, err = r.c.Store.SwapVolume(t.Context(), rec)
		}
		if err != nil {
			t.Error(err)
		}
		return nil, holdfast.E("", holdfast.NotFound, "the replica has no such snapshot")
	})
	_, err := r.delta(t, &csipb.GetMetadataDeltaRequest{BaseSnapshotId: r.old, TargetSnapshotId: r.new})
	wantCode(t, "deleted meanwhile", err, codes.NotFound, "no such snapshot")
}
