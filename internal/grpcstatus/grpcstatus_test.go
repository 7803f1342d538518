package grpcstatus_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/grpcstatus"
)

// failing answers every call with the error it is given.
type failing struct {
	grpc_health_v1.UnimplementedHealthServer
	err error
}

func (f *failing) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	return nil, f.err
}

func (f *failing) Watch(_ *grpc_health_v1.HealthCheckRequest, s grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	if err := s.Send(&grpc_health_v1.HealthCheckResponse{}); err != nil {
		return err
	}
	return f.err
}

// overTheWire starts a real server on loopback whose calls fail with f.err.
func overTheWire(t *testing.T, f *failing, client ...grpc.DialOption) grpc_health_v1.HealthClient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.UnaryInterceptor(grpcstatus.UnaryServer()), grpc.StreamInterceptor(grpcstatus.StreamServer()))
	grpc_health_v1.RegisterHealthServer(srv, f)
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	cc, err := grpc.NewClient(l.Addr().String(), append(client, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return grpc_health_v1.NewHealthClient(cc)
}

func withInterceptors() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithUnaryInterceptor(grpcstatus.UnaryClient()), grpc.WithStreamInterceptor(grpcstatus.StreamClient())}
}

func TestEveryKindSurvivesTheWire(t *testing.T) {
	f := &failing{}
	c := overTheWire(t, f, withInterceptors()...)
	for _, k := range holdfast.Kinds() {
		t.Run(k.String(), func(t *testing.T) {
			f.err = holdfast.Wrap("attach volume db-1", &holdfast.Error{Op: "grant", Kind: k, Msg: "node n2 holds it", Err: io.ErrUnexpectedEOF})
			_, err := c.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
			checkSame(t, err, f.err, k)
			w, err := c.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Recv(); err != nil {
				t.Fatalf("first message of the stream: %v", err)
			}
			_, err = w.Recv()
			checkSame(t, err, f.err, k)
		})
	}
}

func checkSame(t *testing.T, got, want error, k holdfast.Kind) {
	t.Helper()
	if got == nil || got.Error() != want.Error() {
		t.Errorf("text: got %v, want %v", got, want)
	}
	if holdfast.KindOf(got) != k {
		t.Errorf("kind: got %v, want %v", holdfast.KindOf(got), k)
	}
	var he *holdfast.Error
	if !errors.As(got, &he) || he.Op != "attach volume db-1" {
		t.Errorf("operation is lost: %#v", got)
	}
}

func TestTableIsCompleteAndReversible(t *testing.T) {
	for _, k := range holdfast.Kinds() {
		c := grpcstatus.Code(k)
		if c == codes.OK || c == codes.Unknown {
			t.Errorf("kind %v has no code of its own: %v; add a row to the table", k, c)
		}
		if back := grpcstatus.Kind(c); grpcstatus.Code(back) != c {
			t.Errorf("code %v of kind %v comes back as %v with code %v", c, k, back, grpcstatus.Code(back))
		}
	}
}

func TestForeignErrorsGetAKind(t *testing.T) {
	for code, want := range map[codes.Code]holdfast.Kind{
		codes.Aborted: holdfast.Busy, codes.DeadlineExceeded: holdfast.Unavailable, codes.Canceled: holdfast.Unavailable,
		codes.Unauthenticated: holdfast.Denied, codes.Unknown: holdfast.Other, codes.NotFound: holdfast.NotFound,
	} {
		err := grpcstatus.From(status.Error(code, "said so"))
		if got := holdfast.KindOf(err); got != want {
			t.Errorf("code %v: got kind %v, want %v", code, got, want)
		}
	}
}

func TestDeadlineIsRecognisedByTheCaller(t *testing.T) {
	f := &failing{err: fmt.Errorf("read record: %w", context.DeadlineExceeded)}
	c := overTheWire(t, f, withInterceptors()...)
	_, err := c.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("errors.Is DeadlineExceeded fails for %v", err)
	}
	if err.Error() != f.err.Error() {
		t.Errorf("text: got %q, want %q", err, f.err)
	}
}

func TestNilAndEOFStay(t *testing.T) {
	if grpcstatus.To(nil) != nil || grpcstatus.From(nil) != nil {
		t.Error("nil became an error")
	}
	if err := grpcstatus.From(io.EOF); !errors.Is(err, io.EOF) {
		t.Errorf("io.EOF became %v", err)
	}
}

func TestInvalidUTF8DoesNotBreakTheAnswer(t *testing.T) {
	f := &failing{err: holdfast.E("create volume \xff", holdfast.Invalid, "the name \xfe is bad")}
	c := overTheWire(t, f, withInterceptors()...)
	_, err := c.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if !errors.Is(err, holdfast.Invalid) {
		t.Errorf("got %v of kind %v, want kind invalid", err, holdfast.KindOf(err))
	}
}

// A server without our details, as another implementation would be.
func TestPlainStatusPassesUnchanged(t *testing.T) {
	f := &failing{err: status.Error(codes.NotFound, "nothing here")}
	c := overTheWire(t, f)
	_, err := c.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if status.Code(err) != codes.NotFound || status.Convert(err).Message() != "nothing here" {
		t.Errorf("got %v", err)
	}
}
