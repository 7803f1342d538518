package api_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// found is what the leader found; n9 does not answer.
type found struct{}

func (found) Findings(_ context.Context, leader string) ([]*holdfastv1.Finding, error) {
	if leader == "n9" {
		return nil, holdfast.E("ask", holdfast.Unavailable, "nobody is there")
	}
	return []*holdfastv1.Finding{{Volume: "db", What: "cannot be mended", Remedy: "add a node"}, {Node: "n2", What: "orphans", Remedy: "none"}}, nil
}

func TestStatusSaysWhatTheLeaderFound(t *testing.T) {
	for leader, want := range map[string]int{"n1": 2, "n9": 0} {
		c := newCluster(t)
		_, resign, err := c.store.Campaign(t.Context(), leader)
		if err != nil {
			t.Fatal(err)
		}
		st, err := c.all.GetStatus(t.Context(), &holdfastv1.GetStatusRequest{})
		resign()
		if err != nil || len(st.GetProblems()) != want || want > 0 && (st.GetHealth() != api.Warning || st.GetProblems()[0].GetSubject() != "volume db" || st.GetProblems()[0].GetRemedy() != "add a node") {
			t.Errorf("led by %s: %v, %v", leader, st, err)
		}
	}
}

func TestAVolumeThatIsAttachedAndNotServedIsNotHealthy(t *testing.T) {
	c := newCluster(t)
	v := c.create(t, "db")
	if _, err := c.vol.AttachVolume(t.Context(), &holdfastv1.AttachVolumeRequest{Volume: "db", Node: "n1"}); err != nil {
		t.Fatal(err)
	}
	c.nodes["n1"].volumes = []*holdfastv1.NodeVolume{{VolumeId: v.GetId(), Events: []*holdfastv1.NodeEvent{{What: "one"}, {What: "device removed"}}}}
	v, err := c.vol.GetVolume(t.Context(), &holdfastv1.GetVolumeRequest{Volume: "db"})
	if err != nil || v.GetHealth() != api.Waiting || len(v.GetProblems()) != 1 || !strings.Contains(v.GetProblems()[0].GetWhat(), "does not serve it now; the last that happened there: device removed") {
		t.Errorf("%v, %v", v, err)
	}
	c.nodes["n1"].silent = true
	if v, err = c.vol.GetVolume(t.Context(), &holdfastv1.GetVolumeRequest{Volume: "db"}); err != nil || v.GetHealth() != api.Healthy {
		t.Errorf("of a node that does not answer, nothing is known: %v, %v", v, err)
	}
}

func TestASmallVolumeGetsAFilesystemThatFits(t *testing.T) {
	c := newCluster(t)
	v, err := c.vol.CreateVolume(t.Context(), &holdfastv1.CreateVolumeRequest{Name: "small", SizeBytes: 100 << 20})
	if err != nil || v.GetSpec().GetFsType() != "ext4" {
		t.Errorf("nothing asked for: %v, %v", v.GetSpec(), err)
	}
	v, err = c.vol.CreateVolume(t.Context(), &holdfastv1.CreateVolumeRequest{Name: "large", SizeBytes: 300 << 20})
	if err != nil || v.GetSpec().GetFsType() != "xfs" {
		t.Errorf("large enough: %v, %v", v.GetSpec(), err)
	}
	_, err = c.vol.CreateVolume(t.Context(), &holdfastv1.CreateVolumeRequest{Name: "no", SizeBytes: 100 << 20, FsType: "xfs"})
	if !errors.Is(err, holdfast.OutOfRange) || !strings.Contains(err.Error(), "needs 300 MiB") {
		t.Errorf("a small xfs: %v", err)
	}
}
