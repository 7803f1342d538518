package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// dropped is how long it takes until nothing of a deleted snapshot is left on a
// volume's replica: with an older one beside it, that takes over what it holds.
type dropped struct {
	VolumeGiB int64     `json:"volumeGiB"`
	Changed   int64     `json:"changedGranules"` // since the snapshot
	Ms        []float64 `json:"ms"`
}

// drops deletes snapshots of volumes of several sizes with as many changes, and of
// one with fewer.
func (b *bench) drops(ctx context.Context) error {
	figures := []*dropped{{VolumeGiB: 1, Changed: 4096}, {VolumeGiB: 10, Changed: 4096}, {VolumeGiB: 100, Changed: 4096}, {VolumeGiB: 100, Changed: 1024}}
	b.results.Snapshots.Drops = figures
	for range b.o.repeat {
		for _, d := range figures {
			took, err := b.drop(ctx, d)
			if err != nil {
				return err
			}
			d.Ms = append(d.Ms, ms(took))
		}
	}
	return nil
}

func (b *bench) drop(ctx context.Context, d *dropped) (time.Duration, error) {
	const name, older, newer = "drop", "drop-older", "drop-newer"
	size := d.VolumeGiB << 30
	if _, err := b.cluster.create(ctx, name, 1, size); err != nil {
		return 0, err
	}
	dev, _, err := b.cluster.attach(ctx, name, 0)
	if err != nil {
		return 0, err
	}
	// All over the volume.
	step := size / d.Changed / granuleBytes * granuleBytes
	change := direct{write: true, next: func(n int64, _ *rand.Rand) (int64, bool) { return n * step, n < d.Changed }}
	if _, err := change.run(ctx, dev); err != nil {
		return 0, err
	}
	for _, snap := range []string{older, newer} {
		if err := b.cluster.snapshot(ctx, name, snap); err != nil {
			return 0, err
		}
	}
	if _, err := change.run(ctx, dev); err != nil {
		return 0, err
	}
	if n, err := b.cluster.stored(); n != 2 || err != nil {
		return 0, holdfast.E("look for snapshots", holdfast.Other, fmt.Sprintf("%d files, want 2: %v", n, err))
	}
	began := time.Now()
	if err := b.cluster.dropSnapshot(ctx, newer); err != nil {
		return 0, err
	}
	err = until(ctx, time.Minute, "drop a snapshot", func(ctx context.Context) (bool, error) {
		n, err := b.cluster.stored()
		return n == 1, err
	})
	took := time.Since(began)
	if err == nil {
		err = b.cluster.dropSnapshot(ctx, older)
	}
	if err == nil {
		err = b.cluster.gone(ctx, name, 0)
	}
	if err == nil {
		err = until(ctx, time.Minute, "drop a snapshot", func(ctx context.Context) (bool, error) {
			n, err := b.cluster.stored()
			return n == 0, err
		})
	}
	return took, err
}

// stored counts the snapshots' files in the pools of all nodes: one that is being
// taken apart is not shown by the API any more.
func (c *cluster) stored() (int, error) {
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return 0, holdfast.Wrap("look for pools", err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[2] != "xfs" || !strings.HasPrefix(f[1], c.dir+"/") {
			continue
		}
		files, err := filepath.Glob(filepath.Join(f[1], "replicas", "*", "snapshots", "*.snapshot"))
		if err != nil {
			return 0, holdfast.Wrap("look for snapshots", err)
		}
		for _, name := range files {
			seen[name] = true
		}
	}
	return len(seen), nil
}

func (d *dropped) print(w io.Writer) {
	fmt.Fprintf(w, "a deleted snapshot of a volume of %d GiB, of which %d granules of 64 KiB were changed, is gone in %s ms\n", d.VolumeGiB, d.Changed, spread(d.Ms))
}
