package netcluster

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/rpc"
)

// Orchestrator does with the CSI sockets what Mesos, Kubernetes or Nomad do.
type Orchestrator struct {
	Conns *rpc.Conns
	// Socket is where a node's driver answers, Folder where paths are made up on
	// a node.
	Socket func(node string) string
	Folder func(node string) string
}

// Claim is a volume that somebody asked for.
type Claim struct {
	Name     string
	Bytes    int64
	Replicas string
	FSType   string // "" for a raw block device
	Snapshot string // the id of the snapshot that it is made of; "": of none
	// Volume is what was created.
	Volume *csi.Volume
}

// Target is the path on a node where the application has the volume: a folder,
// or a device.
func (o *Orchestrator) Target(node string, c *Claim) string {
	return filepath.Join(o.Folder(node), "pods", c.Name, "data")
}

func (o *Orchestrator) staging(node string, c *Claim) string {
	return filepath.Join(o.Folder(node), "staging", c.Volume.GetVolumeId())
}

func (c *Claim) capability() *csi.VolumeCapability {
	v := &csi.VolumeCapability{AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}}
	if c.FSType == "" {
		v.AccessType = &csi.VolumeCapability_Block{Block: &csi.VolumeCapability_BlockVolume{}}
	} else {
		v.AccessType = &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: c.FSType}}
	}
	return v
}

func (o *Orchestrator) conn(node string) (*grpc.ClientConn, error) {
	return o.Conns.Conn("unix://" + o.Socket(node))
}

// Create is CreateVolume through one node's socket.
func (o *Orchestrator) Create(ctx context.Context, via string, c *Claim) error {
	cc, err := o.conn(via)
	if err != nil {
		return err
	}
	r, err := csi.NewControllerClient(cc).CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: c.Name, CapacityRange: &csi.CapacityRange{RequiredBytes: c.Bytes},
		VolumeCapabilities: []*csi.VolumeCapability{c.capability()}, Parameters: map[string]string{"replicas": c.Replicas},
		VolumeContentSource: c.source(),
	})
	if err != nil {
		return err
	}
	c.Volume = r.GetVolume()
	return nil
}

// Attach is ControllerPublishVolume through the socket of via.
func (o *Orchestrator) Attach(ctx context.Context, via, node string, c *Claim) (map[string]string, error) {
	cc, err := o.conn(via)
	if err != nil {
		return nil, err
	}
	r, err := csi.NewControllerClient(cc).ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
		VolumeId: c.Volume.GetVolumeId(), NodeId: node, VolumeCapability: c.capability(), VolumeContext: c.Volume.GetVolumeContext(),
	})
	return r.GetPublishContext(), err
}

// Mount is NodeStageVolume and NodePublishVolume.
func (o *Orchestrator) Mount(ctx context.Context, node string, c *Claim, published map[string]string) error {
	cc, err := o.conn(node)
	if err != nil {
		return err
	}
	for _, d := range []string{o.staging(node, c), filepath.Dir(o.Target(node, c))} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return holdfast.Wrap("make folder", err)
		}
	}
	n := csi.NewNodeClient(cc)
	_, err = n.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: c.Volume.GetVolumeId(), PublishContext: published, StagingTargetPath: o.staging(node, c),
		VolumeCapability: c.capability(), VolumeContext: c.Volume.GetVolumeContext(),
	})
	if err != nil {
		return err
	}
	_, err = n.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: c.Volume.GetVolumeId(), PublishContext: published, StagingTargetPath: o.staging(node, c), TargetPath: o.Target(node, c),
		VolumeCapability: c.capability(), VolumeContext: c.Volume.GetVolumeContext(),
	})
	return err
}

// Publish attaches and mounts, again and again as orchestrators do, until it
// works: while a dead node's lease lives, the volume is refused.
func (o *Orchestrator) Publish(ctx context.Context, node string, c *Claim, limit time.Duration) error {
	return Until(ctx, limit, "publish the volume on node "+node, func(ctx context.Context) (bool, error) {
		published, err := o.Attach(ctx, node, node, c)
		if err == nil {
			err = o.Mount(ctx, node, c, published)
		}
		return err == nil, err
	})
}

// Expand is ControllerExpandVolume and NodeExpandVolume.
func (o *Orchestrator) Expand(ctx context.Context, node string, c *Claim, bytes int64) error {
	cc, err := o.conn(node)
	if err != nil {
		return err
	}
	r, err := csi.NewControllerClient(cc).ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: c.Volume.GetVolumeId(), CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}, VolumeCapability: c.capability(),
	})
	if err != nil {
		return err
	}
	if r.GetCapacityBytes() != bytes {
		return holdfast.E("expand volume", holdfast.Other, fmt.Sprintf("%d bytes were asked for and %d given", bytes, r.GetCapacityBytes()))
	}
	_, err = csi.NewNodeClient(cc).NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: c.Volume.GetVolumeId(), VolumePath: o.Target(node, c), StagingTargetPath: o.staging(node, c),
		CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}, VolumeCapability: c.capability(),
	})
	return err
}

// Unmount is NodeUnpublishVolume and NodeUnstageVolume.
func (o *Orchestrator) Unmount(ctx context.Context, node string, c *Claim) error {
	cc, err := o.conn(node)
	if err != nil {
		return err
	}
	n := csi.NewNodeClient(cc)
	if _, err := n.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: c.Volume.GetVolumeId(), TargetPath: o.Target(node, c)}); err != nil {
		return err
	}
	_, err = n.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: c.Volume.GetVolumeId(), StagingTargetPath: o.staging(node, c)})
	return err
}

// Detach is ControllerUnpublishVolume through the socket of via.
func (o *Orchestrator) Detach(ctx context.Context, via, node string, c *Claim) error {
	cc, err := o.conn(via)
	if err != nil {
		return err
	}
	_, err = csi.NewControllerClient(cc).ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: c.Volume.GetVolumeId(), NodeId: node})
	return err
}

// Delete is DeleteVolume through the socket of via.
func (o *Orchestrator) Delete(ctx context.Context, via string, c *Claim) error {
	cc, err := o.conn(via)
	if err != nil {
		return err
	}
	_, err = csi.NewControllerClient(cc).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: c.Volume.GetVolumeId()})
	return err
}
