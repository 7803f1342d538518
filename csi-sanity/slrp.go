package csisanity

import (
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
)

// ReplaySLRP replays Mesos' storage local resource provider: controller and node
// service, volumes made and deleted dynamically, everything listed again and again.
func ReplaySLRP(t *testing.T, env Env) {
	c := client{T: t, env: env, deadline: mesosDeadline}
	n := env.Nodes[0]
	root := filepath.Join(n.Base, "csi", "org_holdfast", "local", "mounts")
	s := &slrp{mesos: startMesos(c, n, root, true), profile: mountCapability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "xfs")}
	s.reconcile()
	v := s.createDisk()
	s.runTask(v)
	s.reconcile()
	s.preExisting(v)
	s.destroyDisk(v)
	s.reconcile()
	c.removeAll(root)
}

type slrp struct {
	*mesos
	profile *csi.VolumeCapability
}

// reconcile is what runs at start and every 10 s: an error ends the provider for
// good. There is one page only, since next_token is never followed.
func (s *slrp) reconcile() map[string]*csi.Volume {
	s.Helper()
	have := map[string]*csi.Volume{}
	for range 2 {
		list := must(s.client, bare(s.env.Controller.ListVolumes), &csi.ListVolumesRequest{})
		if list.GetNextToken() != "" {
			s.Error("the list without max_entries has more than one page")
		}
		clear(have)
		for _, e := range list.GetEntries() {
			if have[e.GetVolume().GetVolumeId()] != nil {
				s.Errorf("volume %s is listed twice", e.GetVolume().GetVolumeId())
			}
			have[e.GetVolume().GetVolumeId()] = e.GetVolume()
		}
		capacity := must(s.client, bare(s.env.Controller.GetCapacity), &csi.GetCapacityRequest{
			VolumeCapabilities: []*csi.VolumeCapability{s.profile}, Parameters: s.env.Parameters,
		})
		if capacity.GetAvailableCapacity() <= 0 {
			s.Errorf("no capacity is available (%d): there would be no storage pool", capacity.GetAvailableCapacity())
		}
	}
	return have
}

// createDisk makes a volume of an odd size, named by the operation, and sends
// the same request again as after a failover of the agent.
func (s *slrp) createDisk() mesosVolume {
	s.Helper()
	size := s.env.size() + 12_345
	q := &csi.CreateVolumeRequest{
		Name:               uuid(),
		CapacityRange:      &csi.CapacityRange{RequiredBytes: size, LimitBytes: size},
		VolumeCapabilities: []*csi.VolumeCapability{s.profile},
		Parameters:         s.env.Parameters,
	}
	made := must(s.client, bare(s.env.Controller.CreateVolume), q).GetVolume()
	s.deleteAtEnd(made.GetVolumeId())
	again := must(s.client, bare(s.env.Controller.CreateVolume), q).GetVolume()
	if !proto.Equal(made, again) {
		s.Errorf("the repeated CreateVolume answered %v, the first %v", again, made)
	}
	v := mesosVolume{id: made.GetVolumeId(), capability: s.profile, context: made.GetVolumeContext()}
	s.wantListed(v, size)
	return v
}

// wantListed: another size or context makes Mesos take the volume for another one.
func (s *slrp) wantListed(v mesosVolume, size int64) {
	s.Helper()
	got := s.reconcile()[v.id]
	if got.GetCapacityBytes() != size || !maps.Equal(got.GetVolumeContext(), v.context) {
		s.Errorf("volume %s is listed with %d bytes and context %v, want %d and %v", v.id, got.GetCapacityBytes(), got.GetVolumeContext(), size, v.context)
	}
}

// runTask publishes at the launch of a task; the volume stays published after it
// ended, over restarts of the agent and reboots.
func (s *slrp) runTask(v mesosVolume) {
	s.Helper()
	size := s.env.size() + 12_345
	s.attach(&v)
	s.bring(v)
	path, end := s.container(s.target(v), false)
	s.write(path+"/precious", "data")
	end()
	s.wantListed(v, size)
	startMesos(s.client, s.node, s.root, true)
	// Reboot: no ControllerPublish, the publish context is the old one.
	s.forget(v)
	startMesos(s.client, s.node, s.root, true)
	s.bring(v)
	s.wantFile(s.target(v)+"/precious", "data")
	s.wantListed(v, size)
}

// preExisting is CREATE_DISK of a listed volume with a target profile: what is
// confirmed must be what was sent.
func (s *slrp) preExisting(v mesosVolume) {
	s.Helper()
	r := must(s.client, bare(s.env.Controller.ValidateVolumeCapabilities), &csi.ValidateVolumeCapabilitiesRequest{
		VolumeId: v.id, VolumeCapabilities: []*csi.VolumeCapability{s.profile}, VolumeContext: v.context, Parameters: s.env.Parameters,
	}).GetConfirmed()
	switch {
	case r == nil:
		s.Error("the capability is not confirmed")
	case !maps.Equal(r.GetVolumeContext(), v.context) || !maps.Equal(r.GetParameters(), s.env.Parameters):
		s.Errorf("context or parameters are not echoed: %v", r)
	case len(r.GetVolumeCapabilities()) != 1 || !proto.Equal(r.GetVolumeCapabilities()[0], s.profile):
		s.Errorf("the capability is not echoed: %v", r)
	}
}

// destroyDisk wipes the data below the target, then takes everything back. It
// may be sent again for a volume that is gone.
func (s *slrp) destroyDisk(v mesosVolume) {
	s.Helper()
	in, err := os.ReadDir(s.target(v))
	if err != nil {
		s.Fatal(err)
	}
	for _, e := range in {
		if err := os.RemoveAll(filepath.Join(s.target(v), e.Name())); err != nil {
			s.Error(err)
		}
	}
	s.takeAway(v)
	for range 2 {
		if s.publish {
			must(s.client, bare(s.env.Controller.ControllerUnpublishVolume), &csi.ControllerUnpublishVolumeRequest{VolumeId: v.id, NodeId: s.nodeID})
		}
		must(s.client, bare(s.env.Controller.DeleteVolume), &csi.DeleteVolumeRequest{VolumeId: v.id})
	}
	if s.reconcile()[v.id] != nil {
		s.Error("a deleted volume is listed")
	}
}
