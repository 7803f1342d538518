package demo

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

// orchestrator does with the CSI sockets what Mesos, Kubernetes or Nomad do.
type orchestrator struct {
	dir   string
	conns *rpc.Conns
	vol   *csi.Volume
}

func (o *orchestrator) conn(node string) (*grpc.ClientConn, error) {
	return o.conns.Conn("unix://" + csiSocket(o.dir, node))
}

// staging and target are the paths an orchestrator would choose on a node.
func (o *orchestrator) staging(node string) string {
	return filepath.Join(o.dir, node, "csi", "staging", o.vol.GetVolumeId())
}

func (o *orchestrator) target(node string) string {
	return filepath.Join(o.dir, node, "csi", "pods", "database", "data")
}

func capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "xfs"}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

// create makes the volume through one node's socket.
func (o *orchestrator) create(ctx context.Context, via, name string, bytes int64) error {
	cc, err := o.conn(via)
	if err != nil {
		return err
	}
	r, err := csi.NewControllerClient(cc).CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: bytes},
		VolumeCapabilities: []*csi.VolumeCapability{capability()}, Parameters: map[string]string{"replicas": "3"},
	})
	if err != nil {
		return err
	}
	o.vol = r.GetVolume()
	return nil
}

// attach is ControllerPublishVolume.
func (o *orchestrator) attach(ctx context.Context, node string) (map[string]string, error) {
	cc, err := o.conn(node)
	if err != nil {
		return nil, err
	}
	info, err := csi.NewNodeClient(cc).NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	if err != nil {
		return nil, err
	}
	r, err := csi.NewControllerClient(cc).ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{
		VolumeId: o.vol.GetVolumeId(), NodeId: info.GetNodeId(), VolumeCapability: capability(), VolumeContext: o.vol.GetVolumeContext(),
	})
	return r.GetPublishContext(), err
}

// mount is NodeStageVolume and NodePublishVolume.
func (o *orchestrator) mount(ctx context.Context, node string, published map[string]string) error {
	cc, err := o.conn(node)
	if err != nil {
		return err
	}
	for _, d := range []string{o.staging(node), filepath.Dir(o.target(node))} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return holdfast.Wrap("make folder", err)
		}
	}
	c := csi.NewNodeClient(cc)
	_, err = c.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: o.vol.GetVolumeId(), PublishContext: published, StagingTargetPath: o.staging(node),
		VolumeCapability: capability(), VolumeContext: o.vol.GetVolumeContext(),
	})
	if err != nil {
		return err
	}
	_, err = c.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: o.vol.GetVolumeId(), PublishContext: published, StagingTargetPath: o.staging(node), TargetPath: o.target(node),
		VolumeCapability: capability(), VolumeContext: o.vol.GetVolumeContext(),
	})
	return err
}

// publish does both, again and again as orchestrators do, until it works: while
// the dead node's lease lives, the volume is refused.
func (o *orchestrator) publish(ctx context.Context, node string, limit time.Duration) error {
	return until(ctx, limit, "publish the volume on node "+node, func(ctx context.Context) (bool, error) {
		published, err := o.attach(ctx, node)
		if err == nil {
			err = o.mount(ctx, node, published)
		}
		return err == nil, err
	})
}

// expand is ControllerExpandVolume and NodeExpandVolume.
func (o *orchestrator) expand(ctx context.Context, node string, bytes int64) error {
	cc, err := o.conn(node)
	if err != nil {
		return err
	}
	r, err := csi.NewControllerClient(cc).ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{
		VolumeId: o.vol.GetVolumeId(), CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}, VolumeCapability: capability(),
	})
	if err != nil {
		return err
	}
	if r.GetCapacityBytes() != bytes {
		return holdfast.E("expand volume", holdfast.Other, fmt.Sprintf("%d bytes were asked for and %d given", bytes, r.GetCapacityBytes()))
	}
	_, err = csi.NewNodeClient(cc).NodeExpandVolume(ctx, &csi.NodeExpandVolumeRequest{
		VolumeId: o.vol.GetVolumeId(), VolumePath: o.target(node), StagingTargetPath: o.staging(node),
		CapacityRange: &csi.CapacityRange{RequiredBytes: bytes}, VolumeCapability: capability(),
	})
	return err
}

// unpublish takes the volume off a node again, and delete removes it.
func (o *orchestrator) unpublish(ctx context.Context, node string) error {
	cc, err := o.conn(node)
	if err != nil {
		return err
	}
	n := csi.NewNodeClient(cc)
	if _, err := n.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: o.vol.GetVolumeId(), TargetPath: o.target(node)}); err != nil {
		return err
	}
	if _, err := n.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: o.vol.GetVolumeId(), StagingTargetPath: o.staging(node)}); err != nil {
		return err
	}
	_, err = csi.NewControllerClient(cc).ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: o.vol.GetVolumeId(), NodeId: node})
	return err
}

func (o *orchestrator) delete(ctx context.Context, via string) error {
	cc, err := o.conn(via)
	if err != nil {
		return err
	}
	_, err = csi.NewControllerClient(cc).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: o.vol.GetVolumeId()})
	return err
}
