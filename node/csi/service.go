package nodecsi

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	mountutils "k8s.io/mount-utils"
	utilexec "k8s.io/utils/exec"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
	"github.com/holdfast-storage/holdfast/internal/join"
)

// Volumes is what the service needs of its node: volumes as block devices. Its
// methods may be called at the same time, for one volume only one at a time.
type Volumes interface {
	// Lookup reads a volume's record by id or by name. NotFound when there is no
	// such volume, Unavailable when the metadata store does not answer.
	Lookup(ctx context.Context, idOrName string) (holdfast.Record, error)
	// Attach makes the volume a block device of this node and returns its path.
	// On a volume that is attached here it returns the device it has; a device
	// that is dead it replaces. InUse, naming the holder, when it is attached to
	// another node.
	Attach(ctx context.Context, id holdfast.VolumeID) (devicePath string, err error)
	// Detach removes the device. InUse while something holds it open; no error
	// when it is not attached here.
	Detach(ctx context.Context, id holdfast.VolumeID) error
	// Attached is the device of a volume that is attached here.
	Attached(id holdfast.VolumeID) (devicePath string, ok bool)
	// WaitSize returns when the volume's device here has at least that size.
	WaitSize(ctx context.Context, id holdfast.VolumeID, bytes int64) error
	// Node describes this node.
	Node() holdfast.Node
}

// Config is what a Service is made of.
type Config struct {
	Volumes  Volumes      // required
	StateDir string       // required: a directory of its own that outlives the daemon
	Log      *slog.Logger // required
	// Thaw lets a volume's filesystem go on if it is frozen, before it is unmounted;
	// nil: none ever is.
	Thaw func(ctx context.Context, id holdfast.VolumeID) error
	// NoStaging leaves STAGE_UNSTAGE_VOLUME out: volumes are mounted at their
	// targets straight away.
	NoStaging bool
	// BusyTimeout is how long unmounting and detaching are tried while something
	// holds the mount or device; then the call fails. Default 40 s, within the
	// 60 s that Mesos waits for a call.
	BusyTimeout time.Duration
	// WorkTimeout bounds the work of one call, which may outlive its caller's
	// deadline. Default 10 minutes.
	WorkTimeout time.Duration
}

// WithDefaults fills the durations that are zero.
func (c Config) WithDefaults() Config {
	if c.BusyTimeout == 0 {
		c.BusyTimeout = 40 * time.Second
	}
	if c.WorkTimeout == 0 {
		c.WorkTimeout = 10 * time.Minute
	}
	return c
}

// Service is the CSI Node service. Its errors are gRPC status errors.
type Service struct {
	csi.UnimplementedNodeServer
	cfg     Config
	vols    Volumes
	states  *states
	mounter *mountutils.SafeFormatAndMount
	runs    join.Group[runKey, any]
	locks   locks

	unguarded sync.Once // the warning that bare mount points take writes
}

// New makes a Service; it makes the state directory if there is none.
func New(c Config) (*Service, error) {
	const op = "start CSI node service"
	if c.Volumes == nil || c.StateDir == "" || c.Log == nil {
		return nil, holdfast.E(op, holdfast.Invalid, "volumes, a state directory and a logger are needed")
	}
	c = c.WithDefaults()
	st, err := openStates(c.StateDir)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	return &Service{
		cfg: c, vols: c.Volumes, states: st,
		mounter: mountutils.NewSafeFormatAndMount(mountutils.NewWithoutSystemd(""), utilexec.New()),
	}, nil
}

// runKey says which calls are one: the same method with the same request.
type runKey struct {
	method string
	digest [sha256.Size]byte
}

// String is what errors show.
func (k runKey) String() string { return k.method }

// asked is a request, with the name of what it asks for.
type asked struct {
	method string
	req    proto.Message
}

// run does the work of a call in the background of it, shared with every
// identical call that comes meanwhile (gotcha 6).
func run[R any](ctx context.Context, s *Service, q asked, work func(context.Context) (R, error)) (R, error) {
	var none R
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(q.req)
	if err != nil {
		return none, grpcstatus.To(holdfast.WrapKind(q.method, holdfast.Invalid, err))
	}
	v, err := s.runs.Do(ctx, runKey{q.method, sha256.Sum256(b)}, func(ctx context.Context) (any, error) {
		ctx, cancel := context.WithTimeout(ctx, s.cfg.WorkTimeout)
		defer cancel()
		return work(ctx)
	})
	if err != nil {
		return none, grpcstatus.To(err)
	}
	r, ok := v.(R)
	if !ok {
		return none, grpcstatus.To(holdfast.E(q.method, holdfast.Other, fmt.Sprintf("unexpected result %T", v)))
	}
	return r, nil
}

// locks are mutexes by name. A volume's work is done under the lock of the
// volume and of every path it touches, taken in the order of their names.
type locks struct {
	mu   sync.Mutex
	held map[string]*keyLock
}

type keyLock struct {
	mu    sync.Mutex
	users int // holders and waiters; the entry goes when there is none
}

// lock takes the locks of the volume and of the paths; empty ones are left out.
// The volume is named by its id, or by what the caller called it if it is unknown.
func (l *locks) lock(volume string, paths ...string) (unlock func()) {
	keys := []string{"volume " + volume}
	for _, p := range paths {
		if p != "" {
			keys = append(keys, "path "+p)
		}
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	taken := make([]*keyLock, 0, len(keys))
	for _, k := range keys {
		taken = append(taken, l.enter(k))
		taken[len(taken)-1].mu.Lock()
	}
	return func() {
		for i, k := range slices.Backward(keys) {
			taken[i].mu.Unlock()
			l.leave(k)
		}
	}
}

func (l *locks) enter(key string) *keyLock {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held == nil {
		l.held = map[string]*keyLock{}
	}
	k := l.held[key]
	if k == nil {
		k = &keyLock{}
		l.held[key] = k
	}
	k.users++
	return k
}

func (l *locks) leave(key string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.held[key]
	k.users--
	if k.users == 0 {
		delete(l.held, key)
	}
}

// NodeGetInfo names the node and where it stands. There is no limit of volumes.
func (s *Service) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	n := s.vols.Node()
	host := n.Domain.Host
	if host == "" {
		host = string(n.ID)
	}
	segments := map[string]string{holdfast.TopologyHost: host}
	for key, value := range map[string]string{
		holdfast.TopologyRack: n.Domain.Rack, holdfast.TopologyZone: n.Domain.Zone, holdfast.TopologyRegion: n.Domain.Region,
	} {
		if value != "" {
			segments[key] = value
		}
	}
	return &csi.NodeGetInfoResponse{NodeId: string(n.ID), AccessibleTopology: &csi.Topology{Segments: segments}}, nil
}

// NodeGetCapabilities lists what the service can do.
func (s *Service) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	types := []csi.NodeServiceCapability_RPC_Type{
		csi.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csi.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
		csi.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		csi.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
	}
	if !s.cfg.NoStaging {
		types = append(types, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME)
	}
	r := &csi.NodeGetCapabilitiesResponse{}
	for _, t := range types {
		r.Capabilities = append(r.Capabilities, &csi.NodeServiceCapability{Type: &csi.NodeServiceCapability_Rpc{
			Rpc: &csi.NodeServiceCapability_RPC{Type: t},
		}})
	}
	return r, nil
}
