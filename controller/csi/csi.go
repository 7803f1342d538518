// Package csi is the CSI controller, group controller, snapshot metadata and
// identity services, version 1.13 of the specification.
//
// It promises what orchestrators rely on: a repeated call joins the one under way
// instead of being ABORTED; sizes are exact bytes and, like the volume context,
// the same in every answer for a volume's whole life but for expansion; lists and
// capacities wait for the metadata store rather than fail for a moment; a
// validated capability, context and parameters are echoed as they were sent.
// Volume ids may also be volume names. Errors are Holdfast's kinds, translated by
// grpcstatus. It keeps no state and owns no goroutine.
//
// Whatever it is asked to do is done by lifecycle, decided by placement.
package csi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
)

// Config is what the services need. Lifecycle is required.
type Config struct {
	Lifecycle *lifecycle.Service
	Release   string // shown as vendor version

	// WithoutPublish leaves PUBLISH_UNPUBLISH_VOLUME out of the capabilities, for
	// orchestrators that call only the node service; that attaches by itself.
	WithoutPublish bool
	// Agent makes the view local to one node, for Mesos' storage local resource
	// providers, of which each takes what it is shown for its own: ListVolumes has
	// the volumes created through it, and those attached there that were created
	// without a view; GetCapacity is divided by the number of live nodes.
	Agent holdfast.NodeID
	// IgnoreUnknownParameters accepts parameters of CreateVolume that mean nothing.
	IgnoreUnknownParameters bool
	// ReportedOvercommit is the overcommit that GetCapacity counts with, as far as
	// it is less than the policy's. Default 1: what it reports can be filled.
	ReportedOvercommit float64
	// DefaultBytes is the size of a volume whose creator names none; default 1 GiB.
	DefaultBytes int64
	// Patience is how long lists and capacities wait for the metadata store when
	// the caller sets no earlier deadline. Default 50 s, since Mesos waits 60.
	Patience time.Duration
	// Ready says whether this node can serve; nil: when the metadata store answers.
	Ready func(ctx context.Context) bool
	Log   *slog.Logger
}

// Server is the services. Use New.
type Server struct {
	csipb.UnimplementedControllerServer
	csipb.UnimplementedGroupControllerServer
	csipb.UnimplementedIdentityServer
	cfg Config
}

// New checks the configuration.
func New(cfg Config) (*Server, error) {
	if cfg.Lifecycle == nil {
		return nil, holdfast.E("make CSI controller", holdfast.Invalid, "a lifecycle service is needed")
	}
	if cfg.DefaultBytes <= 0 {
		cfg.DefaultBytes = 1 << 30
	}
	if cfg.ReportedOvercommit < 1 {
		cfg.ReportedOvercommit = 1
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 50 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{cfg: cfg}, nil
}

// Register adds all services to a gRPC server. Where the controller service is
// not wanted, register the identity alone with RegisterIdentity.
func (s *Server) Register(g grpc.ServiceRegistrar) {
	csipb.RegisterIdentityServer(g, s)
	csipb.RegisterControllerServer(g, s)
	csipb.RegisterGroupControllerServer(g, s)
	csipb.RegisterSnapshotMetadataServer(g, snapshotMetadata{Server: s})
}

// RegisterIdentity adds the identity service alone.
func (s *Server) RegisterIdentity(g grpc.ServiceRegistrar) { csipb.RegisterIdentityServer(g, s) }

// done ends a call: an error becomes a status and no answer.
func done[T any](answer *T, err error) (*T, error) {
	if err != nil {
		return nil, grpcstatus.To(err)
	}
	return answer, nil
}

// invalid is an error for a request that cannot work as it is.
func invalid(op, format string, a ...any) error {
	return holdfast.E(op, holdfast.Invalid, fmt.Sprintf(format, a...))
}

// needID checks that a field is there.
func needID(op, field, id string) error {
	if id == "" {
		return invalid(op, "a %s is needed; it is empty", field)
	}
	return nil
}

// patient repeats a read while the metadata store does not answer, until the
// caller's deadline is near: Mesos stops for good when one of these fails.
func (s *Server) patient(ctx context.Context, read func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Patience)
	defer cancel()
	pause := 50 * time.Millisecond
	for {
		err := read(ctx)
		if err == nil || !errors.Is(err, holdfast.Unavailable) {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return err
		case <-t.C:
		}
		pause = min(2*pause, time.Second)
	}
}

// volume finds a volume. One that is being deleted is there no more.
func (s *Server) volume(ctx context.Context, op, id string) (holdfast.Record, error) {
	if err := needID(op, "volume_id", id); err != nil {
		return holdfast.Record{}, err
	}
	rec, err := s.cfg.Lifecycle.Get(ctx, id)
	if err == nil && rec.Phase == holdfast.PhaseDeleting {
		err = holdfast.E("", holdfast.NotFound, "the volume is being deleted")
	}
	return rec, holdfast.Wrap(op, err)
}

// contextKeyName is the key of the volume context.
const contextKeyName = holdfast.DriverName + "/name"

// describe is a volume as CSI shows it: always the same for the same record and
// place, whoever asks.
func (s *Server) describe(rec holdfast.Record, nodes []holdfast.Node) *csipb.Volume {
	return &csipb.Volume{
		VolumeId:           string(rec.ID),
		CapacityBytes:      rec.Spec.SizeBytes,
		VolumeContext:      map[string]string{contextKeyName: rec.Name},
		AccessibleTopology: accessible(rec, nodes),
		ContentSource:      contentSource(rec),
	}
}

// list splits a parameter's value at commas or semicolons.
func list(value string) []string {
	return strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ';' || r == ' ' })
}
