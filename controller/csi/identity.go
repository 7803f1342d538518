package csi

import (
	"context"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/holdfast-storage/holdfast"
)

// GetPluginInfo says who this is.
func (s *Server) GetPluginInfo(context.Context, *csipb.GetPluginInfoRequest) (*csipb.GetPluginInfoResponse, error) {
	return &csipb.GetPluginInfoResponse{Name: holdfast.DriverName, VendorVersion: s.cfg.Release}, nil
}

// GetPluginCapabilities lists what the plugin as a whole offers.
func (s *Server) GetPluginCapabilities(context.Context, *csipb.GetPluginCapabilitiesRequest) (*csipb.GetPluginCapabilitiesResponse, error) {
	service := func(t csipb.PluginCapability_Service_Type) *csipb.PluginCapability {
		return &csipb.PluginCapability{Type: &csipb.PluginCapability_Service_{Service: &csipb.PluginCapability_Service{Type: t}}}
	}
	return &csipb.GetPluginCapabilitiesResponse{Capabilities: []*csipb.PluginCapability{
		service(csipb.PluginCapability_Service_CONTROLLER_SERVICE),
		service(csipb.PluginCapability_Service_GROUP_CONTROLLER_SERVICE),
		service(csipb.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS),
		service(csipb.PluginCapability_Service_SNAPSHOT_METADATA_SERVICE),
		{Type: &csipb.PluginCapability_VolumeExpansion_{VolumeExpansion: &csipb.PluginCapability_VolumeExpansion{
			Type: csipb.PluginCapability_VolumeExpansion_ONLINE}}},
	}}, nil
}

// probeTimeout bounds the look at the metadata store: a probe answers soon.
const probeTimeout = time.Second

// Probe says whether the plugin is ready. It does not fail: some clients end the
// plugin for an error, but none for "not ready yet".
func (s *Server) Probe(ctx context.Context, _ *csipb.ProbeRequest) (*csipb.ProbeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	ready := false
	if s.cfg.Ready != nil {
		ready = s.cfg.Ready(ctx)
	} else {
		_, err := s.cfg.Lifecycle.Nodes(ctx)
		ready = err == nil
	}
	return &csipb.ProbeResponse{Ready: wrapperspb.Bool(ready)}, nil
}
