package holdfast

import (
	"fmt"
	"maps"
	"slices"
	"time"
)

// Clone is a deep copy.
func (s Spec) Clone() Spec {
	s.Requisite = slices.Clone(s.Requisite)
	s.Preferred = slices.Clone(s.Preferred)
	s.Racks = slices.Clone(s.Racks)
	s.Zones = slices.Clone(s.Zones)
	s.Parameters = maps.Clone(s.Parameters)
	s.Labels = maps.Clone(s.Labels)
	return s
}

// MinIOTimeout and MaxIOTimeout bound Spec.IOTimeoutMillis: less than the least
// would turn the loss of one replica, which takes seconds to be sure of, into I/O
// errors.
const (
	MinIOTimeout = 5 * time.Second
	MaxIOTimeout = 7 * 24 * time.Hour
)

// IOTimeout is after how long I/O that cannot go on fails; 0: never.
func (s *Spec) IOTimeout() time.Duration { return time.Duration(s.IOTimeoutMillis) * time.Millisecond }

// waitingSet says whether the spec says something about waiting.
func (s *Spec) waitingSet() bool { return s.IOTimeoutMillis != 0 || s.SlowReplicas != "" }

// MinXFSBytes is the least that mkfs.xfs makes a filesystem on.
const MinXFSBytes = 300 << 20

// WithDefaults fills what the user left open: 3 replicas, minInSync 1, xfs (ext4
// where that is too small for it), 4096-byte logical blocks, preferred locality.
func (s Spec) WithDefaults() Spec {
	if s.Replicas == 0 {
		s.Replicas = 3
	}
	if s.MinInSync == 0 {
		s.MinInSync = 1
	}
	if s.FSType == "" {
		s.FSType = "xfs"
		if s.SizeBytes < MinXFSBytes {
			s.FSType = "ext4"
		}
	}
	if s.LogicalBlk == 0 {
		s.LogicalBlk = BlockSize
	}
	if s.Locality == "" {
		s.Locality = LocalityPreferred
	}
	return s
}

// Validate checks a spec with its defaults filled in. The error is of kind
// Invalid or OutOfRange and says what to change.
func (s Spec) Validate() error {
	const op = "validate volume spec"
	bad := func(kind Kind, format string, a ...any) error { return E(op, kind, fmt.Sprintf(format, a...)) }
	switch {
	case s.SizeBytes < MinVolumeBytes || s.SizeBytes > MaxVolumeBytes:
		return bad(OutOfRange, "a size of %d bytes is not possible; ask for %d (1 MiB) to %d (64 TiB)", s.SizeBytes, int64(MinVolumeBytes), int64(MaxVolumeBytes))
	case s.Replicas < 1 || s.Replicas > MaxReplicas:
		return bad(Invalid, "%d replicas are not possible; ask for 1 to %d", s.Replicas, MaxReplicas)
	case s.MinInSync < 1 || s.MinInSync > s.Replicas:
		return bad(Invalid, "minInSync %d is not possible with %d replicas; ask for 1 to %d", s.MinInSync, s.Replicas, s.Replicas)
	case s.FSType != "xfs" && s.FSType != "ext4":
		return bad(Invalid, "the filesystem %q is not supported; ask for xfs or ext4", s.FSType)
	case s.LogicalBlk != 512 && s.LogicalBlk != BlockSize:
		return bad(Invalid, "a logical block of %d bytes is not possible; ask for 512 or 4096", s.LogicalBlk)
	}
	switch t := s.IOTimeoutMillis; {
	case t != 0 && (t < MinIOTimeout.Milliseconds() || t > MaxIOTimeout.Milliseconds()):
		return bad(Invalid, "an I/O timeout of %v is not possible; ask for 0 (I/O waits without limit) or %v to %v", time.Duration(t)*time.Millisecond, MinIOTimeout, MaxIOTimeout)
	case s.SlowReplicas != "" && !s.SlowReplicas.Known():
		return bad(Invalid, "the policy %q for slow replicas is unknown; ask for off, report or drop", s.SlowReplicas)
	}
	switch s.Locality {
	case LocalityRequired, LocalityPreferred, LocalityNone:
		return s.Limits.validate(op)
	}
	return bad(Invalid, "the locality %q is unknown; ask for required, preferred or none", s.Locality)
}
