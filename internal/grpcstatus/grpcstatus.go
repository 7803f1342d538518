// Package grpcstatus is the one table between Holdfast's error kinds and gRPC's
// codes, for every gRPC edge: between nodes, the users' API and CSI.
//
// It promises that kind, operation and message of an error survive a call: what
// a handler returns is, at the caller, an error with the same text for which
// errors.Is(err, kind) holds. Causes do not travel; their text does. Foreign
// errors (gRPC's own, or another implementation's) get the kind nearest to their
// code. It does no I/O and owns no goroutine.
package grpcstatus

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-storage/holdfast"
)

// domain marks error details as Holdfast's own.
const domain = "holdfast.dev"

// Keys of the details' metadata.
const (
	metaOp  = "operation"
	metaMsg = "message"
)

// kindCode is one row of the table. The first row with a code decides which kind
// a foreign error with that code has.
type kindCode struct {
	kind holdfast.Kind
	code codes.Code
}

// table is every kind with its code. Several kinds may share a code, since the
// kind itself travels in the details.
func table() []kindCode {
	return []kindCode{
		{holdfast.Other, codes.Internal},
		{holdfast.Invalid, codes.InvalidArgument},
		{holdfast.NotFound, codes.NotFound},
		{holdfast.Exists, codes.AlreadyExists},
		{holdfast.InUse, codes.FailedPrecondition},
		{holdfast.Busy, codes.Aborted},
		{holdfast.NoSpace, codes.ResourceExhausted},
		{holdfast.OutOfRange, codes.OutOfRange},
		{holdfast.Unavailable, codes.Unavailable},
		{holdfast.Fenced, codes.Aborted},
		{holdfast.Corrupt, codes.DataLoss},
		{holdfast.Unsupported, codes.Unimplemented},
		{holdfast.Denied, codes.PermissionDenied},
	}
}

// Code is the gRPC code of a kind.
func Code(k holdfast.Kind) codes.Code {
	for _, row := range table() {
		if row.kind == k {
			return row.code
		}
	}
	return codes.Internal
}

// Kind is the kind of a foreign error with this code.
func Kind(c codes.Code) holdfast.Kind {
	switch c {
	case codes.DeadlineExceeded, codes.Canceled:
		return holdfast.Unavailable
	case codes.Unauthenticated:
		return holdfast.Denied
	}
	for _, row := range table() {
		if row.code == c {
			return row.kind
		}
	}
	return holdfast.Other
}

// To makes err a gRPC status error; nil stays nil, and a gRPC status error that
// is not Holdfast's stays as it is.
func To(err error) error {
	if err == nil {
		return nil
	}
	var he *holdfast.Error
	isOurs := errors.As(err, &he)
	if s, ok := status.FromError(err); ok && !isOurs {
		return s.Err()
	}
	kind := holdfast.KindOf(err)
	code := Code(kind)
	if kind == holdfast.Other {
		code = contextCode(err, code)
	}
	op, msg := split(err)
	s := status.New(code, strings.ToValidUTF8(err.Error(), "\uFFFD"))
	detailed, derr := s.WithDetails(&errdetails.ErrorInfo{
		Reason:   reason(kind),
		Domain:   domain,
		Metadata: map[string]string{metaOp: op, metaMsg: msg},
	})
	if derr != nil {
		return s.Err()
	}
	return detailed.Err()
}

// contextCode is the code for an error that nobody classified because its cause
// is the caller's own deadline or cancellation.
func contextCode(err error, otherwise codes.Code) codes.Code {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	}
	return otherwise
}

// split separates the outermost operation from the rest of the text, so that
// operation and message, joined again, read as the error did.
func split(err error) (op, msg string) {
	text := err.Error()
	var he *holdfast.Error
	if !errors.As(err, &he) || he.Op == "" {
		return "", strings.ToValidUTF8(text, "\uFFFD")
	}
	op, msg = he.Op, strings.TrimPrefix(text, he.Op+": ")
	if msg == text { // wrapped by somebody else: the whole text is the message
		op = ""
	}
	return strings.ToValidUTF8(op, "\uFFFD"), strings.ToValidUTF8(msg, "\uFFFD")
}

// reason is a kind as the details carry it: "NO_SPACE".
func reason(k holdfast.Kind) string {
	return strings.ToUpper(strings.ReplaceAll(k.String(), " ", "_"))
}

// kindOfReason reverses reason.
func kindOfReason(r string) (holdfast.Kind, bool) {
	for _, k := range holdfast.Kinds() {
		if reason(k) == r {
			return k, true
		}
	}
	return holdfast.Other, false
}

// From makes an error that came over gRPC one of Holdfast's; nil stays nil, and
// so does io.EOF and every other error that is no gRPC status.
func From(err error) error {
	if err == nil {
		return nil
	}
	var he *holdfast.Error
	if errors.As(err, &he) {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range s.Details() {
		info, ok := d.(*errdetails.ErrorInfo)
		if !ok || info.Domain != domain {
			continue
		}
		if k, known := kindOfReason(info.Reason); known {
			return &holdfast.Error{Op: info.Metadata[metaOp], Kind: k, Msg: info.Metadata[metaMsg], Err: silent(s.Code())}
		}
	}
	return foreign(s)
}

// foreign is the error for a status without our details.
func foreign(s *status.Status) error {
	msg := s.Message()
	if s.Code() == codes.DeadlineExceeded {
		msg = "no answer in time (" + msg + ")"
	}
	return &holdfast.Error{Kind: Kind(s.Code()), Msg: msg, Err: silent(s.Code())}
}

// silent is the cause that makes errors.Is(err, context.DeadlineExceeded) true
// at the caller without repeating itself in the text; nil for other codes.
func silent(c codes.Code) error {
	switch c {
	case codes.DeadlineExceeded:
		return quiet{context.DeadlineExceeded}
	case codes.Canceled:
		return quiet{context.Canceled}
	}
	return nil
}

// quiet is a cause without text.
type quiet struct{ cause error }

func (quiet) Error() string   { return "" }
func (q quiet) Unwrap() error { return q.cause }
