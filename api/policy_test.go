package api_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	control "github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

func TestPoliciesAreChangedOnline(t *testing.T) {
	c := newCluster(t)
	c.create(t, "db")
	ms, policy := int64(30000), "drop"
	v, err := c.vol.UpdateVolumePolicy(t.Context(), &holdfastv1.UpdateVolumePolicyRequest{Volume: "db", IoTimeoutMillis: &ms})
	if err != nil || v.GetSpec().GetIoTimeoutMillis() != ms || v.GetSpec().GetSlowReplicas() != "" {
		t.Fatalf("%v, %v", v.GetSpec(), err)
	}
	v, err = c.vol.UpdateVolumePolicy(t.Context(), &holdfastv1.UpdateVolumePolicyRequest{Volume: "db", SlowReplicas: &policy})
	if err != nil || v.GetSpec().GetIoTimeoutMillis() != ms || v.GetSpec().GetSlowReplicas() != policy {
		t.Fatalf("what is left out stays: %v, %v", v.GetSpec(), err)
	}
	r, err := c.store.Volume(t.Context(), "db")
	if err != nil || r.Version != holdfast.RecordVersionWaiting || r.Spec.IOTimeout() != 30*time.Second {
		t.Errorf("version %d, %v, %v", r.Version, r.Spec.IOTimeout(), err)
	}
	if code, body := c.rest(t, "PATCH", "/v1/volumes/db/policy", `{"io_timeout_millis": 0, "slow_replicas": ""}`); code != 200 {
		t.Errorf("%d %v", code, body)
	}
	if r, err = c.store.Volume(t.Context(), "db"); err != nil || r.Version != holdfast.RecordVersion || r.Spec.IOTimeoutMillis != 0 {
		t.Errorf("version %d, %v", r.Version, err)
	}
	two, none := int32(2), int32(0)
	if v, err = c.vol.UpdateVolumePolicy(t.Context(), &holdfastv1.UpdateVolumePolicyRequest{Volume: "db", Replicas: &two}); err != nil || v.GetSpec().GetReplicas() != 2 {
		t.Errorf("%v, %v", v.GetSpec(), err)
	}
	iops, burst, unlimited := int64(500), int64(2000), int64(0)
	v, err = c.vol.UpdateVolumePolicy(t.Context(), &holdfastv1.UpdateVolumePolicyRequest{Volume: "db", Iops: &iops, BurstMillis: &burst})
	if err != nil || v.GetSpec().GetLimits().GetIops() != 500 || v.GetSpec().GetLimits().GetBandwidth() != 0 || v.GetSpec().GetLimits().GetBurstMillis() != 2000 {
		t.Errorf("%v, %v", v.GetSpec(), err)
	}
	if r, err = c.store.Volume(t.Context(), "db"); err != nil || r.Version != holdfast.RecordVersionLimits {
		t.Errorf("version %d, %v", r.Version, err)
	}
	v, err = c.vol.UpdateVolumePolicy(t.Context(), &holdfastv1.UpdateVolumePolicyRequest{Volume: "db", Iops: &unlimited})
	if err != nil || v.GetSpec().GetLimits() != nil {
		t.Errorf("without a limit nothing is left of it: %v, %v", v.GetSpec(), err)
	}
	tooFew := int64(1)
	tooShort, unknown := int64(10), "perhaps"
	for what, q := range map[string]*holdfastv1.UpdateVolumePolicyRequest{
		"nothing":   {Volume: "db"},
		"too short": {Volume: "db", IoTimeoutMillis: &tooShort},
		"too few":   {Volume: "db", Iops: &tooFew},
		"unknown":   {Volume: "db", SlowReplicas: &unknown},
		"none":      {Volume: "db", Replicas: &none},
	} {
		if _, err := c.vol.UpdateVolumePolicy(t.Context(), q); !errors.Is(grpcstatus.From(err), holdfast.Invalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := c.vol.UpdateVolumePolicy(t.Context(), &holdfastv1.UpdateVolumePolicyRequest{Volume: "none", IoTimeoutMillis: &ms}); !errors.Is(grpcstatus.From(err), holdfast.NotFound) {
		t.Error(err)
	}
}

func TestScrubIsAskedForOnceAndCancelled(t *testing.T) {
	c := newCluster(t)
	c.create(t, "db")
	v, err := c.vol.ScrubVolume(t.Context(), &holdfastv1.ScrubVolumeRequest{Volume: "db"})
	if err != nil || v.GetScrub().GetState() != "pending" || v.GetScrub().GetEnded() != nil {
		t.Fatalf("%v, %v", v.GetScrub(), err)
	}
	again, err := c.vol.ScrubVolume(t.Context(), &holdfastv1.ScrubVolumeRequest{Volume: "db"})
	if err != nil || again.GetScrub().GetId() != v.GetScrub().GetId() {
		t.Errorf("while one is to be done, no other is begun: %v, %v", again.GetScrub(), err)
	}
	st, err := c.all.GetStatus(t.Context(), &holdfastv1.GetStatusRequest{})
	if err != nil || len(st.GetScrubs()) != 1 || st.GetScrubs()[0].GetVolume() != "db" {
		t.Errorf("%v, %v", st.GetScrubs(), err)
	}
	for range 2 { // again is fine
		v, err = c.vol.ScrubVolume(t.Context(), &holdfastv1.ScrubVolumeRequest{Volume: "db", Cancel: true})
		if err != nil || v.GetScrub().GetState() != "cancelled" || v.GetScrub().GetEnded() == nil {
			t.Errorf("%v, %v", v.GetScrub(), err)
		}
	}
	if again, err = c.vol.ScrubVolume(t.Context(), &holdfastv1.ScrubVolumeRequest{Volume: "db"}); err != nil || again.GetScrub().GetId() == v.GetScrub().GetId() {
		t.Errorf("a new one is another: %v, %v", again.GetScrub(), err)
	}
	if _, err := c.vol.ScrubVolume(t.Context(), &holdfastv1.ScrubVolumeRequest{Volume: "none"}); !errors.Is(grpcstatus.From(err), holdfast.NotFound) {
		t.Error(err)
	}
	if _, err := c.vol.CreateVolume(t.Context(), &holdfastv1.CreateVolumeRequest{Name: "one", SizeBytes: 1 << 30, Replicas: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.vol.ScrubVolume(t.Context(), &holdfastv1.ScrubVolumeRequest{Volume: "one"}); !errors.Is(grpcstatus.From(err), holdfast.Invalid) {
		t.Errorf("there is nothing to compare: %v", err)
	}
}

// Modify is as the real one does it.
func (l lifecycle) Modify(ctx context.Context, volume string, c control.Changes) (holdfast.Record, error) {
	rec, err := l.store.Volume(ctx, volume)
	if err == nil {
		err = c.Apply(rec.Spec).Validate()
	}
	if err != nil {
		return rec, err
	}
	return l.change(ctx, volume, func(r *holdfast.Record) { r.SetSpec(c.Apply(r.Spec)) })
}
