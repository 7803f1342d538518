package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

const cloneBytes = int64(100 << 30)

// clones makes a volume of 100 GiB with a filesystem and some data, and mounts
// clones of a snapshot of it.
func (b *bench) clones(ctx context.Context) error {
	const source, snap = "large", "large-s"
	// What was deleted before is given back to the pools, and told, within seconds.
	err := until(ctx, time.Minute, "wait for room", func(ctx context.Context) (bool, error) {
		_, err := b.cluster.create(ctx, source, nodes, cloneBytes)
		if errors.Is(err, holdfast.NoSpace) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return err
	}
	dev, _, err := b.cluster.attach(ctx, source, 0)
	if err != nil {
		return err
	}
	if _, err := command(ctx, "mkfs.xfs", "-q", "-K", dev); err != nil {
		return err
	}
	if err := b.mounted(dev, func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "data"), make([]byte, 64<<20), 0o600)
	}); err != nil {
		return err
	}
	if err := b.cluster.snapshot(ctx, source, snap); err != nil {
		return err
	}
	for n := range b.o.repeat {
		took, err := b.clone(ctx, fmt.Sprintf("clone-%d", n), snap)
		if err != nil {
			return err
		}
		b.results.Snapshots.Clone = append(b.results.Snapshots.Clone, ms(took))
	}
	if err := b.cluster.dropSnapshot(ctx, snap); err != nil {
		return err
	}
	return b.cluster.gone(ctx, source, 0)
}

// clone says how long it takes until a clone is mounted, and removes it.
func (b *bench) clone(ctx context.Context, name, snap string) (took time.Duration, err error) {
	cl, err := b.cluster.volumes(0)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := cl.CreateVolume(ctx, &holdfastv1.CreateVolumeRequest{Name: name, SourceSnapshot: snap}); err != nil {
		return 0, holdfast.Wrap("clone "+snap, err)
	}
	dev, _, err := b.cluster.attach(ctx, name, 0)
	if err != nil {
		return 0, err
	}
	err = b.mounted(dev, func(dir string) error {
		took = time.Since(began)
		_, err := os.Stat(filepath.Join(dir, "data"))
		return err
	})
	if err != nil {
		return 0, err
	}
	return took, b.cluster.gone(ctx, name, 0)
}

// mounted calls f while a device's XFS is mounted.
func (b *bench) mounted(dev string, f func(dir string) error) error {
	dir := filepath.Join(b.o.dir, "mnt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return holdfast.Wrap("mount "+dev, err)
	}
	if err := unix.Mount(dev, dir, "xfs", 0, "nouuid"); err != nil {
		return holdfast.Wrap("mount "+dev, err)
	}
	err := f(dir)
	if errU := unix.Unmount(dir, 0); err == nil {
		err = errU
	}
	return holdfast.Wrap("use "+dev, err)
}

// raised is random writes on a volume with one replica, while two more are made
// and afterwards.
type raised struct {
	Before float64 `json:"beforeIOPS"`
	While  float64 `json:"whileIOPS"`
	After  float64 `json:"afterIOPS"`
	TookMs float64 `json:"tookMs"` // until all are in sync
}

// raise makes three replicas of one under load. An error of any write ends it.
func (b *bench) raise(ctx context.Context) error {
	const name = "raise"
	dev, err := b.filled(ctx, name, 1)
	if err != nil {
		return err
	}
	under := direct{write: true, next: anywhere(sizeBytes), limit: b.o.runtime}
	before, err := under.run(ctx, dev)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := b.cluster.replicas(ctx, name, nodes); err != nil {
		return err
	}
	// The load goes on until they are in sync.
	busy, cancel := context.WithCancel(ctx)
	defer cancel()
	var took time.Duration
	waited := make(chan error, 1)
	go func() {
		defer cancel()
		waited <- until(ctx, repairWait, "make more replicas", func(ctx context.Context) (bool, error) {
			took = time.Since(began)
			return b.cluster.allInSync(ctx, name, nodes)
		})
	}()
	endless := under
	endless.limit = 0
	while, err := endless.run(busy, dev)
	if errW := <-waited; err == nil {
		err = errW
	}
	if err != nil {
		return err
	}
	after, err := under.run(ctx, dev)
	if err != nil {
		return err
	}
	b.results.Snapshots.Raise = &raised{before.rate, while.rate, after.rate, ms(took)}
	return b.cluster.gone(ctx, name, 0)
}

func (r *raised) print(w io.Writer) {
	fmt.Fprintf(w, "replicas raised from 1 to %d under random writes: no I/O error; %.0f IOPS before, %.0f meanwhile (%.0f ms for %d MiB), %.0f afterwards\n",
		nodes, r.Before, r.While, r.TookMs, sizeBytes>>20, r.After)
}

// replicas changes how many a volume has.
func (c *cluster) replicas(ctx context.Context, name string, n int32) error {
	cl, err := c.volumes(0)
	if err != nil {
		return err
	}
	_, err = cl.UpdateVolumePolicy(ctx, &holdfastv1.UpdateVolumePolicyRequest{Volume: name, Replicas: &n})
	return holdfast.Wrap("change the replicas of "+name, err)
}

// allInSync says whether a volume has so many replicas in sync.
func (c *cluster) allInSync(ctx context.Context, name string, want int) (bool, error) {
	cl, err := c.volumes(0)
	if err != nil {
		return false, err
	}
	v, err := cl.GetVolume(ctx, &holdfastv1.GetVolumeRequest{Volume: name})
	if err != nil {
		return false, holdfast.Wrap("look at volume "+name, err)
	}
	n := 0
	for _, r := range v.GetReplicas() {
		if r.GetState() == string(holdfast.InSync) {
			n++
		}
	}
	return n == want, nil
}
