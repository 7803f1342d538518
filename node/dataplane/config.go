package dataplane

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/replication"
)

// Config is what a Plane works with. The first group must be set; the zero
// values of the second mean the defaults.
type Config struct {
	Cluster holdfast.ClusterID
	Self    holdfast.NodeID
	Volumes metadata.Volumes
	// Alive says whether a node's lease is there.
	Alive func(ctx context.Context, node holdfast.NodeID) (bool, error)
	// Addr finds a node's data address, host:port. The last good answer is used
	// when it fails, so that connections come back without the metadata store.
	Addr func(ctx context.Context, node holdfast.NodeID) (string, error)
	// Others lists the other nodes whose leases are there. A take-over asks them for
	// replicas that the record does not name; nil asks none.
	Others func(ctx context.Context) ([]holdfast.NodeID, error)
	// Dial connects to a node's data address; internal/rpc has it.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	Log  *slog.Logger

	// Changed, if set, is told what happens to a volume served here, in one
	// readable line. It must not block.
	Changed func(id holdfast.VolumeID, what string)
	// Quiet, if set, remembers grants across processes of this node, so that one
	// that follows another need not wait out what that one may have read.
	Quiet QuietGrants
	// Primary holds the primaries' times and rates; its other members are
	// filled in for each volume.
	Primary replication.Config

	// Stepped, if set, is called after each step of a volume. It must not block.
	Stepped func()

	// RepairRate bounds what repairs copy and scrubs compare, in bytes a second,
	// together: of the volumes served here, and repairs by primaries elsewhere to and
	// from replicas here. 0 does not bound it. Repairs is how many large repairs go on
	// at once, of volumes served here; as many by primaries elsewhere to replicas
	// here. Default 4.
	RepairRate int64
	Repairs    int

	Workers       int           // tasks at once per replica. Default 8: best when measured
	WorkerIdle    time.Duration // after which a worker without work ends. Default 2 s
	DialTimeout   time.Duration // address lookup and connection. Default 1 s
	HelloTimeout  time.Duration // for an accepted connection's first message. Default 5 s
	RecordTimeout time.Duration // one read or swap of a record. Default 3 s
	TickEvery     time.Duration // default 50 ms
	// ProbeEvery is how often a node is asked whether it lives that all volumes at rest
	// here have replicas on. Default 1 s.
	ProbeEvery time.Duration
	// RestSlack is how much earlier than they ask for volumes at rest are ticked, so that
	// many are at once. Default: a sixteenth of how often their replicas are pinged.
	RestSlack time.Duration
	// MaxQueueBytes bounds what waits to be sent on one connection; a peer that
	// lets more pile up is disconnected. Default 256 MiB: more than a device's
	// whole queue.
	MaxQueueBytes int
}

// QuietGrants keeps, per volume, the newest grant of this node of which is known:
// while the record names it, nobody under an older one answers reads. It must be
// this node's own memory: lost or old is fine, another machine's is not.
type QuietGrants interface {
	// Quiet is the grant kept; 0 if there is none.
	Quiet(vol holdfast.VolumeID) holdfast.Epoch
	// SetQuiet keeps one, or forgets it if it is 0. Called with the volume's lock held.
	SetQuiet(vol holdfast.VolumeID, grant holdfast.Epoch)
}

func (c Config) withDefaults() Config {
	set := func(v *time.Duration, d time.Duration) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&c.WorkerIdle, 2*time.Second)
	set(&c.DialTimeout, time.Second)
	set(&c.HelloTimeout, 5*time.Second)
	set(&c.RecordTimeout, 3*time.Second)
	set(&c.TickEvery, 50*time.Millisecond)
	set(&c.ProbeEvery, time.Second)
	set(&c.RestSlack, cmp.Or(c.Primary.RestPing, replication.DefaultConfig().RestPing)/16)
	if c.Repairs <= 0 {
		c.Repairs = 4
	}
	if c.Workers <= 0 {
		c.Workers = 8
	}
	if c.MaxQueueBytes <= 0 {
		c.MaxQueueBytes = 256 << 20
	}
	return c
}

func (c Config) validate() error {
	if c.Cluster == "" || c.Self == "" || c.Volumes == nil || c.Alive == nil || c.Addr == nil || c.Dial == nil || c.Log == nil {
		return holdfast.E("make data plane", holdfast.Invalid, "Cluster, Self, Volumes, Alive, Addr, Dial and Log must be set")
	}
	return nil
}

// sinceStart is monotonic time as the machines want it.
type sinceStart struct{ start time.Time }

func (s sinceStart) Now() time.Duration { return time.Since(s.start) }
