package main

import (
	"context"
	"fmt"
	"io"

	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// originLine says what a volume is a clone of, by names as far as these are there
// still.
func (c *cli) originLine(ctx context.Context, w io.Writer, v *holdfastv1.Volume) {
	o := v.GetOrigin()
	if o == nil {
		return
	}
	volume := "volume " + o.GetVolumeId() + ", which is deleted"
	if vc, err := c.volumes(); err == nil {
		if src, err := vc.GetVolume(ctx, &holdfastv1.GetVolumeRequest{Volume: o.GetVolumeId()}); err == nil {
			volume = "volume " + src.GetName()
		}
	}
	if o.GetTemporary() {
		field(w, "clone of", "%s, as it was when this was created", volume)
		return
	}
	name := o.GetSnapshotId() + ", which is deleted"
	if sc, err := c.snapshots(); err == nil {
		if x, err := sc.GetSnapshot(ctx, &holdfastv1.GetSnapshotRequest{Snapshot: o.GetSnapshotId()}); err == nil {
			name = x.GetName()
		}
	}
	field(w, "clone of", "%s, snapshot %s", volume, name)
}

// restoreLine says that a volume is being restored.
func restoreLine(w io.Writer, v *holdfastv1.Volume) {
	if v.GetRestoring() != "" {
		field(w, "restoring", "to snapshot %s; it cannot be attached before that is done", v.GetRestoring())
	}
}

// shownSnapshots is how many of a volume's snapshots a person is shown with it.
const shownSnapshots = 10

// snapshotsOf shows a volume's newest snapshots.
func (c *cli) snapshotsOf(ctx context.Context, w io.Writer, v *holdfastv1.Volume) {
	if v.GetSnapshots() == 0 {
		return
	}
	sc, err := c.snapshots()
	if err != nil {
		return
	}
	ls, err := sc.ListSnapshots(ctx, &holdfastv1.ListSnapshotsRequest{Volume: v.GetId()})
	if err != nil {
		field(w, "snapshots", "%d; they cannot be listed: %v", v.GetSnapshots(), c.explain(err))
		return
	}
	xs := ls.GetSnapshots()
	fmt.Fprintln(w, "\nSnapshots")
	if more := len(xs) - shownSnapshots; more > 0 {
		fmt.Fprintf(w, "  %d older ones: holdfast snapshot list %s\n", more, v.GetName())
		xs = xs[more:]
	}
	c.snapshotGrid(xs).write(w, "  ")
}
