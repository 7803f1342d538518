package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/keeper"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

const (
	surviveVolume = "survive"
	surviveBytes  = 512 << 20
	// The volume is on the second node, and the replica that is lost on the third;
	// the metadata is on the first, which serves a volume of its own at the end.
	surviveNode = 1
	surviveLost = nodes - 1
	// surviveWait bounds what is waited for after a fault.
	surviveWait = time.Minute
)

// survived is one fault under a verifying load on a mounted volume with three
// replicas. Times are in milliseconds.
type survived struct {
	What string `json:"what"`
	// Longest is the longest I/O in all, Usual that in a while before without a fault.
	Longest []float64 `json:"longestMs"`
	Usual   []float64 `json:"usualMs"`
	// Of a daemon under a keeper: when its successor was started, when it said that
	// it is up, and the longest I/O counted from then.
	Started []float64 `json:"successorStartedMs,omitempty"`
	Up      []float64 `json:"successorUpMs,omitempty"`
	AfterUp []float64 `json:"longestAfterUpMs,omitempty"`
	// InSync is how long it took then until all replicas were in sync again, and Back
	// the longest I/O meanwhile.
	InSync []float64 `json:"inSyncMs"`
	Back   []float64 `json:"longestUntilInSyncMs"`

	// fault lets it happen, waits until its effect is over, and gives the times of
	// the successor, if there is one.
	fault func(ctx context.Context) (succession, error)
}

// succession is when a daemon's successor was started, and when it was up.
type succession struct{ started, up time.Time }

// survive measures what applications see of daemons that die.
func (b *bench) survive(ctx context.Context) error {
	err := b.surviveOn(ctx, surviveNode, []*survived{
		{What: "SIGKILL of the daemon that serves the volume", fault: b.killServing(surviveNode)},
		{What: "SIGKILL of the daemon of a remote replica", fault: b.killRemote},
		{What: "SIGSTOP of the daemon of a remote replica", fault: b.stopRemote},
	})
	if err != nil {
		return err
	}
	return b.surviveOn(ctx, 0, []*survived{
		{What: "SIGKILL of the daemon that serves the volume, and has the only etcd in it", fault: b.killServing(0)},
	})
}

// surviveOn measures faults of a volume on a node, whose daemon gets a keeper for
// that.
func (b *bench) surviveOn(ctx context.Context, node int, figures []*survived) error {
	if err := b.cluster.restart(ctx, node, true); err != nil {
		return err
	}
	// The others find out only after a moment that they can reach it again.
	err := until(ctx, surviveWait, "create volume "+surviveVolume, func(ctx context.Context) (bool, error) {
		_, err := b.cluster.create(ctx, surviveVolume, nodes, surviveBytes)
		return err == nil, nil
	})
	if err != nil {
		return err
	}
	dev, _, err := b.cluster.attach(ctx, surviveVolume, node)
	if err != nil {
		return err
	}
	if _, err := command(ctx, "mkfs.xfs", "-q", dev); err != nil {
		return err
	}
	b.results.Survive = append(b.results.Survive, figures...)
	err = b.mounted(dev, func(dir string) error {
		load, err := startVerified(dir)
		if err != nil {
			return err
		}
		for n := 0; n < b.o.repeat && err == nil; n++ {
			for _, s := range figures {
				if err = b.once(ctx, load, s); err != nil {
					break
				}
			}
			fmt.Fprintf(os.Stderr, "survive: repetition %d of %d is done\n", n+1, b.o.repeat)
		}
		if e := load.end(); e != nil {
			return e // it explains the other one
		}
		if err == nil {
			err = b.weighKeeper(node)
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := b.cluster.gone(ctx, surviveVolume, node); err != nil {
		return err
	}
	return b.cluster.restart(ctx, node, false)
}

// weighKeeper says what the keeper of a node takes, CPU time aside.
func (b *bench) weighKeeper(node int) error {
	s, err := keeper.ReadStatus(b.cluster.config(node).KeeperStatus())
	if err != nil {
		return err
	}
	u, err := readUsage(s.Keeper)
	b.results.Keeper = &u
	return err
}

// once measures one fault once.
func (b *bench) once(ctx context.Context, load *verified, s *survived) error {
	before := time.Now()
	select {
	case <-time.After(b.o.runtime):
	case <-ctx.Done():
		return ctx.Err()
	}
	began := time.Now()
	x, err := s.fault(ctx)
	if err == nil {
		err = load.passed(ctx, time.Now())
	}
	if err != nil {
		return holdfast.Wrap(s.What, err)
	}
	over := time.Now()
	s.Usual = append(s.Usual, ms(load.longest(before, began)))
	s.Longest = append(s.Longest, ms(load.longest(began, over)))
	if !x.up.IsZero() {
		s.Started, s.Up = append(s.Started, ms(x.started.Sub(began))), append(s.Up, ms(x.up.Sub(began)))
		s.AfterUp = append(s.AfterUp, ms(load.longest(x.up, over)))
	}
	for i := range nodes {
		if err := b.cluster.carryOn(i); err != nil {
			return err
		}
	}
	err = until(ctx, surviveWait, "bring replicas back in sync", func(ctx context.Context) (bool, error) {
		ok, err := b.cluster.allInSync(ctx, surviveVolume, nodes)
		return ok && err == nil, nil // the one that is asked may be starting
	})
	s.InSync, s.Back = append(s.InSync, ms(time.Since(over))), append(s.Back, ms(load.longest(over, time.Now())))
	return err
}

// killServing kills a node's daemon and waits for the one that its keeper starts.
func (b *bench) killServing(node int) func(context.Context) (succession, error) {
	return func(ctx context.Context) (succession, error) {
		var x succession
		file := b.cluster.config(node).KeeperStatus()
		dead, err := keeper.ReadStatus(file)
		if err == nil {
			err = unix.Kill(dead.Daemon, unix.SIGKILL)
		}
		if err != nil {
			return x, err
		}
		err = until(ctx, surviveWait, "start a successor", func(context.Context) (bool, error) {
			now, err := keeper.ReadStatus(file)
			if err == nil && now.Daemon != dead.Daemon {
				if x.started.IsZero() {
					x.started = time.Now()
				}
				x.up = time.Now()
			}
			return err == nil && now.Ready && now.Daemon != dead.Daemon, err
		})
		return x, err
	}
}

// killRemote kills the daemon of another replica.
func (b *bench) killRemote(ctx context.Context) (succession, error) {
	b.cluster.procs[surviveLost].kill()
	return succession{}, b.lost(ctx)
}

// stopRemote has it be silent.
func (b *bench) stopRemote(ctx context.Context) (succession, error) {
	if err := b.cluster.procs[surviveLost].cmd.Process.Signal(unix.SIGSTOP); err != nil {
		return succession{}, err
	}
	return succession{}, b.lost(ctx)
}

// lost waits until the volume goes on without the replica.
func (b *bench) lost(ctx context.Context) error {
	return until(ctx, surviveWait, "drop a replica", func(ctx context.Context) (bool, error) {
		r, err := b.cluster.replica(ctx, surviveVolume, surviveLost)
		return r.GetState() != string(holdfast.InSync), err
	})
}

// carryOn starts a node's daemon that was killed, and continues one that was stopped.
func (c *cluster) carryOn(node int) error {
	if c.procs[node].ended() {
		return c.startNode(node)
	}
	return holdfast.Wrap("continue "+nodeName(node), c.procs[node].cmd.Process.Signal(unix.SIGCONT))
}

// restart stops a node's daemon and starts it again, with or without a keeper.
func (c *cluster) restart(ctx context.Context, node int, kept bool) error {
	c.stopNode(node)
	c.kept[node] = kept
	if err := c.configure(node); err != nil {
		return err
	}
	began := time.Now()
	if err := c.startNode(node); err != nil {
		return err
	}
	if err := c.working(ctx); err != nil {
		return err
	}
	// What the cluster knows of it may be from before.
	cc, err := c.conns.Conn("unix://" + c.path(0, "api.sock"))
	if err != nil {
		return err
	}
	return until(ctx, surviveWait, "start node "+nodeName(node), func(ctx context.Context) (bool, error) {
		n, err := holdfastv1.NewClusterServiceClient(cc).GetNode(ctx, &holdfastv1.GetNodeRequest{Node: nodeName(node)})
		return err == nil && n.GetAlive() && n.GetStarted().AsTime().After(began), nil
	})
}

func (s *survived) print(w io.Writer) {
	if len(s.Longest) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s, %d times: longest I/O %s ms, usually %s ms; while all replicas came in sync again, in %s ms, %s ms\n",
		s.What, len(s.Longest), spread(s.Longest), spread(s.Usual), spread(s.InSync), spread(s.Back))
	if len(s.Up) > 0 {
		fmt.Fprintf(w, "its successor was started after %s ms, and up after %s ms; longest I/O counted from then: %s ms\n", spread(s.Started), spread(s.Up), spread(s.AfterUp))
	}
}
