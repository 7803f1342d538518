package daemon

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	"github.com/holdfast-storage/holdfast/node/agent"
	"github.com/holdfast-storage/holdfast/node/device/frontends"
)

// Default ports and paths.
const (
	DefaultDataPort       = 9810
	DefaultNodePort       = 9812
	DefaultEtcdClientPort = 9813
	DefaultEtcdPeerPort   = 9814
	DefaultStateDir       = "/var/lib/holdfast"
	DefaultRunDir         = "/run/holdfast"
	DefaultCSI            = "unix:///run/holdfast/csi.sock"
	defaultLeaseTTL       = 5 * time.Second
)

// Config is the configuration file of a node's daemon, YAML or JSON. Only Etcd
// has no default that works. Start from DefaultConfig.
type Config struct {
	// Node is the node's id in the cluster. Default: the host name.
	Node string `json:"node,omitempty"`
	// Address is where other nodes reach this one: an IP address or host name.
	Address string `json:"address,omitempty"`
	// DataPort and NodePort are for replicas' data and for the nodes' calls.
	DataPort int `json:"dataPort,omitempty"`
	NodePort int `json:"nodePort,omitempty"`
	// Domain is where the node stands, for placing replicas far apart.
	Domain holdfast.Domain `json:"domain,omitzero"`
	// Pools are the disks of this node; none makes a storageless node.
	Pools []agent.PoolConfig `json:"pools,omitempty"`
	// AutoPools also takes every disk that carries this cluster's and this node's mark.
	AutoPools bool `json:"autoPools,omitempty"`
	// API are the addresses of the users' API. Anyone who can connect may do anything.
	API []string `json:"api,omitempty"`
	// CSI is the socket of the CSI driver: identity, controller and node services.
	// Empty: none.
	CSI        string     `json:"csi"`
	CSIOptions CSIOptions `json:"csiOptions,omitzero"`
	// StateDir is the daemon's own folder, which outlives a reboot; RunDir need
	// not: pools and devices are mounted below it.
	StateDir string `json:"stateDir,omitempty"`
	RunDir   string `json:"runDir,omitempty"`
	// FrontEnd is how volumes become block devices: auto (default), fuseloop, nbd
	// or ublk.
	FrontEnd string `json:"frontEnd,omitempty"`
	// Processors says how many of Go's processors the daemon uses while it has little
	// to do: one, or all. auto (default): one where the daemon is an I/O flusher
	// (package reclaim). With one it also looks for what comes next for a moment before
	// it sleeps. docs/design/processors.md and 2026-11-23-polling.md.
	Processors string `json:"processors,omitempty"`
	// Keeper has the daemon run under a keeper, which holds its devices while it is
	// killed or replaced. Default true.
	Keeper bool  `json:"keeper"`
	Etcd   Etcd  `json:"etcd"`
	Times  Times `json:"times,omitzero"`

	Placement   Placement   `json:"placement,omitzero"`
	Reconcile   Reconcile   `json:"reconcile,omitzero"`
	Replication Replication `json:"replication,omitzero"`
	Log         Log         `json:"log,omitzero"`
}

// Etcd says where the records are: exactly one of Embedded and Endpoints.
type Etcd struct {
	Embedded  *EmbeddedEtcd `json:"embedded,omitempty"`
	Endpoints []string      `json:"endpoints,omitempty"`
	Username  string        `json:"username,omitempty"`
	// PasswordFile holds the password, so that the configuration holds no secret.
	PasswordFile string `json:"passwordFile,omitempty"`
	CAFile       string `json:"caFile,omitempty"`
	CertFile     string `json:"certFile,omitempty"`
	KeyFile      string `json:"keyFile,omitempty"`
	Prefix       string `json:"prefix,omitempty"` // of all keys, default /holdfast/v1/
}

// EmbeddedEtcd is an etcd member inside this daemon.
type EmbeddedEtcd struct {
	Dir        string `json:"dir,omitempty"`        // default: etcd below StateDir
	ClientPort int    `json:"clientPort,omitempty"` // default 9813
	PeerPort   int    `json:"peerPort,omitempty"`   // default 9814
	// Members are the addresses by node id of all members, this one included,
	// the same on each of them; empty for a single member.
	Members map[string]string `json:"members,omitempty"`
}

// Times bound how fast failures are noticed.
type Times struct {
	// Lease is after how long of silence a node counts as dead. Default 5s.
	Lease Duration `json:"lease,omitzero"`
	// ReplaceAfter is after how long the replicas of a dead node are replaced by
	// new ones elsewhere. Default 10m.
	ReplaceAfter Duration `json:"replaceAfter,omitzero"`
	// RetryPools is how often a pool that failed or cannot be opened is opened
	// anew. Default 30s.
	RetryPools Duration `json:"retryPools,omitzero"`
}

// Log says what is logged to standard error.
type Log struct {
	Level  string `json:"level,omitempty"`  // debug, info (default), warn or error
	Format string `json:"format,omitempty"` // text (default) or json
}

// Duration is a time.Duration written as "5s".
type Duration time.Duration

// MarshalText writes it as time.Duration does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads "5s", "1m30s".
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("%q is no duration; write it like 5s or 1m30s", b)
	}
	*d = Duration(v)
	return nil
}

// DefaultConfig is a configuration with everything but the etcd.
func DefaultConfig() Config {
	host, _ := os.Hostname()
	return Config{
		Node: host, Address: "127.0.0.1", DataPort: DefaultDataPort, NodePort: DefaultNodePort,
		API: []string{api.DefaultTCP, api.DefaultUnix}, CSI: DefaultCSI, StateDir: DefaultStateDir, RunDir: DefaultRunDir, FrontEnd: "auto", Processors: "auto", Keeper: true,
		Times: Times{Lease: Duration(defaultLeaseTTL), ReplaceAfter: Duration(10 * time.Minute), RetryPools: Duration(30 * time.Second)},
		Log:   Log{Level: "info", Format: "text"},
	}
}

// Load reads a configuration file over the defaults and validates it. A member
// that it does not know is an error, as it is a spelling mistake most often.
func Load(path string) (Config, error) {
	op := "read configuration " + path
	raw, err := os.ReadFile(path)
	if err != nil {
		return Config{}, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	c := DefaultConfig()
	if err := yaml.UnmarshalStrict(raw, &c); err != nil {
		return Config{}, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	if err := c.Validate(); err != nil {
		return Config{}, holdfast.Wrap(op, err)
	}
	return c, nil
}

// Validate checks a configuration. Errors are of kind Invalid and say what to
// change.
func (c Config) Validate() error {
	bad := func(format string, a ...any) error {
		return holdfast.E("validate configuration", holdfast.Invalid, fmt.Sprintf(format, a...))
	}
	if err := holdfast.ValidateNodeID(holdfast.NodeID(c.Node)); err != nil {
		return err
	}
	if c.Address == "" || strings.Contains(c.Address, "/") || net.ParseIP(c.Address) == nil && strings.Contains(c.Address, ":") {
		return bad("address is %q; give the IP address or host name by which other nodes reach this one, without a port", c.Address)
	}
	if ip := net.ParseIP(c.Address); ip != nil && ip.IsUnspecified() {
		return bad("address is %s; other nodes cannot reach that: give this node's own address", c.Address)
	}
	for name, p := range map[string]int{"dataPort": c.DataPort, "nodePort": c.NodePort} {
		if p < 0 || p > 65535 {
			return bad("%s is %d; a port is 1 to 65535", name, p)
		}
	}
	for _, p := range c.Pools {
		if err := p.Validate(); err != nil {
			return err
		}
	}
	for _, a := range append(slices.Clone(c.API), c.CSI) {
		if a == "" {
			continue
		}
		if _, _, err := rpc.SplitTarget(a); err != nil {
			return err
		}
	}
	if names := frontends.Names(); c.FrontEnd != "" && !slices.Contains(names, c.FrontEnd) {
		return bad("frontEnd is %q; choose one of %s", c.FrontEnd, strings.Join(names, ", "))
	}
	if names := []string{"auto", "one", "all"}; c.Processors != "" && !slices.Contains(names, c.Processors) {
		return bad("processors is %q; choose one of %s", c.Processors, strings.Join(names, ", "))
	}
	for name, dir := range map[string]string{"stateDir": c.StateDir, "runDir": c.RunDir} {
		if !filepath.IsAbs(dir) {
			return bad("%s is %q; give an absolute path", name, dir)
		}
	}
	if l := time.Duration(c.Times.Lease); l < time.Second || l > time.Minute {
		return bad("times.lease is %v; choose 1s to 1m", l)
	}
	if r := time.Duration(c.Times.ReplaceAfter); r < time.Duration(c.Times.Lease) {
		return bad("times.replaceAfter is %v; it must be longer than times.lease", r)
	}
	if r := time.Duration(c.Times.RetryPools); r < time.Second {
		return bad("times.retryPools is %v; choose 1s or more", r)
	}
	if err := c.validateSettings(); err != nil {
		return err
	}
	if err := c.Log.validate(); err != nil {
		return err
	}
	return c.Etcd.validate(c.Node)
}

func (e Etcd) validate(node string) error {
	bad := func(format string, a ...any) error {
		return holdfast.E("validate configuration", holdfast.Invalid, fmt.Sprintf(format, a...))
	}
	if (e.Embedded == nil) == (len(e.Endpoints) == 0) {
		return bad("etcd needs exactly one of embedded and endpoints: embedded: {} for a first try, endpoints: [http://host:2379, ...] for an etcd cluster of its own")
	}
	if (e.CertFile == "") != (e.KeyFile == "") {
		return bad("etcd.certFile and etcd.keyFile belong together; give both or none")
	}
	if (e.Username == "") != (e.PasswordFile == "") {
		return bad("etcd.username and etcd.passwordFile belong together; give both or none")
	}
	if m := e.Embedded; m != nil && len(m.Members) > 0 {
		if _, ok := m.Members[node]; !ok {
			return bad("etcd.embedded.members does not name this node, %s; list the address of every member by its node's id", node)
		}
		if len(m.Members)%2 == 0 {
			return bad("etcd.embedded.members has %d members; an odd number, such as 3, survives more failures", len(m.Members))
		}
	}
	return nil
}

func (l Log) validate() error {
	if l.Level != "" && !slices.Contains([]string{"debug", "info", "warn", "error"}, l.Level) {
		return holdfast.E("validate configuration", holdfast.Invalid, fmt.Sprintf("log.level is %q; choose debug, info, warn or error", l.Level))
	}
	if l.Format != "" && l.Format != "text" && l.Format != "json" {
		return holdfast.E("validate configuration", holdfast.Invalid, fmt.Sprintf("log.format is %q; choose text or json", l.Format))
	}
	return nil
}

// KeeperStatus is the file in which the keeper says who it is.
func (c Config) KeeperStatus() string { return filepath.Join(c.RunDir, "keeper.json") }

func (c Config) hostPort(port int) string { return net.JoinHostPort(c.Address, fmt.Sprint(port)) }
