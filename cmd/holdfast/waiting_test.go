package main

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func (s *server) UpdateVolumePolicy(_ context.Context, q *holdfastv1.UpdateVolumePolicyRequest) (*holdfastv1.Volume, error) {
	s.policy = q
	v := example()
	v.Spec.IoTimeoutMillis, v.Spec.SlowReplicas = q.GetIoTimeoutMillis(), q.GetSlowReplicas()
	v.Spec.Limits = &holdfastv1.Limits{Iops: q.GetIops(), Bandwidth: q.GetBandwidth(), BurstMillis: q.GetBurstMillis()}
	return v, nil
}

func (s *server) ScrubVolume(_ context.Context, q *holdfastv1.ScrubVolumeRequest) (*holdfastv1.Volume, error) {
	s.scrubbed = q
	v := example()
	v.Scrub = &holdfastv1.Scrub{Id: "s", State: "done", Ended: timestamppb.New(time.Now().Add(-time.Hour)), Blocks: 100, Mismatches: 3, Healed: 2, Unhealed: 1}
	if q.GetCancel() {
		v.Scrub = &holdfastv1.Scrub{Id: "s", State: "cancelled", Ended: timestamppb.Now()}
	}
	return v, nil
}

func TestPoliciesOfAVolume(t *testing.T) {
	s, at := serve(t)
	if code, out, _ := do(t, at, "volume", "update", "db-1", "--io-timeout", "30s"); code != exitOK || !strings.Contains(out, "fails after 30s, slow replicas: as the node is configured") {
		t.Errorf("%d %s", code, out)
	}
	if s.policy.GetIoTimeoutMillis() != 30000 || s.policy.SlowReplicas != nil {
		t.Errorf("%v", s.policy)
	}
	if code, out, _ := do(t, at, "volume", "update", "db-1", "--io-timeout", "0", "--slow-replicas", "drop"); code != exitOK || !strings.Contains(out, "I/O waits without limit, slow replicas: drop") {
		t.Errorf("%d %s", code, out)
	}
	if s.policy.IoTimeoutMillis == nil || s.policy.GetIoTimeoutMillis() != 0 || s.policy.GetSlowReplicas() != "drop" {
		t.Errorf("%v", s.policy)
	}
	if s.policy.Iops != nil || s.policy.Bandwidth != nil || s.policy.BurstMillis != nil {
		t.Errorf("limits that are not named stay: %v", s.policy)
	}
	if code, out, says := do(t, at, "volume", "update", "db-1", "--iops", "500", "--bandwidth", "100MiB", "--burst", "10s"); code != exitOK || !strings.Contains(out, "I/O limited to 500 operations/s and 100 MiB/s, bursts of 10s") {
		t.Errorf("%d %s %s", code, out, says)
	}
	if s.policy.GetIops() != 500 || s.policy.GetBandwidth() != 100<<20 || s.policy.GetBurstMillis() != 10000 || s.policy.IoTimeoutMillis != nil {
		t.Errorf("%v", s.policy)
	}
	if code, out, _ := do(t, at, "volume", "update", "db-1", "--iops", "0", "--bandwidth", "0"); code != exitOK || !strings.Contains(out, "no limit of I/O") || s.policy.Iops == nil || s.policy.Bandwidth == nil {
		t.Errorf("%d %s %v", code, out, s.policy)
	}
	if code, _, says := do(t, at, "volume", "create", "x", "-s", "1GiB", "--iops", "100"); code != exitOK || s.created.GetLimits().GetIops() != 100 || s.created.GetLimits().GetBandwidth() != 0 {
		t.Errorf("%d %s %v", code, says, s.created)
	}
	if code, _, says := do(t, at, "volume", "update", "db-1"); code != exitUsage || !strings.Contains(says, "--io-timeout") {
		t.Errorf("%d %s", code, says)
	}
	if code, _, says := do(t, at, "volume", "create", "x", "-s", "1GiB", "--io-timeout", "1m", "--slow-replicas", "off"); code != exitOK {
		t.Errorf("%d %s", code, says)
	}
	if s.created.GetIoTimeoutMillis() != 60000 || s.created.GetSlowReplicas() != "off" {
		t.Errorf("%v", s.created)
	}
}

func TestScrubCommand(t *testing.T) {
	s, at := serve(t)
	code, out, _ := do(t, at, "volume", "scrub", "db-1")
	if code != exitOK || !strings.Contains(out, "Volume db-1: scrub done: 100 blocks compared, 3 damaged, 2 healed, 1 differ still") || s.scrubbed.GetVolume() != "db-1" {
		t.Errorf("%d %s %v", code, out, s.scrubbed)
	}
	if code, _, says := do(t, at, "volume", "scrub", "db-1", "--watch"); code == exitOK || !strings.Contains(says, "1 blocks still differ") {
		t.Errorf("damage that stays is a failure: %d %s", code, says)
	}
	if code, out, _ = do(t, at, "volume", "scrub", "db-1", "--cancel"); code != exitOK || !strings.Contains(out, "scrub cancelled") || !s.scrubbed.GetCancel() {
		t.Errorf("%d %s", code, out)
	}
	if code, _, says := do(t, at, "volume", "scrub", "db-1", "--cancel", "--watch"); code != exitUsage || !strings.Contains(says, "exclude each other") {
		t.Errorf("%d %s", code, says)
	}
}

func TestWaitsEventsAndScrubsAreShown(t *testing.T) {
	var w bytes.Buffer
	waitsView(&w, []*holdfastv1.Wait{
		{What: "attach", Node: "n1", WaitingFor: "the take-over", Millis: 1300, Volume: "db-1"},
		{What: "deletion", WaitingFor: "node n2, to remove 3 replicas"},
	})
	eventsView(&w, []*holdfastv1.VolumeEvent{{At: timestamppb.New(time.Unix(1, 0)), Node: "n1", What: "attached as /dev/loop3"}})
	scrubsView(&w, []*holdfastv1.VolumeScrub{{Volume: "db-1", Scrub: &holdfastv1.Scrub{State: "waiting", WaitingFor: "a second replica to be in sync", DoneBytes: 1 << 20, TotalBytes: 1 << 30}}})
	for _, want := range []string{
		"attach of volume db-1 on node n1: waits for the take-over, for 1.3s\n", "deletion: waits for node n2, to remove 3 replicas\n",
		"n1  attached as /dev/loop3\n", "volume db-1: waiting for a second replica to be in sync: 0 blocks compared, no damage found, 1 MiB of 1 GiB done",
	} {
		if !strings.Contains(w.String(), want) {
			t.Errorf("%q is missing in\n%s", want, w.String())
		}
	}
	w.Reset()
	waitsView(&w, nil)
	eventsView(&w, nil)
	scrubsView(&w, nil)
	if w.Len() != 0 {
		t.Errorf("nothing to say: %q", w.String())
	}
}
