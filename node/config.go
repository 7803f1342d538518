package node

import (
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/node/agent"
	nodecsi "github.com/holdfast-storage/holdfast/node/csi"
	"github.com/holdfast-storage/holdfast/node/device/frontends"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
	"github.com/holdfast-storage/holdfast/replication"
)

// Config says what a node is and where it listens. Start from DefaultConfig.
type Config struct {
	Agent agent.Config
	Store metadata.Store // the caller closes it after Run
	Log   *slog.Logger

	// StateDir keeps what has to outlive a reboot: what the CSI service mounted.
	StateDir string
	// RunDir holds mounts of pools and devices; one per daemon.
	RunDir string

	// FrontEnd is how volumes become block devices: one of frontends.Names.
	// Default auto.
	FrontEnd string

	DataListen string // host:port of the replica server; port 0 takes a free one
	APIListen  string // host:port of the gRPC services for other nodes
	// Advertise is the host under which others reach this node. Default: the
	// hosts of DataListen and APIListen, which must then be specific.
	Advertise string
	// Keeper holds the devices for the next process of this node; nil: none, they
	// end with this one.
	Keeper fuseloop.Keeper
	// DeviceHelper is fuseloop.Config.Helper; empty: this process does it all.
	DeviceHelper []string
	// CSIEndpoint is where the CSI services answer: unix:///path. Empty: nowhere.
	CSIEndpoint string
	// RegisterCSI adds services beside the CSI node service: identity and
	// controller. Needed when CSIEndpoint is set, as every client asks for the
	// identity first.
	RegisterCSI nodecsi.Register
	// CSINoStaging makes the CSI node service mount volumes at their targets
	// straight away: it does not announce STAGE_UNSTAGE_VOLUME.
	CSINoStaging bool

	// RegisterAPI adds services beside NodeService, for other nodes.
	RegisterAPI func(*grpc.Server)

	RPC     rpc.Config
	Primary replication.Config // times and rates of primaries; zero values are defaults
	// Stepped, if set, is called after each step of a volume. It must not block.
	Stepped func()
	// RepairRate bounds repairs and scrubs of the volumes served here, and repairs by
	// others to and from replicas here, together, in bytes a second (0: not bounded);
	// Repairs how many large repairs go on at once: see dataplane.Config.
	RepairRate int64
	Repairs    int
}

// DefaultConfig is a configuration with everything but identity and store.
func DefaultConfig() Config {
	return Config{
		Agent:    agent.DefaultConfig(),
		StateDir: "/var/lib/holdfast", RunDir: "/run/holdfast", FrontEnd: frontends.Auto,
		DataListen: ":9810", APIListen: ":9812",
	}
}

// Validate checks a configuration. Errors are of kind Invalid and say what to
// change.
func (c Config) Validate() error {
	const op = "validate node configuration"
	bad := func(format string, a ...any) error {
		return holdfast.E(op, holdfast.Invalid, fmt.Sprintf(format, a...))
	}
	if err := c.Agent.Validate(); err != nil {
		return holdfast.Wrap(op, err)
	}
	if c.Store == nil || c.Log == nil {
		return bad("a metadata store and a log are needed")
	}
	for name, dir := range map[string]string{"state directory": c.StateDir, "run directory": c.RunDir} {
		if !filepath.IsAbs(dir) {
			return bad("the %s %q is not an absolute path", name, dir)
		}
	}
	if c.FrontEnd != "" && !slices.Contains(frontends.Names(), c.FrontEnd) {
		return bad("the front end %q does not exist; choose one of %s", c.FrontEnd, strings.Join(frontends.Names(), ", "))
	}
	for name, listen := range map[string]string{"data": c.DataListen, "API": c.APIListen} {
		host, _, err := net.SplitHostPort(listen)
		if err != nil {
			return bad("the %s address %q is not host:port", name, listen)
		}
		if ip := net.ParseIP(host); c.Advertise == "" && (host == "" || ip != nil && ip.IsUnspecified()) {
			return bad("the %s address %q does not say where others reach this node; listen on one host, or set the address to advertise", name, listen)
		}
	}
	if network, _, err := rpc.SplitTarget(c.CSIEndpoint); c.CSIEndpoint != "" && (err != nil || network != "unix") {
		return bad("the CSI endpoint %q is not unix:///path", c.CSIEndpoint)
	}
	if c.CSIEndpoint != "" && c.RegisterCSI == nil {
		return bad("a CSI endpoint needs the identity service to be registered")
	}
	return nil
}

// advertised is where others reach what listens at l.
func (c Config) advertised(l net.Listener) string {
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil || c.Advertise == "" {
		return l.Addr().String()
	}
	return net.JoinHostPort(c.Advertise, port)
}
