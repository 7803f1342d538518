package csisanity

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// nomadDeadline is Nomad's for one try.
const nomadDeadline = 2 * time.Minute

// ReplayNomad replays Nomad: a monolith plugin, a volume that is staged under
// several paths of one node, one for every way to use it.
func ReplayNomad(t *testing.T, env Env) {
	c := client{T: t, env: env, deadline: nomadDeadline}
	n := &nomad{client: c, node: env.Nodes[0], writer: mountCapability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "xfs", "noatime"),
		reader: mountCapability(csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY, "xfs", "noatime")}
	n.undoMounts(n.makeDir(filepath.Join(n.node.Base, "nomad")))
	n.fingerprint()
	n.create()
	n.register()
	n.run()
	for range 2 {
		must(c, bare(env.Controller.DeleteVolume), &csi.DeleteVolumeRequest{VolumeId: n.vol.GetVolumeId()})
	}
	c.removeAll(filepath.Join(n.node.Base, "nomad"))
}

type nomad struct {
	client
	node           Node
	id             string
	publishes      bool
	stages         bool
	writer, reader *csi.VolumeCapability
	vol            *csi.Volume
}

// fingerprint is what the plugin manager asks, again and again.
func (n *nomad) fingerprint() {
	n.Helper()
	for range 2 {
		if r := must(n.client, bare(n.node.Identity.Probe), &csi.ProbeRequest{}); r.GetReady() != nil && !r.GetReady().GetValue() {
			n.Error("the plugin is not ready")
		}
	}
	if must(n.client, bare(n.node.Identity.GetPluginInfo), &csi.GetPluginInfoRequest{}).GetName() == "" {
		n.Error("the plugin has no name")
	}
	must(n.client, bare(n.node.Identity.GetPluginCapabilities), &csi.GetPluginCapabilitiesRequest{})
	info := must(n.client, bare(n.node.Node.NodeGetInfo), &csi.NodeGetInfoRequest{})
	n.id = info.GetNodeId()
	if n.id == "" || info.GetMaxVolumesPerNode() < 0 {
		n.Errorf("node info: %v", info)
	}
	n.publishes = n.controllerCan(csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME)
	n.stages = n.nodeCan(n.node, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME)
}

// create is `nomad volume create` with two capability blocks.
func (n *nomad) create() {
	n.Helper()
	size := n.env.size()
	q := &csi.CreateVolumeRequest{
		Name: "db-" + uuid(), CapacityRange: &csi.CapacityRange{RequiredBytes: size, LimitBytes: 2 * size},
		VolumeCapabilities: []*csi.VolumeCapability{n.writer, n.reader}, Parameters: n.env.Parameters,
		Secrets: map[string]string{"unused": "secret"},
	}
	n.vol = must(n.client, bare(n.env.Controller.CreateVolume), q).GetVolume()
	n.deleteAtEnd(n.vol.GetVolumeId())
	if got := n.vol.GetCapacityBytes(); got < size || got > 2*size {
		n.Errorf("%d bytes, want %d to %d", got, size, 2*size)
	}
}

// register is `nomad volume register`: what is confirmed must match.
func (n *nomad) register() {
	n.Helper()
	caps := []*csi.VolumeCapability{n.writer, n.reader}
	r := must(n.client, bare(n.env.Controller.ValidateVolumeCapabilities), &csi.ValidateVolumeCapabilitiesRequest{
		VolumeId: n.vol.GetVolumeId(), VolumeCapabilities: caps, VolumeContext: n.vol.GetVolumeContext(), Parameters: n.env.Parameters,
		Secrets: map[string]string{"unused": "secret"},
	}).GetConfirmed()
	if r == nil {
		return // Nomad accepts that
	}
	for i, c := range r.GetVolumeCapabilities() {
		if i >= len(caps) || !proto.Equal(c, caps[i]) {
			n.Errorf("confirmed capability %v is none of those that were sent", c)
		}
	}
}

// claim is one allocation's use of the volume.
type claim struct {
	staging, target string
	capability      *csi.VolumeCapability
	readOnly        bool
	context         map[string]string
}

// claim makes the paths: the usage is part of both.
func (n *nomad) claim(usage string, capability *csi.VolumeCapability, readOnly bool) claim {
	n.Helper()
	base := filepath.Join(n.node.Base, "nomad")
	c := claim{capability: capability, readOnly: readOnly,
		staging: filepath.Join(base, "staging", "default", n.vol.GetVolumeId(), usage),
		target:  filepath.Join(base, "per-alloc", uuid(), n.vol.GetVolumeId(), usage)}
	n.makeDir(c.staging)
	n.makeDir(filepath.Dir(c.target))
	return c
}

func (n *nomad) run() {
	n.Helper()
	rw := n.claim("rw-file-system-single-node-writer", n.writer, false)
	n.bring(&rw)
	n.write(rw.target+"/precious", "data")
	other := n.claim("rw-file-system-single-node-writer", n.writer, false) // another allocation
	n.bring(&other)
	ro := n.claim("ro-file-system-single-node-reader-only", n.reader, true)
	n.bring(&ro)
	n.wantFile(ro.target+"/precious", "data")
	n.expand(rw)

	n.takeAway(other, false) // its staging path is still used
	n.wantFile(rw.target+"/precious", "data")
	n.takeAway(rw, true)
	n.wantFile(ro.target+"/precious", "data")
	n.takeAway(ro, true)
	n.detach()
	// The reader comes first, then the writer.
	n.bring(&ro)
	n.bring(&rw)
	n.write(rw.target+"/more", "data")
	n.wantFile(ro.target+"/more", "data")
	n.takeAway(ro, true)
	n.takeAway(rw, true)
	n.detach()
}

// bring claims: controller, staging, target; the second and third only where the
// host path is no mount yet.
func (n *nomad) bring(c *claim) {
	n.Helper()
	if n.publishes {
		c.context = must(n.client, bare(n.env.Controller.ControllerPublishVolume), &csi.ControllerPublishVolumeRequest{
			VolumeId: n.vol.GetVolumeId(), NodeId: n.id, VolumeCapability: c.capability, Readonly: c.readOnly, VolumeContext: n.vol.GetVolumeContext(),
		}).GetPublishContext()
	}
	staging := ""
	if n.stages {
		staging = n.makeDir(c.staging)
		if len(n.mounts(staging)) == 0 {
			must(n.client, bare(n.node.Node.NodeStageVolume), &csi.NodeStageVolumeRequest{
				VolumeId: n.vol.GetVolumeId(), PublishContext: c.context, StagingTargetPath: staging,
				VolumeCapability: c.capability, VolumeContext: n.vol.GetVolumeContext(),
			})
		}
		n.wantMounts(staging, 1)
	}
	n.makeDir(filepath.Dir(c.target))
	must(n.client, bare(n.node.Node.NodePublishVolume), &csi.NodePublishVolumeRequest{
		VolumeId: n.vol.GetVolumeId(), PublishContext: c.context, StagingTargetPath: staging, TargetPath: c.target,
		VolumeCapability: c.capability, Readonly: c.readOnly, VolumeContext: n.vol.GetVolumeContext(),
	})
	n.wantMounts(c.target, 1)
}

// takeAway releases a claim. Nomad tries up to three times and takes NOT_FOUND
// for done.
func (n *nomad) takeAway(c claim, unstage bool) {
	n.Helper()
	for range 3 {
		if _, err := try(n.client, bare(n.node.Node.NodeUnpublishVolume), &csi.NodeUnpublishVolumeRequest{VolumeId: n.vol.GetVolumeId(), TargetPath: c.target}); err != nil && status.Code(err) != codes.NotFound {
			n.Fatal(err)
		}
	}
	n.wantGone(c.target)
	if !unstage || !n.stages {
		return
	}
	for range 3 {
		if _, err := try(n.client, bare(n.node.Node.NodeUnstageVolume), &csi.NodeUnstageVolumeRequest{VolumeId: n.vol.GetVolumeId(), StagingTargetPath: c.staging}); err != nil && status.Code(err) != codes.NotFound {
			n.Fatal(err)
		}
	}
	n.wantMounts(c.staging, 0)
}

// detach comes when the node has no claim left.
func (n *nomad) detach() {
	n.Helper()
	if n.publishes {
		for range 2 {
			must(n.client, bare(n.env.Controller.ControllerUnpublishVolume), &csi.ControllerUnpublishVolumeRequest{VolumeId: n.vol.GetVolumeId(), NodeId: n.id})
		}
	}
}

// expand is `nomad volume create` again with a larger capacity_min.
func (n *nomad) expand(c claim) {
	n.Helper()
	want := &csi.CapacityRange{RequiredBytes: n.env.size() + 256<<20, LimitBytes: 2*n.env.size() + 256<<20}
	must(n.client, bare(n.env.Controller.ControllerExpandVolume), &csi.ControllerExpandVolumeRequest{
		VolumeId: n.vol.GetVolumeId(), CapacityRange: want, VolumeCapability: n.writer,
	})
	for range 2 {
		r := must(n.client, bare(n.node.Node.NodeExpandVolume), &csi.NodeExpandVolumeRequest{
			VolumeId: n.vol.GetVolumeId(), VolumePath: c.target, StagingTargetPath: c.staging, CapacityRange: want, VolumeCapability: n.writer,
		})
		if r.GetCapacityBytes() < want.GetRequiredBytes() {
			n.Errorf("expanded to %d bytes, want %d", r.GetCapacityBytes(), want.GetRequiredBytes())
		}
	}
}
