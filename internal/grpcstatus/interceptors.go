package grpcstatus

import (
	"context"

	"google.golang.org/grpc"
)

// UnaryServer turns what handlers return into gRPC status errors.
func UnaryServer() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
		resp, err := h(ctx, req)
		return resp, To(err)
	}
}

// StreamServer is UnaryServer for streams.
func StreamServer() grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		return To(h(srv, ss))
	}
}

// UnaryClient turns gRPC status errors into Holdfast's.
func UnaryClient() grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		return From(call(ctx, method, req, reply, cc, opts...))
	}
}

// StreamClient is UnaryClient for streams; io.EOF at the end stays io.EOF.
func StreamClient() grpc.StreamClientInterceptor {
	return func(ctx context.Context, d *grpc.StreamDesc, cc *grpc.ClientConn, method string, s grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		cs, err := s(ctx, d, cc, method, opts...)
		if err != nil {
			return nil, From(err)
		}
		return stream{cs}, nil
	}
}

type stream struct{ grpc.ClientStream }

func (s stream) RecvMsg(m any) error { return From(s.ClientStream.RecvMsg(m)) }
func (s stream) SendMsg(m any) error { return From(s.ClientStream.SendMsg(m)) }
