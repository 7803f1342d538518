package daemon

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	"github.com/holdfast-storage/holdfast/controller/csi"
	"github.com/holdfast-storage/holdfast/controller/placement"
	"github.com/holdfast-storage/holdfast/controller/reconcile"
	"github.com/holdfast-storage/holdfast/replication"
)

// Settings that have good defaults. Those of Placement and Reconcile, and
// CSI.DefaultSize, are to be the same on all nodes: whichever is asked, or leads,
// uses its own.

// Placement says how far pools may be filled.
type Placement struct {
	// Overcommit is how many bytes may be promised to thin volumes for each byte
	// that a pool has. Default 4.
	Overcommit float64 `json:"overcommit,omitempty"`
	// MinFree is what a pool must have free to take a new replica. Default 64MiB.
	MinFree *Size `json:"minFree,omitempty"`
	// SnapshotPercent is how much of a pool snapshots may take before none is taken
	// any more of the volumes there. Default 50.
	SnapshotPercent int `json:"snapshotPercent,omitempty"`
}

func (p Placement) policy() placement.Policy {
	d := placement.DefaultPolicy()
	d.Overcommit = cmp.Or(p.Overcommit, d.Overcommit)
	if p.MinFree != nil {
		d.MinFreeBytes = int64(*p.MinFree)
	}
	return d
}

// Reconcile bounds what the leader does about lost replicas.
type Reconcile struct {
	// Rebuilds and RebuildsPerNode bound the replicas that are built at the same
	// time: in the cluster (default 8), and on one node (default 2).
	Rebuilds        int `json:"rebuilds,omitempty"`
	RebuildsPerNode int `json:"rebuildsPerNode,omitempty"`
	// Together is within how long more than a third of the storage nodes have to
	// vanish to be taken for a network failure: then nothing is replaced.
	// Default 5m.
	Together Duration `json:"together,omitzero"`
	// RefuseFor is how long a node that could not make a replica is not asked
	// again. Default 10m.
	RefuseFor Duration `json:"refuseFor,omitzero"`
}

func (c Config) limits() reconcile.Limits {
	r := c.Reconcile
	return reconcile.Limits{
		ReplaceAfter: time.Duration(c.Times.ReplaceAfter), Together: time.Duration(r.Together), RefuseFor: time.Duration(r.RefuseFor),
		Rebuilds: r.Rebuilds, RebuildsPerNode: r.RebuildsPerNode,
	}
}

// Replication is for the volumes that this node serves.
type Replication struct {
	// SilentAfter is after how long of silence a replica is dropped from the
	// in-sync set, so that I/O goes on without it. Default 2s.
	SilentAfter Duration `json:"silentAfter,omitzero"`
	// ReconnectFor is how long a replica whose connection broke has to be back.
	// Default 500ms.
	ReconnectFor Duration `json:"reconnectFor,omitzero"`
	// Congestion is TCP's congestion control between nodes: the name of one that the
	// kernel has. Default: the machine's, and CUBIC where that is BBR.
	Congestion string `json:"congestion,omitempty"`
	// RepairRate bounds the repair of one volume, in bytes a second. Default
	// 200MiB; 0 does not bound it.
	RepairRate *Size `json:"repairRate,omitempty"`
	// NodeRepairRate bounds what this node copies for repairs and compares for
	// scrubs, in bytes a second: those of the volumes served here, and repairs by
	// others to and from its replicas. They use less when reads and writes of the
	// volumes served here suffer. Default 200MiB; 0 does not bound it. Repairs is how
	// many large ones go on at once: of volumes served here, and as many to replicas
	// here by others. Default 4.
	NodeRepairRate *Size `json:"nodeRepairRate,omitempty"`
	Repairs        int   `json:"repairs,omitempty"`
	// ScrubEvery is how long after its last scrub a volume's replicas are compared
	// again, one volume at a time on each node: 168h, for instance. Default 0:
	// only when asked for.
	ScrubEvery Duration `json:"scrubEvery,omitzero"`
	// SlowReplicas is what is done about a replica that answers writes SlowFactor
	// times later than the fastest other one, and at least 20 ms later, for SlowFor,
	// where the volume does not say: off, report (default) or drop. One that is
	// dropped is repaired after SlowHoldOff, which doubles when it is dropped again.
	// Defaults: 5, 30s, 5m.
	SlowReplicas holdfast.SlowPolicy `json:"slowReplicas,omitempty"`
	SlowFactor   float64             `json:"slowFactor,omitempty"`
	SlowFor      Duration            `json:"slowFor,omitzero"`
	SlowHoldOff  Duration            `json:"slowHoldOff,omitzero"`
}

// nodeRate bounds the repairs of a node, in bytes a second.
func (r Replication) nodeRate() int64 {
	if r.NodeRepairRate != nil {
		return int64(*r.NodeRepairRate)
	}
	return 200 << 20
}

// primary is the primaries' configuration. The read window is not among the
// settings: all nodes have to agree on it, or reads could be stale.
func (r Replication) primary() replication.Config {
	d := replication.DefaultConfig()
	d.SilentAfter = cmp.Or(time.Duration(r.SilentAfter), d.SilentAfter)
	d.ReconnectFor = cmp.Or(time.Duration(r.ReconnectFor), d.ReconnectFor)
	if r.RepairRate != nil {
		d.RepairRate = int64(*r.RepairRate)
	}
	d.SlowPolicy = cmp.Or(r.SlowReplicas, d.SlowPolicy)
	d.SlowFactor = cmp.Or(r.SlowFactor, d.SlowFactor)
	d.SlowFor = cmp.Or(time.Duration(r.SlowFor), d.SlowFor)
	d.SlowHoldOff = cmp.Or(time.Duration(r.SlowHoldOff), d.SlowHoldOff)
	return d
}

// CSIOptions suit the driver to its orchestrator.
type CSIOptions struct {
	// AgentView shows each node's driver its share of the cluster, for Mesos'
	// storage local resource providers, of which each takes what it is shown for
	// its own: volumes created through it, and capacity divided by the live nodes.
	AgentView bool `json:"agentView,omitempty"`
	// WithoutPublish leaves PUBLISH_UNPUBLISH_VOLUME out of the capabilities of
	// the controller service: nodes attach by themselves when they stage.
	WithoutPublish bool `json:"withoutPublish,omitempty"`
	// NoStaging leaves STAGE_UNSTAGE_VOLUME out of the capabilities of the node
	// service: volumes are mounted at their targets straight away.
	NoStaging bool `json:"noStaging,omitempty"`
	// IgnoreUnknownParameters accepts CreateVolume parameters that mean nothing
	// here instead of refusing them.
	IgnoreUnknownParameters bool `json:"ignoreUnknownParameters,omitempty"`
	// DefaultSize is that of a volume whose creator names none. Default 1GiB.
	DefaultSize Size `json:"defaultSize,omitempty"`
	// ReportedOvercommit is what GetCapacity counts with instead of
	// placement.overcommit: default 1, so that no more is reported than is there.
	ReportedOvercommit float64 `json:"reportedOvercommit,omitempty"`
}

func (c Config) csiController() csi.Config {
	o := c.CSIOptions
	cc := csi.Config{
		WithoutPublish: o.WithoutPublish, IgnoreUnknownParameters: o.IgnoreUnknownParameters,
		DefaultBytes: int64(o.DefaultSize), ReportedOvercommit: o.ReportedOvercommit,
	}
	if o.AgentView {
		cc.Agent = holdfast.NodeID(c.Node)
	}
	return cc
}

// validateSettings checks what Validate does not.
func (c Config) validateSettings() error {
	bad := func(format string, a ...any) error {
		return holdfast.E("validate configuration", holdfast.Invalid, fmt.Sprintf(format, a...))
	}
	p, r, o := c.Replication, c.Reconcile, c.CSIOptions
	policy := c.Placement.policy()
	switch {
	case !(policy.Overcommit >= 1 && policy.Overcommit <= 1000):
		return bad("placement.overcommit is %v; choose 1 (promise only what is there) to 1000", policy.Overcommit)
	case c.Placement.SnapshotPercent < 0 || c.Placement.SnapshotPercent > 100:
		return bad("placement.snapshotPercent is %d; choose 1 to 100", c.Placement.SnapshotPercent)
	case r.Rebuilds < 0 || r.RebuildsPerNode < 0:
		return bad("reconcile.rebuilds and reconcile.rebuildsPerNode are %d and %d; they are 1 or more", r.Rebuilds, r.RebuildsPerNode)
	case r.Together < 0 || r.RefuseFor < 0:
		return bad("reconcile.together and reconcile.refuseFor are %v and %v; they must be positive", time.Duration(r.Together), time.Duration(r.RefuseFor))
	case o.ReportedOvercommit != 0 && !(o.ReportedOvercommit >= 1 && o.ReportedOvercommit <= policy.Overcommit):
		return bad("csiOptions.reportedOvercommit is %v; choose 1 to placement.overcommit, which is %v", o.ReportedOvercommit, policy.Overcommit)
	case o.DefaultSize != 0 && (o.DefaultSize < holdfast.MinVolumeBytes || o.DefaultSize > holdfast.MaxVolumeBytes):
		return bad("csiOptions.defaultSize is %s; choose 1MiB to 64TiB", api.Bytes(int64(o.DefaultSize)))
	}
	d := p.primary()
	switch {
	case p.ScrubEvery < 0:
		return bad("replication.scrubEvery is %v; it is 0 (off) or positive", time.Duration(p.ScrubEvery))
	case d.SilentAfter < time.Second || d.SilentAfter > time.Minute:
		return bad("replication.silentAfter is %v; choose 1s (a replica is asked for a sign of life every 0.4 s) to 1m", d.SilentAfter)
	case !d.SlowPolicy.Known():
		return bad("replication.slowReplicas is %q; choose off, report or drop", d.SlowPolicy)
	case !(d.SlowFactor >= 1.5 && d.SlowFactor <= 1000):
		return bad("replication.slowFactor is %v; choose 1.5 to 1000", d.SlowFactor)
	case d.SlowFor < time.Second || d.SlowHoldOff < time.Second:
		return bad("replication.slowFor and replication.slowHoldOff are %v and %v; choose 1s or more", d.SlowFor, d.SlowHoldOff)
	case d.ReconnectFor < 100*time.Millisecond || d.ReconnectFor > d.SilentAfter:
		return bad("replication.reconnectFor is %v; choose 100ms to replication.silentAfter, which is %v", d.ReconnectFor, d.SilentAfter)
	}
	return nil
}

// Size is a number of bytes, written as "200MiB", "10G", or plain.
type Size int64

// MarshalJSON writes plain bytes.
func (s Size) MarshalJSON() ([]byte, error) { return json.Marshal(int64(s)) }

// UnmarshalJSON reads "200MiB" or a number of bytes.
func (s *Size) UnmarshalJSON(b []byte) error {
	text := string(b)
	if len(b) > 0 && b[0] == '"' {
		if err := json.Unmarshal(b, &text); err != nil {
			return err
		}
	}
	n, err := api.ParseBytes(text)
	if err != nil {
		return err
	}
	*s = Size(n)
	return nil
}
