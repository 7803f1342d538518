package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	"github.com/holdfast-storage/holdfast/daemon"
	"github.com/holdfast-storage/holdfast/node/agent"
)

const daemonHelp = `Runs the daemon of this node: it keeps replicas on its pools, attaches volumes,
serves CSI and the API, and is a candidate for running the cluster's background
duties. It runs in the foreground until SIGTERM or SIGINT.

A first try on one machine, with etcd inside the daemon and a pool in a file:

  holdfast node --embedded-etcd --pool /var/lib/holdfast/pool.img,format,size=10GiB

Otherwise write a configuration file; "holdfast node config" prints one with every
setting, its default and what it means. The least there is:

  node: n1                     # default: the host name
  address: 10.0.0.1            # where the other nodes reach this one
  domain: {rack: r1, zone: a, region: eu}
  pools:
  - path: /dev/nvme1n1
    format: true               # makes a pool of it if it is empty, refuses it otherwise
  etcd:
    endpoints: [http://10.0.0.11:2379, http://10.0.0.12:2379, http://10.0.0.13:2379]
    # or: embedded: {members: {n1: 10.0.0.1, n2: 10.0.0.2, n3: 10.0.0.3}}

What else can be set, all with good defaults:

  csi, csiOptions   the CSI socket, and what it announces to Mesos, Kubernetes and Nomad
  placement         how far pools are filled: overcommit, minFree
  reconcile         how many lost replicas are rebuilt at once: rebuilds, rebuildsPerNode
  replication       silentAfter, reconnectFor, repairRate, congestion
  times             lease (a silent node is dead), replaceAfter (its replicas are made elsewhere)
  api, dataPort, nodePort, autoPools, stateDir, runDir, log
  frontEnd          how volumes become block devices: auto, fuseloop, nbd, ublk
  processors        how many are used while one would be enough: auto, one, all
  keeper            false: the daemon runs alone, and its devices end with it

The process that is started is the keeper: it starts the daemon, holds its devices
while the daemon is killed, crashes or is replaced ("holdfast node upgrade"), and
starts the next one. SIGTERM and SIGINT end both.`

// daemonFlags override the configuration file.
type daemonFlags struct {
	config, id, address, stateDir, csi string
	frontEnd                           string
	rack, zone, region                 string
	pools, api, etcd                   []string
	embedded                           bool
}

func (c *cli) daemonCommand() *cobra.Command {
	var f daemonFlags
	cmd := &cobra.Command{
		Use: "node", Short: "Run the daemon of this node; or show, drain and forget nodes", Long: daemonHelp,
		Args: noCommandArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.config == "" && !f.embedded && len(f.etcd) == 0 {
				return usage(cmd, fmt.Errorf("a configuration is needed: --config FILE, or --embedded-etcd for a first try, or --etcd for an etcd of its own"))
			}
			cfg, err := f.load()
			if err != nil {
				return err
			}
			return c.runDaemon(cmd.Context(), cfg)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.config, "config", "c", "", "configuration file, YAML or JSON")
	fl.StringVar(&f.id, "id", "", "this node's id (default: the host name)")
	fl.StringVar(&f.address, "address", "", "IP address or name by which other nodes reach this one")
	fl.StringVar(&f.stateDir, "state-dir", "", "the daemon's own folder (default "+daemon.DefaultStateDir+")")
	fl.StringVar(&f.rack, "rack", "", "rack the node stands in")
	fl.StringVar(&f.zone, "zone", "", "zone the node stands in")
	fl.StringVar(&f.region, "region", "", "region the node stands in")
	fl.StringArrayVar(&f.pools, "pool", nil, "disk, or image file: PATH[,format][,size=SIZE]; may be repeated")
	fl.StringSliceVar(&f.api, "api", nil, "addresses of the users' API")
	fl.StringVar(&f.csi, "csi", "", "socket of the CSI driver (default "+daemon.DefaultCSI+")")
	fl.StringVar(&f.frontEnd, "frontend", "", "how volumes become block devices: auto (default), fuseloop, nbd or ublk")
	fl.StringSliceVar(&f.etcd, "etcd", nil, "endpoints of an etcd cluster, http://host:2379")
	fl.BoolVar(&f.embedded, "embedded-etcd", false, "run etcd, one member, inside this daemon")
	return cmd
}

// load is the configuration file with the flags over it.
func (f daemonFlags) load() (daemon.Config, error) {
	cfg := daemon.DefaultConfig()
	if f.config != "" {
		var err error
		if cfg, err = daemon.Load(f.config); err != nil {
			return cfg, err
		}
	}
	for _, o := range []struct {
		flag string
		to   *string
	}{{f.id, &cfg.Node}, {f.address, &cfg.Address}, {f.stateDir, &cfg.StateDir}, {f.rack, &cfg.Domain.Rack}, {f.zone, &cfg.Domain.Zone}, {f.region, &cfg.Domain.Region}, {f.csi, &cfg.CSI},
		{f.frontEnd, &cfg.FrontEnd}} {
		if o.flag != "" {
			*o.to = o.flag
		}
	}
	for _, o := range []struct {
		flag []string
		to   *[]string
	}{{f.api, &cfg.API}, {f.etcd, &cfg.Etcd.Endpoints}} {
		if len(o.flag) > 0 {
			*o.to = o.flag
		}
	}
	if f.embedded {
		cfg.Etcd.Embedded = &daemon.EmbeddedEtcd{}
	}
	for _, p := range f.pools {
		pc, err := parsePool(p)
		if err != nil {
			return cfg, err
		}
		cfg.Pools = append(cfg.Pools, pc)
	}
	return cfg, cfg.Validate()
}

// parsePool reads PATH[,format][,size=SIZE].
func parsePool(s string) (agent.PoolConfig, error) {
	parts := strings.Split(s, ",")
	pc := agent.PoolConfig{Path: parts[0]}
	for _, p := range parts[1:] {
		size, isSize := strings.CutPrefix(p, "size=")
		switch {
		case p == "format":
			pc.Format = true
		case isSize:
			n, err := api.ParseBytes(size)
			if err != nil {
				return pc, err
			}
			pc.ImageBytes = n
		default:
			return pc, holdfast.E("read --pool "+s, holdfast.Invalid, fmt.Sprintf("%q is unknown; write PATH[,format][,size=SIZE]", p))
		}
	}
	return pc, nil
}
