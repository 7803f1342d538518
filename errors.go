package holdfast

import "errors"

// Kind is the closed set of error kinds. It survives the wire, gRPC, REST and
// CSI; each of those edges has one table from Kind to its own codes, and
// nothing below an edge knows those codes. Kind implements error, so that
// errors.Is(err, holdfast.NotFound) is how callers branch.
type Kind uint8

// The kinds. Other is what an error is that nobody classified: a bug or the
// operating system's own word; edges show it as an internal error.
const (
	Other       Kind = iota
	Invalid          // the request can never work as it is; it says what to change
	NotFound         // what was named does not exist
	Exists           // something else of that name exists
	InUse            // it is attached, mounted or held by somebody, who is named
	Busy             // somebody changed it meanwhile: read again and retry
	NoSpace          // no pool has the room, or a quota is reached
	OutOfRange       // a size or offset beyond what is possible
	Unavailable      // a part that is needed does not answer now; retrying helps
	Fenced           // a newer primary or epoch has taken over: stop
	Corrupt          // data or metadata fails verification
	Unsupported      // asked for something that Holdfast does not offer
	Denied           // not allowed
	kindEnd
)

var kindNames = [kindEnd]string{"other", "invalid", "not found", "exists", "in use", "busy", "no space",
	"out of range", "unavailable", "fenced", "corrupt", "unsupported", "denied"}

// Kinds lists every kind, for tests that walk them through an edge's table.
func Kinds() []Kind {
	ks := make([]Kind, 0, kindEnd)
	for k := Other; k < kindEnd; k++ {
		ks = append(ks, k)
	}
	return ks
}

// String is the kind's name as users see it; "unknown" for an undefined kind.
func (k Kind) String() string {
	if k < kindEnd {
		return kindNames[k]
	}
	return "unknown"
}

// Error makes a Kind an error, so that it is a target of errors.Is.
func (k Kind) Error() string { return k.String() }

// Error is an error with its kind, the operation it happened in and a message
// for a person that says what was wrong and what to do.
type Error struct {
	Op   string // operation and subject: "attach volume db-1"
	Kind Kind
	Msg  string
	Err  error // cause; may be nil
}

// E makes an *Error without a cause.
func E(op string, kind Kind, msg string) error { return &Error{Op: op, Kind: kind, Msg: msg} }

// Wrap adds an operation to err and keeps its kind; nil stays nil.
func Wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Kind: KindOf(err), Err: err}
}

// WrapKind is Wrap with the kind decided here; nil stays nil.
func WrapKind(op string, kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Kind: kind, Err: err}
}

// Error joins operation, message and cause; the kind only where nothing else
// is said.
func (e *Error) Error() string {
	s := e.Op
	add := func(t string) {
		if t == "" {
			return
		}
		if s != "" {
			s += ": "
		}
		s += t
	}
	add(e.Msg)
	if e.Err != nil {
		add(e.Err.Error())
	} else if e.Msg == "" {
		add(e.Kind.String())
	}
	return s
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, Kind) true for the outermost kind that is not Other.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && e.Kind == k
}

// KindOf is the kind of the outermost *Error or Kind in err's chain that has
// one; Other when there is none, also for nil.
func KindOf(err error) Kind {
	var e *Error
	for errors.As(err, &e) {
		if e.Kind != Other {
			return e.Kind
		}
		err = e.Err
	}
	var k Kind
	if errors.As(err, &k) {
		return k
	}
	return Other
}
