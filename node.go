package holdfast

import "time"

// Node is a node's registration in the metadata store: written by its daemon at
// start and when something in it changes, kept after the daemon is gone.
type Node struct {
	Version  int       `json:"version"` // NodeVersion
	ID       NodeID    `json:"id"`
	Domain   Domain    `json:"domain"`
	DataAddr string    `json:"dataAddr"` // host:port of the replica server
	APIAddr  string    `json:"apiAddr"`  // host:port of the node's gRPC services
	Pools    []Pool    `json:"pools,omitempty"`
	Cordoned bool      `json:"cordoned,omitempty"` // no new replicas here
	Draining bool      `json:"draining,omitempty"` // replicas are moved away
	Started  time.Time `json:"started"`
	Release  string    `json:"release"`
	// GoneSince is when the leading controller first saw that the node's lease is
	// gone; zero for one that was alive then. It is kept here so that another
	// leader goes on counting.
	GoneSince time.Time `json:"goneSince,omitzero"`

	// Alive is not stored: whether the node's lease is there, as of the read.
	Alive bool `json:"-"`
	// Revision is the metadata store's, see Record.
	Revision int64 `json:"-"`
}

// NodeVersion is the version of Node's JSON form. History: 1, the first.
const NodeVersion = 1

// Domain is where a node stands: failure domains from small to large. Empty
// members are unknown, and count as one common domain.
type Domain struct {
	Host   string `json:"host,omitempty"` // default: the node's id
	Rack   string `json:"rack,omitempty"`
	Zone   string `json:"zone,omitempty"`
	Region string `json:"region,omitempty"`
}

// Includes says whether every member that want sets is the same in d: want is a
// topology requirement, d a node.
func (d Domain) Includes(want Domain) bool {
	ok := func(have, want string) bool { return want == "" || have == want }
	return ok(d.Host, want.Host) && ok(d.Rack, want.Rack) && ok(d.Zone, want.Zone) && ok(d.Region, want.Region)
}

// Topology keys as CSI and Kubernetes show them.
const (
	TopologyHost   = "topology." + DriverName + "/host"
	TopologyRack   = "topology." + DriverName + "/rack"
	TopologyZone   = "topology." + DriverName + "/zone"
	TopologyRegion = "topology." + DriverName + "/region"
)

// PoolState is what a pool can do.
type PoolState string

// The pool states. A Full pool still serves reads and what was accepted; a
// Failed one serves nothing.
const (
	PoolOnline PoolState = "online"
	PoolFull   PoolState = "full"
	PoolFailed PoolState = "failed"
)

// Pool is one disk of one node, formatted and owned by Holdfast.
type Pool struct {
	ID         PoolID    `json:"id"`
	Device     string    `json:"device"` // where it was last seen
	State      PoolState `json:"state"`
	TotalBytes int64     `json:"totalBytes"`
	FreeBytes  int64     `json:"freeBytes"` // what replicas may still take, the reserve excluded
	Message    string    `json:"message,omitempty"`
	// SilentSince is since when the pool's disk has not answered; zero while it does.
	// Its replicas are back by themselves when it answers again.
	SilentSince time.Time `json:"silentSince,omitzero"`
	// FailedSince is since when a Failed pool is.
	FailedSince time.Time `json:"failedSince,omitzero"`
	// Failed are the replicas on it that are served no more.
	Failed []FailedReplica `json:"failed,omitempty"`
}

// FailedReplica is a replica that its node serves no more, as its disk failed or
// what is on it is damaged. Only opening its pool anew, which a start of the
// daemon does, can bring it back.
type FailedReplica struct {
	ID     ReplicaID `json:"id"`
	Volume VolumeID  `json:"volume,omitempty"` // empty when it is too damaged to tell
	Since  time.Time `json:"since"`
	Why    string    `json:"why"`
}

// Tombstone allows a replica's data to be removed, and is the only thing that
// does (invariant 8).
type Tombstone struct {
	Replica ReplicaID `json:"replica"`
	Volume  VolumeID  `json:"volume"`
	Node    NodeID    `json:"node"`
	Pool    PoolID    `json:"pool"`
	Made    time.Time `json:"made"`
}

// Extent is a range of bytes in a volume; Length is positive.
type Extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// End is the first byte after the extent.
func (e Extent) End() int64 { return e.Offset + e.Length }

// Overlaps says whether both share a byte.
func (e Extent) Overlaps(o Extent) bool { return e.Offset < o.End() && o.Offset < e.End() }
