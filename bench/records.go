package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// recordFigures are about many volumes that are in the metadata, each with one
// replica on one of the nodes by turns, and not attached. Times are in milliseconds.
type recordFigures struct {
	Volumes int     `json:"volumes"`
	Create  ends    `json:"createMs"` // of each, with 16 under way
	All     float64 `json:"createAllMs"`
	Look    looks   `json:"look"`
	// Restart is from the start of a daemon that was killed to its answer that all
	// pools are well.
	Restart float64 `json:"restartMs"`
	// Leader is from the leader's death, and new start, to the first volume created
	// once there is a leader again and all pools are well.
	Leader  float64 `json:"leaderMs"`
	Daemons []usage `json:"daemons"`
}

// records measures n volumes in the metadata.
func (b *bench) records(ctx context.Context, n int) (err error) {
	f := &recordFigures{Volumes: n}
	b.results.Records = f
	var mu sync.Mutex
	var took []float64
	g, creating := errgroup.WithContext(ctx)
	g.SetLimit(scaleAtOnce)
	began := time.Now()
	for i := range n {
		g.Go(func() error {
			d, err := b.cluster.createVia(creating, i%nodes, recordName(i), 1, scaleSize)
			mu.Lock()
			defer mu.Unlock()
			took = append(took, ms(d))
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	f.All, f.Create = ms(time.Since(began)), endsOf(took)
	if f.Look, err = b.look(ctx, n, 0); err != nil {
		return err
	}
	if f.Daemons, err = b.watch(ctx, scaleIdle); err != nil {
		return err
	}
	if err := b.restarted(ctx, f); err != nil {
		return err
	}
	return b.leaderKilled(ctx, f)
}

func recordName(i int) string { return fmt.Sprintf("record-%d", i) }

// restarted kills the second daemon and starts it again.
func (b *bench) restarted(ctx context.Context, f *recordFigures) error {
	b.cluster.procs[1].kill()
	began := time.Now()
	if err := b.cluster.startNode(1); err != nil {
		return err
	}
	err := until(ctx, 5*time.Minute, "start a daemon anew", func(ctx context.Context) (bool, error) {
		if !b.cluster.ready(1) {
			return false, nil
		}
		st, err := b.status(ctx, 1)
		return err == nil && st.GetPools().GetWell() == nodes, nil
	})
	f.Restart = ms(time.Since(began))
	return err
}

// leaderKilled kills the leader, starts it again, and creates a volume as soon as
// there is a leader. The etcd goes with the first node.
func (b *bench) leaderKilled(ctx context.Context, f *recordFigures) error {
	old := ""
	if err := until(ctx, time.Minute, "find the leader", func(ctx context.Context) (bool, error) {
		st, err := b.status(ctx, 0)
		old = st.GetLeader()
		return err == nil && old != "", nil
	}); err != nil {
		return err
	}
	began, killed := time.Now(), 0
	for i, p := range b.cluster.procs {
		if nodeName(i) != old {
			continue
		}
		killed = i
		p.kill()
		if err := b.cluster.startNode(i); err != nil {
			return err
		}
	}
	err := until(ctx, 5*time.Minute, "find another leader", func(ctx context.Context) (bool, error) {
		if !b.cluster.ready(killed) {
			return false, nil
		}
		st, err := b.status(ctx, 0)
		return err == nil && st.GetLeader() != "" && st.GetPools().GetWell() == nodes, nil
	})
	if err == nil {
		_, err = b.cluster.create(ctx, "record-after", 1, scaleSize)
	}
	f.Leader = ms(time.Since(began))
	return err
}

// status is the cluster's as a node sees it.
func (b *bench) status(ctx context.Context, node int) (*holdfastv1.ClusterStatus, error) {
	cc, err := b.cluster.conns.Conn("unix://" + b.cluster.path(node, "api.sock"))
	if err != nil {
		return nil, err
	}
	return holdfastv1.NewClusterServiceClient(cc).GetStatus(ctx, &holdfastv1.GetStatusRequest{})
}

func (f *recordFigures) print(w io.Writer) {
	fmt.Fprintf(w, "\n%d volumes in the metadata, with a replica each, none attached\ncreate, %d at once: %s; all in %.1f s\n%s\n", f.Volumes, scaleAtOnce, f.Create, f.All/1e3, f.Look)
	fmt.Fprintf(w, "a daemon restarted: all pools well after %.1f s\nthe leader killed and started: a volume created after %.1f s\n", f.Restart/1e3, f.Leader/1e3)
	for i, u := range f.Daemons {
		fmt.Fprintf(w, "%s: %.0f MiB resident, %d threads, %d files, %.1f%% CPU\n", nodeName(i), u.Resident, u.Threads, u.Files, u.CPU)
	}
}
