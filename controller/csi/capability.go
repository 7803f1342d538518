package csi

import (
	"context"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
)

// ControllerGetCapabilities lists what the controller service offers.
func (s *Server) ControllerGetCapabilities(context.Context, *csipb.ControllerGetCapabilitiesRequest) (*csipb.ControllerGetCapabilitiesResponse, error) {
	types := []csipb.ControllerServiceCapability_RPC_Type{
		csipb.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csipb.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csipb.ControllerServiceCapability_RPC_GET_CAPACITY,
		csipb.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csipb.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csipb.ControllerServiceCapability_RPC_GET_SNAPSHOT,
		csipb.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csipb.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csipb.ControllerServiceCapability_RPC_MODIFY_VOLUME,
		csipb.ControllerServiceCapability_RPC_GET_VOLUME,
		csipb.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csipb.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
		csipb.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
	}
	if !s.cfg.WithoutPublish {
		types = append(types, csipb.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME,
			csipb.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES)
	}
	var caps []*csipb.ControllerServiceCapability
	for _, t := range types {
		caps = append(caps, &csipb.ControllerServiceCapability{
			Type: &csipb.ControllerServiceCapability_Rpc{Rpc: &csipb.ControllerServiceCapability_RPC{Type: t}}})
	}
	return &csipb.ControllerGetCapabilitiesResponse{Capabilities: caps}, nil
}

// checkCapabilities says whether a volume can be used in all these ways, and
// which filesystem they ask for, if any. The error is of kind Invalid.
func checkCapabilities(op string, caps []*csipb.VolumeCapability) (fsType string, mount bool, err error) {
	if len(caps) == 0 {
		return "", false, invalid(op, "volume_capabilities are needed; there are none")
	}
	for _, c := range caps {
		fs, isMount, err := checkCapability(op, c)
		if err != nil {
			return "", false, err
		}
		if fs != "" && fsType != "" && fs != fsType {
			return "", false, invalid(op, "the volume_capabilities ask for two filesystems, %s and %s; a volume has one", fsType, fs)
		}
		if fs != "" {
			fsType = fs
		}
		mount = mount || isMount
	}
	return fsType, mount, nil
}

func checkCapability(op string, c *csipb.VolumeCapability) (fsType string, mount bool, err error) {
	if c == nil {
		return "", false, invalid(op, "a volume_capability is needed")
	}
	switch mode := c.GetAccessMode().GetMode(); mode {
	case csipb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csipb.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY,
		csipb.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER, csipb.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
	case csipb.VolumeCapability_AccessMode_UNKNOWN:
		return "", false, invalid(op, "a volume_capability has no access_mode; set one")
	default:
		return "", false, invalid(op, "the access mode %v is not supported: a volume is attached to one node at a time; use a SINGLE_NODE mode (in Kubernetes ReadWriteOnce, in Nomad single-node-writer)", mode)
	}
	switch t := c.GetAccessType().(type) {
	case *csipb.VolumeCapability_Block:
		return "", false, nil
	case *csipb.VolumeCapability_Mount:
		fs := t.Mount.GetFsType()
		if fs != "" && fs != "xfs" && fs != "ext4" {
			return "", false, invalid(op, "the filesystem %q is not supported; ask for xfs or ext4", fs)
		}
		return fs, true, nil
	}
	return "", false, invalid(op, "a volume_capability has neither block nor mount; set one")
}

// ValidateVolumeCapabilities confirms by echoing what was sent, exactly.
func (s *Server) ValidateVolumeCapabilities(ctx context.Context, q *csipb.ValidateVolumeCapabilitiesRequest) (*csipb.ValidateVolumeCapabilitiesResponse, error) {
	op := "validate capabilities of volume " + q.GetVolumeId()
	if err := needID(op, "volume_id", q.GetVolumeId()); err != nil {
		return done[csipb.ValidateVolumeCapabilitiesResponse](nil, err)
	}
	if len(q.GetVolumeCapabilities()) == 0 {
		return done[csipb.ValidateVolumeCapabilitiesResponse](nil, invalid(op, "volume_capabilities are needed; there are none"))
	}
	rec, err := s.volume(ctx, op, q.GetVolumeId())
	if err != nil {
		return done[csipb.ValidateVolumeCapabilitiesResponse](nil, err)
	}
	refuse := func(why string) (*csipb.ValidateVolumeCapabilitiesResponse, error) {
		return &csipb.ValidateVolumeCapabilitiesResponse{Message: why}, nil
	}
	fs, _, err := checkCapabilities(op, q.GetVolumeCapabilities())
	if err != nil {
		return refuse(err.Error())
	}
	if fs != "" && fs != rec.Spec.FSType {
		return refuse("the volume is to hold " + rec.Spec.FSType + ", not " + fs)
	}
	if name, ok := q.GetVolumeContext()[contextKeyName]; ok && name != rec.Name {
		return refuse("the volume_context is another volume's: this one's name is " + rec.Name)
	}
	p, err := s.parameters(op, q.GetParameters())
	if err != nil {
		return refuse(err.Error())
	}
	changes, err := mutable(op, q.GetMutableParameters())
	if err != nil {
		return refuse(err.Error())
	}
	if why := lacks(rec.Spec, changes); why != "" {
		return refuse(why)
	}
	p.spec = changes.Apply(p.spec) // they take precedence
	if why := p.differs(rec.Spec); why != "" {
		return refuse(why)
	}
	same := proto.CloneOf(q)
	return &csipb.ValidateVolumeCapabilitiesResponse{Confirmed: &csipb.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: same.GetVolumeContext(), VolumeCapabilities: same.GetVolumeCapabilities(),
		Parameters: same.GetParameters(), MutableParameters: same.GetMutableParameters(),
	}}, nil
}
