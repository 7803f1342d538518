package csisanity

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
)

// Deadlines of the sidecars and of kubelet itself.
const (
	sidecarDeadline = 15 * time.Second
	kubeletDeadline = 2 * time.Minute
)

// ReplayKubelet replays Kubernetes: external-provisioner, external-attacher and
// external-resizer at the controller, kubelet at the nodes; for filesystems and
// for raw blocks.
func ReplayKubelet(t *testing.T, env Env) {
	t.Run("filesystem", func(t *testing.T) { newKube(t, env, false).run() })
	t.Run("block", func(t *testing.T) { newKube(t, env, true).run() })
}

// kube is a persistent volume and what Kubernetes knows of it.
type kube struct {
	client         // kubelet
	sidecar client // provisioner, attacher, resizer
	driver  string
	block   bool
	publish bool // the attacher is there
	cap     *csi.VolumeCapability
	pv      string
	size    int64
	vol     *csi.Volume
}

func newKube(t *testing.T, env Env, block bool) *kube {
	c := client{T: t, env: env, deadline: kubeletDeadline}
	k := &kube{client: c, sidecar: c, block: block, pv: "pvc-" + uuid(), size: env.size()}
	k.sidecar.deadline = sidecarDeadline
	n := env.Nodes[0]
	k.driver = must(c, bare(n.Identity.GetPluginInfo), &csi.GetPluginInfoRequest{}).GetName()
	must(c, bare(n.Identity.Probe), &csi.ProbeRequest{})
	k.publish = c.controllerCan(csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME)
	mode := csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	if c.nodeCan(n, csi.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER) && c.controllerCan(csi.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER) {
		mode = csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER // ReadWriteOnce
	}
	k.cap = mountCapability(mode, "xfs")
	if c.nodeCan(n, csi.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP) {
		k.cap.GetMount().VolumeMountGroup = "4711" // fsGroup of the pods
	}
	if block {
		k.cap = blockCapability(mode)
	}
	return k
}

func (k *kube) run() {
	k.Helper()
	k.provision()
	first := k.on(0)
	first.attach()
	first.stage()
	a, b := first.pod(), first.pod() // two pods of one node, e.g. a rolling update
	first.mount(a)
	first.mount(b)
	first.mount(a) // kubelet's reconciler repeats
	first.stage()
	k.use(a)
	first.stats(a)
	first.grow(a)
	first.unmount(a)
	first.unmount(b)
	first.unstage()
	first.detach()
	if len(k.env.Nodes) > 1 {
		k.moves(first)
	}
	for range 2 {
		must(k.sidecar, bare(k.env.Controller.DeleteVolume), &csi.DeleteVolumeRequest{VolumeId: k.vol.GetVolumeId()})
	}
}

// provision is external-provisioner with extra-create-metadata and topology.
func (k *kube) provision() {
	k.Helper()
	parameters := maps.Clone(k.env.Parameters)
	if parameters == nil {
		parameters = map[string]string{}
	}
	parameters["csi.storage.k8s.io/pvc/name"] = "data"
	parameters["csi.storage.k8s.io/pvc/namespace"] = "default"
	parameters["csi.storage.k8s.io/pv/name"] = k.pv
	q := &csi.CreateVolumeRequest{
		Name: k.pv, CapacityRange: &csi.CapacityRange{RequiredBytes: k.size}, Parameters: parameters,
		VolumeCapabilities:        []*csi.VolumeCapability{k.cap},
		AccessibilityRequirements: &csi.TopologyRequirement{},
	}
	for _, n := range k.env.Nodes {
		at := must(k.client, bare(n.Node.NodeGetInfo), &csi.NodeGetInfoRequest{}).GetAccessibleTopology()
		q.AccessibilityRequirements.Preferred = append(q.AccessibilityRequirements.Preferred, at)
		q.AccessibilityRequirements.Requisite = append(q.AccessibilityRequirements.Requisite, at)
	}
	k.vol = must(k.sidecar, bare(k.env.Controller.CreateVolume), q).GetVolume()
	k.deleteAtEnd(k.vol.GetVolumeId())
	again := must(k.sidecar, bare(k.env.Controller.CreateVolume), q).GetVolume()
	if again.GetVolumeId() != k.vol.GetVolumeId() {
		k.Errorf("a repeated CreateVolume made another volume: %s, %s", k.vol.GetVolumeId(), again.GetVolumeId())
	}
	if k.vol.GetCapacityBytes() < k.size {
		k.Errorf("%d bytes, want %d", k.vol.GetCapacityBytes(), k.size)
	}
}

// kubelet is one node's.
type kubelet struct {
	*kube
	node    Node
	id      string
	context map[string]string // publish context
	staging string
}

func (k *kube) on(i int) *kubelet {
	k.Helper()
	n := k.env.Nodes[i]
	base := filepath.Join(n.Base, "kubelet")
	k.undoMounts(k.makeDir(base))
	l := &kubelet{kube: k, node: n, id: must(k.client, bare(n.Node.NodeGetInfo), &csi.NodeGetInfoRequest{}).GetNodeId()}
	handle := fmt.Sprintf("%x", sha256.Sum256([]byte(k.vol.GetVolumeId())))
	l.staging = filepath.Join(base, "plugins/kubernetes.io/csi", k.driver, handle, "globalmount")
	if k.block {
		l.staging = filepath.Join(base, "plugins/kubernetes.io/csi/volumeDevices/staging", k.pv)
	}
	k.makeDir(l.staging)
	return l
}

func (l *kubelet) attach() {
	l.Helper()
	if l.publish {
		q := &csi.ControllerPublishVolumeRequest{VolumeId: l.vol.GetVolumeId(), NodeId: l.id, VolumeCapability: l.cap, VolumeContext: l.vol.GetVolumeContext()}
		for range 2 {
			l.context = must(l.sidecar, bare(l.env.Controller.ControllerPublishVolume), q).GetPublishContext()
		}
	}
}

func (l *kubelet) detach() {
	l.Helper()
	if l.publish {
		for range 2 {
			must(l.sidecar, bare(l.env.Controller.ControllerUnpublishVolume), &csi.ControllerUnpublishVolumeRequest{VolumeId: l.vol.GetVolumeId(), NodeId: l.id})
		}
	}
}

func (l *kubelet) stage() {
	l.Helper()
	must(l.client, bare(l.node.Node.NodeStageVolume), &csi.NodeStageVolumeRequest{
		VolumeId: l.vol.GetVolumeId(), PublishContext: l.context, StagingTargetPath: l.staging, VolumeCapability: l.cap, VolumeContext: l.vol.GetVolumeContext(),
	})
	if !l.block {
		l.wantMounts(l.staging, 1)
	}
}

// pod is a new pod's path for the volume; its parent is made.
func (l *kubelet) pod() string {
	l.Helper()
	pod := uuid()
	path := filepath.Join(l.node.Base, "kubelet/pods", pod, "volumes/kubernetes.io~csi", l.pv, "mount")
	if l.block {
		path = filepath.Join(l.node.Base, "kubelet/plugins/kubernetes.io/csi/volumeDevices/publish", l.pv, pod)
	}
	l.makeDir(filepath.Dir(path))
	return path
}

// mount is NodePublish with podInfoOnMount.
func (l *kubelet) mount(path string) {
	l.Helper()
	context := map[string]string{
		"csi.storage.k8s.io/pod.name": "db-0", "csi.storage.k8s.io/pod.namespace": "default", "csi.storage.k8s.io/pod.uid": uuid(),
		"csi.storage.k8s.io/serviceAccount.name": "default", "csi.storage.k8s.io/ephemeral": "false",
	}
	maps.Copy(context, l.vol.GetVolumeContext())
	must(l.client, bare(l.node.Node.NodePublishVolume), &csi.NodePublishVolumeRequest{
		VolumeId: l.vol.GetVolumeId(), PublishContext: l.context, StagingTargetPath: l.staging, TargetPath: path, VolumeCapability: l.cap, VolumeContext: context,
	})
	l.wantPresent(path)
	l.wantMounts(path, 1)
}

func (l *kubelet) unmount(path string) {
	l.Helper()
	for range 2 { // kubelet repeats what it cannot remember to have finished
		must(l.client, bare(l.node.Node.NodeUnpublishVolume), &csi.NodeUnpublishVolumeRequest{VolumeId: l.vol.GetVolumeId(), TargetPath: path})
		l.wantGone(path)
	}
}

func (l *kubelet) unstage() {
	l.Helper()
	for range 2 {
		must(l.client, bare(l.node.Node.NodeUnstageVolume), &csi.NodeUnstageVolumeRequest{VolumeId: l.vol.GetVolumeId(), StagingTargetPath: l.staging})
	}
	l.wantMounts(l.staging, 0)
	l.removeAll(l.staging)
	l.makeDir(l.staging)
}

// use writes what must still be there later.
func (k *kube) use(path string) {
	k.Helper()
	if !k.block {
		k.write(path+"/precious", "data")
		return
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		k.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("precious"), 8192); err != nil {
		k.Error(err)
	}
	if err := f.Close(); err != nil {
		k.Error(err)
	}
}

// wantUsed checks what use wrote.
func (k *kube) wantUsed(path string) {
	k.Helper()
	if !k.block {
		k.wantFile(path+"/precious", "data")
		return
	}
	f, err := os.Open(path)
	if err != nil {
		k.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 8)
	if _, err := f.ReadAt(b, 8192); err != nil || string(b) != "precious" {
		k.Errorf("the device holds %q (%v)", b, err)
	}
}

func (l *kubelet) stats(path string) {
	l.Helper()
	u := must(l.client, bare(l.node.Node.NodeGetVolumeStats), &csi.NodeGetVolumeStatsRequest{VolumeId: l.vol.GetVolumeId(), VolumePath: path, StagingTargetPath: l.staging}).GetUsage()
	if len(u) == 0 || u[0].GetUnit() != csi.VolumeUsage_BYTES || u[0].GetTotal() <= 0 {
		l.Errorf("statistics: %v", u)
	}
}

// grow is external-resizer, then kubelet.
func (l *kubelet) grow(path string) {
	l.Helper()
	l.size += 256 << 20
	capacity := &csi.CapacityRange{RequiredBytes: l.size}
	for range 2 {
		r := must(l.sidecar, bare(l.env.Controller.ControllerExpandVolume), &csi.ControllerExpandVolumeRequest{
			VolumeId: l.vol.GetVolumeId(), CapacityRange: capacity, VolumeCapability: l.cap,
		})
		if r.GetCapacityBytes() < l.size {
			l.Errorf("expanded to %d bytes, want %d", r.GetCapacityBytes(), l.size)
		}
	}
	for range 2 {
		r := must(l.client, bare(l.node.Node.NodeExpandVolume), &csi.NodeExpandVolumeRequest{
			VolumeId: l.vol.GetVolumeId(), VolumePath: path, StagingTargetPath: l.staging, CapacityRange: capacity, VolumeCapability: l.cap,
		})
		if r.GetCapacityBytes() < l.size {
			l.Errorf("expanded on the node to %d bytes, want %d", r.GetCapacityBytes(), l.size)
		}
	}
	l.stats(path)
}

// moves: the pod goes to another node; while it is attached here, attaching it
// there is refused with a code that the attacher understands.
func (k *kube) moves(from *kubelet) {
	k.Helper()
	to := k.on(1)
	if k.publish {
		from.attach()
		code := refuse(k.sidecar, bare(k.env.Controller.ControllerPublishVolume), &csi.ControllerPublishVolumeRequest{
			VolumeId: k.vol.GetVolumeId(), NodeId: to.id, VolumeCapability: k.cap, VolumeContext: k.vol.GetVolumeContext(),
		})
		if code != codes.FailedPrecondition {
			k.Errorf("attached to another node: code %v, want FailedPrecondition", code)
		}
		from.detach()
	}
	to.attach()
	to.stage()
	path := to.pod()
	to.mount(path)
	k.wantUsed(path)
	to.unmount(path)
	to.unstage()
	to.detach()
}
