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
