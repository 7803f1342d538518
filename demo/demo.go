package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
	"github.com/holdfast-storage/holdfast/internal/rpc"
)

// Options of a run. Start from DefaultOptions.
type Options struct {
	Dir  string // of the run, removed at its end; sparse images of some gigabytes
	Logs string // kept
	Keep bool   // leave the cluster running at the end
	Out  io.Writer
	TTY  bool // Out is a terminal
	// Prefix of the namespaces' names.
	Prefix string
	// Binary is this program, run as the nodes' daemons.
	Binary string
}

// DefaultOptions has everything but Out and Binary.
func DefaultOptions() Options {
	return Options{Dir: "/var/tmp/hf-demo", Logs: "/var/tmp/hf-demo-logs", Prefix: "hf-demo-"}
}

// Run shows it. It returns nil only if everything held. On return everything it
// made is gone, unless it succeeded with Keep. Errors: Denied when not root,
// NotFound when something that it needs is not installed, InUse while another
// run is on; otherwise what did not hold.
func Run(ctx context.Context, o Options) (err error) {
	if err := possible(o.Dir); err != nil {
		return err
	}
	// Cleaning up must also work when ctx is what was interrupted.
	calm := context.WithoutCancel(ctx)
	unlock, err := o.lock(calm)
	if err != nil {
		return err
	}
	defer unlock()
	n := netcluster.Network{Prefix: o.Prefix}
	if err := netcluster.Clean(calm, n, o.Dir); err != nil {
		return holdfast.Wrap("clean up after an earlier run", err)
	}
	r, err := newRun(o, n)
	if err != nil {
		return errors.Join(err, netcluster.Clean(calm, n, o.Dir))
	}
	defer r.close()
	err = r.play(ctx)
	if err == nil && o.Keep {
		r.tellHowToTalk()
		return nil
	}
	if err != nil {
		r.explain(err)
	}
	r.tl.say("\nRemoving everything that was made ...")
	r.end()
	return errors.Join(err, holdfast.Wrap("clean up", netcluster.Clean(calm, n, o.Dir)))
}

// Clean removes what a run with Keep, or one that was killed, left.
func Clean(ctx context.Context, o Options) error {
	if err := possible(o.Dir); err != nil {
		return err
	}
	unlock, err := o.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	return netcluster.Clean(ctx, netcluster.Network{Prefix: o.Prefix}, o.Dir)
}

// neededBytes is what a run writes at most, all replicas and etcd together.
const neededBytes = 3 << 30

// possible checks what cannot be made up for.
func possible(dir string) error {
	const op = "start the demo"
	if os.Geteuid() != 0 {
		return holdfast.E(op, holdfast.Denied, "it makes network namespaces and mounts filesystems: run it as root")
	}
	for program, pkg := range map[string]string{"ip": "iproute2", "mkfs.xfs": "xfsprogs", "psql": "postgresql"} {
		if _, err := exec.LookPath(program); err != nil {
			return holdfast.E(op, holdfast.NotFound, fmt.Sprintf("the program %s is not installed; on Debian: apt-get install %s", program, pkg))
		}
	}
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(dev); err != nil {
			return holdfast.E(op, holdfast.NotFound, dev+" is not there; load its kernel module: modprobe "+map[string]string{"/dev/fuse": "fuse", "/dev/loop-control": "loop"}[dev])
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(filepath.Dir(dir), &st); err != nil {
		return holdfast.WrapKind(op+" in "+dir, holdfast.Invalid, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < neededBytes {
		return holdfast.E(op, holdfast.NoSpace, fmt.Sprintf("%s has %s free, %s are needed; choose another folder with --dir", filepath.Dir(dir), api.Bytes(free), api.Bytes(neededBytes)))
	}
	return nil
}

// lockFile is one for all runs with the same namespaces, whatever their folder.
func (o Options) lockFile() string { return "/run/" + o.Prefix + "lock" }

// lock makes sure that there is one run at a time.
func (o Options) lock(ctx context.Context) (unlock func(), err error) {
	return netcluster.Lock(o.lockFile(), func() error { return netcluster.Clean(ctx, netcluster.Network{Prefix: o.Prefix}, o.Dir) })
}

// newRun prepares folders and finds programs.
func newRun(o Options, n netcluster.Network) (*run, error) {
	for _, d := range []string{o.Dir, o.Logs, filepath.Join(o.Dir, "db")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, holdfast.Wrap("prepare the demo", err)
		}
	}
	old, _ := filepath.Glob(filepath.Join(o.Logs, "*.log"))
	for _, f := range old {
		_ = os.Remove(f)
	}
	pg, err := netcluster.FindPostgres(filepath.Join(o.Dir, "db"), filepath.Join(o.Logs, "postgres.log"))
	if err == nil {
		pg, err = pg.At(pg.Sockets())
	}
	if err != nil {
		return nil, err
	}
	l, err := netcluster.NewLedger(filepath.Join(o.Dir, "acknowledged"))
	if err != nil {
		return nil, err
	}
	conns := rpc.NewConns(rpc.Config{CallTimeout: 30 * time.Second})
	return &run{
		o: o, tl: newTimeline(o.Out, o.TTY), pg: pg, ledger: l,
		c: &cluster{dir: o.Dir, logs: o.Logs, binary: o.Binary, net: n, nodes: []string{"n1", "n2", "n3", "n4"}, procs: map[string]*netcluster.Process{}, conns: conns},
		k: &netcluster.Orchestrator{
			Conns:  conns,
			Socket: func(node string) string { return csiSocket(o.Dir, node) },
			Folder: func(node string) string { return filepath.Join(o.Dir, node, "csi") },
		},
		claim: &netcluster.Claim{Name: volumeName, Bytes: volumeBytes, Replicas: "3", FSType: "xfs"},
	}, nil
}
