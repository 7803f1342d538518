package csi

import (
	"context"
	"maps"
	"slices"
	"strings"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
)

// mutableNames are the parameters that may be changed, compared without regard to
// case.
func mutableNames() []string {
	return []string{"replicas", "minInSync", "locality", "ioTimeout", "slowReplicas", "iops", "bandwidth", "burst"}
}

// ControllerModifyVolume changes a volume, also while it is in use: all that is
// asked for, or nothing.
func (s *Server) ControllerModifyVolume(ctx context.Context, q *csipb.ControllerModifyVolumeRequest) (*csipb.ControllerModifyVolumeResponse, error) {
	return done(&csipb.ControllerModifyVolumeResponse{}, s.modify(ctx, q))
}

func (s *Server) modify(ctx context.Context, q *csipb.ControllerModifyVolumeRequest) error {
	op := "modify volume " + q.GetVolumeId()
	if err := needID("modify volume", "volume_id", q.GetVolumeId()); err != nil {
		return err
	}
	changes, err := mutable(op, q.GetMutableParameters())
	if err != nil {
		return err
	}
	rec, err := s.volume(ctx, op, q.GetVolumeId())
	if err != nil || changes.None() {
		return err
	}
	_, err = s.cfg.Lifecycle.Modify(ctx, string(rec.ID), changes)
	return err
}

// mutable reads mutable parameters. The error is of kind Invalid and names what is
// not understood or cannot be changed.
func mutable(op string, given map[string]string) (lifecycle.Changes, error) {
	var c lifecycle.Changes
	for _, key := range slices.Sorted(maps.Keys(given)) {
		if strings.HasPrefix(key, kubernetesPrefix) {
			continue
		}
		var p params
		known, err := p.set(key, strings.TrimSpace(given[key]))
		if err != nil {
			return c, invalid(op, "the mutable parameter %s: %v", key, err)
		}
		if p.change(strings.ToLower(key), &c) {
			continue
		}
		what := "is unknown"
		if known {
			what = "cannot be changed"
		}
		return c, invalid(op, "the mutable parameter %q %s; there are %s", key, what, strings.Join(mutableNames(), ", "))
	}
	return c, nil
}

// change notes one parameter that was read; false for one that cannot be changed.
func (p *params) change(key string, c *lifecycle.Changes) bool {
	x := &p.spec
	switch key {
	case "replicas":
		c.Replicas = &x.Replicas
	case "mininsync":
		c.MinInSync = &x.MinInSync
	case "locality":
		c.Locality = &x.Locality
	case "iotimeout":
		c.IOTimeoutMillis = &x.IOTimeoutMillis
	case "slowreplicas":
		c.SlowReplicas = &x.SlowReplicas
	case "iops":
		c.IOPS = &x.Limits.IOPS
	case "bandwidth":
		c.Bandwidth = &x.Limits.Bandwidth
	case "burst":
		c.BurstMillis = &x.Limits.BurstMillis
	default:
		return false
	}
	return true
}

// lacks says in which mutable parameter a volume is not what was asked for; "" in
// none.
func lacks(have holdfast.Spec, c lifecycle.Changes) string {
	want := c.Apply(have)
	switch {
	case want.Limits != have.Limits:
		return "the volume has other limits of I/O"
	case want.IOTimeoutMillis != have.IOTimeoutMillis || want.SlowReplicas != have.SlowReplicas:
		return "the volume has another ioTimeout or another policy for slow replicas"
	}
	return params{spec: want}.differs(have)
}
