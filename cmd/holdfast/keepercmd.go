package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/daemon"
	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/internal/processors"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
	"github.com/holdfast-storage/holdfast/node/device/poll"
	"github.com/holdfast-storage/holdfast/node/keeper"
	"github.com/holdfast-storage/holdfast/node/reclaim"
)

// daemonExit is an error that is nothing but the exit code of the daemon, which
// has said itself what went wrong.
type daemonExit int

func (e daemonExit) Error() string {
	return fmt.Sprintf("the daemon ended with exit code %d", int(e))
}

// runDaemon runs the daemon, or the keeper that starts this program again as the
// daemon.
func (c *cli) runDaemon(ctx context.Context, cfg daemon.Config) error {
	log := slog.New(cfg.Log.Handler(c.err))
	k, err := keeper.FromEnv()
	if err != nil {
		return err
	}
	if k == nil && cfg.Keeper {
		return runKeeper(ctx, cfg, log.With("node", cfg.Node, "part", "keeper"))
	}
	avoided := reclaim.Avoid()
	avoided.Tell(log.With("node", cfg.Node), "daemon")
	handOver := make(chan os.Signal, 1)
	if k != nil {
		signal.Notify(handOver, keeper.HandOver)
		defer signal.Stop(handOver)
	}
	return daemon.Run(ctx, cfg, daemon.Options{Release: releaseName(), Log: log, Keeper: k, HandOver: handOver,
		Processors:   governor(cfg.Processors, avoided.IOFlusher == nil),
		DeviceHelper: []string{"/proc/self/exe", fuseloop.HelperArg}})
}

// governor is what chooses how many processors the daemon uses. Where the daemon may
// wait for its own devices when memory is short, a thread must not do so with the only
// processor.
func governor(choice string, flusher bool) *processors.Governor {
	if choice == "all" || choice != "one" && !flusher {
		return nil
	}
	return processors.New(processors.Config{Waited: disk.Waited, Polled: poll.Spent})
}

func runKeeper(ctx context.Context, cfg daemon.Config, log *slog.Logger) error {
	// The path, not /proc/self/exe: an upgrade puts another file there.
	path, err := os.Executable()
	if err != nil {
		return holdfast.WrapKind("find this program", holdfast.Other, err)
	}
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return holdfast.WrapKind("make the run directory", holdfast.Invalid, err)
	}
	runtime.GOMAXPROCS(1) // it hardly ever runs
	status, err := keeper.Run(ctx, keeper.Config{
		Path: path, Args: os.Args[1:], Try: []string{"version"}, StatusFile: cfg.KeeperStatus(),
		Stdout: os.Stdout, Stderr: os.Stderr, Log: log,
	})
	if err == nil && status != 0 {
		return daemonExit(status)
	}
	return err
}

const upgradeHelp = `Replaces the daemon of this machine by the program that is now installed, while
volumes are attached, mounted and busy: their I/O waits for a moment and goes on.

Install the new version in place of the old one first (by renaming, not by writing
into the file that runs). If the new program does not run at all, the daemon stays
as it is; if it ends soon after its start, it is started again and again, and the
devices wait: put the old version back then.

The same is done by SIGHUP to the process of the service ("systemctl reload holdfast").`

func (c *cli) upgradeCommand() *cobra.Command {
	var config string
	var patience time.Duration
	cmd := &cobra.Command{
		Use: "upgrade", Short: "Replace the daemon of this machine while its volumes are in use", Long: upgradeHelp,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg := daemon.DefaultConfig()
			if config != "" {
				var err error
				if cfg, err = daemon.Load(config); err != nil {
					return err
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), patience)
			defer cancel()
			return upgrade(ctx, c.out, cfg.KeeperStatus())
		},
	}
	cmd.Flags().StringVarP(&config, "config", "c", "", "the daemon's configuration file, if its run directory is not the default")
	cmd.Flags().DurationVar(&patience, "timeout", time.Minute, "how long to wait for the new daemon")
	return cmd
}

// upgrade asks the keeper for another daemon and waits until that works.
func upgrade(ctx context.Context, out io.Writer, statusFile string) error {
	op := "upgrade the daemon of " + filepath.Dir(statusFile)
	before, err := keeper.ReadStatus(statusFile)
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	if err := syscall.Kill(before.Keeper, syscall.SIGHUP); err != nil {
		return holdfast.WrapKind(op, holdfast.Denied, err)
	}
	every := time.NewTicker(50 * time.Millisecond)
	defer every.Stop()
	for {
		select {
		case <-every.C:
		case <-ctx.Done():
			return holdfast.E(op, holdfast.Unavailable, "the new daemon does not work yet; its log says why. If the new program cannot run, the old daemon goes on")
		}
		now, err := keeper.ReadStatus(statusFile)
		if err != nil {
			return holdfast.Wrap(op, err)
		}
		if now.Ready && now.Daemon != before.Daemon {
			_, err := fmt.Fprintf(out, "daemon replaced: process %d, before %d\n", now.Daemon, before.Daemon)
			return err
		}
	}
}
