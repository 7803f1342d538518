package csisanity

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

// mesosDeadline is what every call of Mesos has (process/grpc.hpp).
const mesosDeadline = 60 * time.Second

// mesos is one of the two CSI clients in a Mesos agent, with what its volume
// manager (v1_volume_manager.cpp) keeps.
type mesos struct {
	client
	node    Node
	root    string // mount root: target_path_root, or <work_dir>/csi/<type>/<name>/mounts
	stages  bool   // STAGE_UNSTAGE_VOLUME
	publish bool   // PUBLISH_UNPUBLISH_VOLUME of the controller
	nodeID  string // asked for only if publish
}

// start is the sequence that nothing retries (prepareServices).
func startMesos(c client, n Node, root string, controller bool) *mesos {
	c.Helper()
	m := &mesos{client: c, node: n, root: c.makeDir(root)}
	c.undoMounts(m.root)
	must(c, bare(n.Identity.Probe), &csi.ProbeRequest{})
	caps := must(c, bare(n.Identity.GetPluginCapabilities), &csi.GetPluginCapabilitiesRequest{})
	for range map[bool]int{true: 2, false: 1}[controller] { // once for every service
		if must(c, bare(n.Identity.GetPluginInfo), &csi.GetPluginInfoRequest{}).GetName() == "" {
			c.Fatal("the plugin has no name")
		}
	}
	if controller {
		has := false
		for _, x := range caps.GetCapabilities() {
			has = has || x.GetService().GetType() == csi.PluginCapability_Service_CONTROLLER_SERVICE
		}
		if !has {
			c.Fatal("CONTROLLER_SERVICE is configured, but the plugin does not announce it")
		}
		m.publish = c.controllerCan(csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME)
	}
	m.stages = c.nodeCan(n, csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME)
	if m.publish {
		m.nodeID = must(c, bare(n.Node.NodeGetInfo), &csi.NodeGetInfoRequest{}).GetNodeId()
		if m.nodeID == "" {
			c.Fatal("the node has no id")
		}
	}
	return m
}

// mesosVolume is a volume's checkpointed state.
type mesosVolume struct {
	id             string
	capability     *csi.VolumeCapability
	context        map[string]string
	publishContext map[string]string
	readOnly       bool
}

func (m *mesos) dir(v mesosVolume) string     { return filepath.Join(m.root, percent(v.id)) }
func (m *mesos) staging(v mesosVolume) string { return filepath.Join(m.dir(v), "staging") }
func (m *mesos) target(v mesosVolume) string  { return filepath.Join(m.dir(v), "target") }

// attach is CREATED to NODE_READY.
func (m *mesos) attach(v *mesosVolume) {
	m.Helper()
	if m.publish {
		v.publishContext = must(m.client, bare(m.env.Controller.ControllerPublishVolume), &csi.ControllerPublishVolumeRequest{
			VolumeId: v.id, NodeId: m.nodeID, VolumeCapability: v.capability, Readonly: v.readOnly, VolumeContext: v.context,
		}).GetPublishContext()
	}
}

// bring is NODE_READY to PUBLISHED: Mesos makes the staging directory and the
// target's parent, and wants to see the target afterwards.
func (m *mesos) bring(v mesosVolume) {
	m.Helper()
	staging := ""
	if m.stages {
		staging = m.makeDir(m.staging(v))
		must(m.client, bare(m.node.Node.NodeStageVolume), &csi.NodeStageVolumeRequest{
			VolumeId: v.id, PublishContext: v.publishContext, StagingTargetPath: staging,
			VolumeCapability: v.capability, VolumeContext: v.context,
		})
	}
	m.makeDir(m.dir(v))
	must(m.client, bare(m.node.Node.NodePublishVolume), &csi.NodePublishVolumeRequest{
		VolumeId: v.id, PublishContext: v.publishContext, StagingTargetPath: staging, TargetPath: m.target(v),
		VolumeCapability: v.capability, Readonly: v.readOnly, VolumeContext: v.context,
	})
	m.wantPresent(m.target(v))
	m.wantMounts(m.target(v), 1)
	if m.stages {
		m.wantMounts(m.staging(v), 1)
	}
}

// nodeUnpublish is PUBLISHED to VOL_READY; Mesos wants the target gone.
func (m *mesos) nodeUnpublish(v mesosVolume) {
	m.Helper()
	must(m.client, bare(m.node.Node.NodeUnpublishVolume), &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: m.target(v)})
	m.wantGone(m.target(v))
}

// takeAway is PUBLISHED to NODE_READY, and what Mesos does when that was OK: it
// deletes the volume's directory recursively, across mounts.
func (m *mesos) takeAway(v mesosVolume) {
	m.Helper()
	m.nodeUnpublish(v)
	if m.stages {
		must(m.client, bare(m.node.Node.NodeUnstageVolume), &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: m.staging(v)})
	}
	m.removeAll(m.dir(v))
}

// forget unmounts by hand: what a reboot of the host does to mounts.
func (m *mesos) forget(v mesosVolume) {
	m.Helper()
	for _, p := range []string{m.target(v), m.staging(v)} {
		for len(m.mounts(p)) > 0 {
			if err := unix.Unmount(p, 0); err != nil {
				m.Fatal(err)
			}
		}
	}
}

// ReplayMesosIsolator replays the volume/csi isolator with the agent's CSI server
// (since Mesos 1.11): only the node service, no controller call at all, empty
// contexts and secrets, statically provisioned volumes called by id or by name.
func ReplayMesosIsolator(t *testing.T, env Env) {
	for _, by := range []string{"id", "name"} {
		t.Run("by "+by, func(t *testing.T) {
			c := client{T: t, env: env, deadline: mesosDeadline}
			id, name := env.Static(t)
			if by == "name" {
				id = name
			}
			m := startMesos(c, env.Nodes[0], filepath.Join(env.Nodes[0].Base, "mesos-targets-"+by), false)
			// A failed suite must not leave the volume on the node.
			t.Cleanup(func() {
				v := mesosVolume{id: id}
				_, _ = try(c, bare(m.node.Node.NodeUnpublishVolume), &csi.NodeUnpublishVolumeRequest{VolumeId: id, TargetPath: m.target(v)})
				_, _ = try(c, bare(m.node.Node.NodeUnstageVolume), &csi.NodeUnstageVolumeRequest{VolumeId: id, StagingTargetPath: m.staging(v)})
			})
			m.containersOfOneVolume(id)
			m.rereadsAfterRestart(id)
			m.unknownVolumes(id)
			m.moves(id)
			m.removeAll(m.root)
		})
	}
}

func writerVolume(id string) mesosVolume {
	return mesosVolume{id: id, capability: mountCapability(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "")}
}

// containersOfOneVolume: every container of an agent publishes again, with fresh
// state, over the same paths; only the last one's end unpublishes.
func (m *mesos) containersOfOneVolume(id string) {
	m.Helper()
	v := writerVolume(id)
	reader := v
	reader.readOnly = true // Volume.mode RO
	m.bring(v)
	first, endFirst := m.container(m.target(v), false)
	m.write(first+"/precious", "data")
	m.bring(v)
	second, endSecond := m.container(m.target(v), false)
	m.bring(reader)
	third, endThird := m.container(m.target(v), true)
	m.write(second+"/more", "data")
	m.wantFile(third+"/precious", "data")
	// Two containers start at the same moment.
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			if _, err := try(m.client, bare(m.node.Node.NodePublishVolume), &csi.NodePublishVolumeRequest{
				VolumeId: v.id, StagingTargetPath: map[bool]string{true: m.staging(v)}[m.stages], TargetPath: m.target(v), VolumeCapability: v.capability,
			}); err != nil {
				m.Errorf("publish at the same time: %v", err)
			}
		})
	}
	wg.Wait()
	m.wantMounts(m.target(v), 1)
	endFirst()
	endSecond()
	endThird()
	m.takeAway(v)

	// A reader comes first, then a writer. The data is still there.
	m.bring(reader)
	m.bring(v)
	again, end := m.container(m.target(v), false)
	m.wantFile(again+"/precious", "data")
	m.write(again+"/written-after-a-reader", "data")
	end()
	m.takeAway(v)
}

// rereadsAfterRestart: the agent restarts and the host reboots at any point.
func (m *mesos) rereadsAfterRestart(id string) {
	m.Helper()
	v := writerVolume(id)
	restart := func() { startMesos(m.client, m.node, m.root, false) }
	m.bring(v)
	restart()
	// NODE_UNPUBLISH was left over: it is undone before publishing again.
	m.nodeUnpublish(v)
	m.nodeUnpublish(v)
	m.bring(v)
	// A reboot: the mounts are gone, unpublish and unstage were never sent, and
	// everything is published again while the plugin starts.
	m.forget(v)
	restart()
	m.bring(v)
	m.wantFile(m.target(v)+"/precious", "data")
	// A reboot after which only the clean-up of orphans comes.
	m.forget(v)
	restart()
	m.takeAway(v)
	m.takeAway(v) // and once more, from a checkpoint that was not removed
}

// unknownVolumes: unpublishing what the driver does not know must be OK; staging
// it must fail and leave nothing.
func (m *mesos) unknownVolumes(id string) {
	m.Helper()
	v := writerVolume("no such volume: " + id)
	staging := m.makeDir(m.staging(v))
	refuse(m.client, bare(m.node.Node.NodeStageVolume), &csi.NodeStageVolumeRequest{VolumeId: v.id, StagingTargetPath: staging, VolumeCapability: v.capability})
	m.wantMounts(m.dir(v), 0)
	m.takeAway(v)
}

// moves: the task is started on another agent after it ended here.
func (m *mesos) moves(id string) {
	m.Helper()
	if len(m.env.Nodes) < 2 {
		return
	}
	v := writerVolume(id)
	m.bring(v)
	m.write(m.target(v)+"/moved", "here")
	other := startMesos(m.client, m.env.Nodes[1], filepath.Join(m.env.Nodes[1].Base, "mesos-targets-other"), false)
	// Not while it runs here.
	refuse(m.client, bare(other.node.Node.NodeStageVolume), &csi.NodeStageVolumeRequest{
		VolumeId: id, StagingTargetPath: other.makeDir(other.staging(v)), VolumeCapability: v.capability,
	})
	m.wantFile(m.target(v)+"/moved", "here")
	m.takeAway(v)
	other.bring(v)
	other.wantFile(other.target(v)+"/moved", "here")
	other.takeAway(v)
	other.removeAll(other.root)
}
