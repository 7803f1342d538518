package netcluster

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
)

// Snapshot is CreateSnapshot of a claim's volume through the socket of via; it
// gives the snapshot's id when that is ready.
func (o *Orchestrator) Snapshot(ctx context.Context, via string, c *Claim, name string) (string, error) {
	cc, err := o.conn(via)
	if err != nil {
		return "", err
	}
	r, err := csi.NewControllerClient(cc).CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: c.Volume.GetVolumeId(), Name: name})
	return r.GetSnapshot().GetSnapshotId(), err
}

// DeleteSnapshot is that, through the socket of via.
func (o *Orchestrator) DeleteSnapshot(ctx context.Context, via, id string) error {
	cc, err := o.conn(via)
	if err != nil {
		return err
	}
	_, err = csi.NewControllerClient(cc).DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: id})
	return err
}

// source is what the volume is to be made of; nil for an empty one.
func (c *Claim) source() *csi.VolumeContentSource {
	if c.Snapshot == "" {
		return nil
	}
	return &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: c.Snapshot}}}
}
