package holdfast

import (
	"fmt"
	"time"
)

// Limits bound what a volume's device may do, where it is served. The zero value
// bounds nothing. Reads and writes count for both limits, trims as operations
// only, flushes not at all. Repairs and snapshots are not the device's and do not
// count.
type Limits struct {
	IOPS      int64 `json:"iops,omitempty"`      // operations a second; 0: no limit
	Bandwidth int64 `json:"bandwidth,omitempty"` // bytes a second, reads and writes together; 0: no limit
	// BurstMillis is how much unused time is kept: after a rest the device may do
	// at once what the limits allow in this time. 0: DefaultBurst.
	BurstMillis int64 `json:"burstMillis,omitempty"`
}

// Bounds of Limits. Less than the least would make a device's queue take minutes,
// which the kernel and the users take for a hang.
const (
	MinIOPS      = 10
	MaxIOPS      = 100_000_000
	MinBandwidth = 1 << 20
	MaxBandwidth = 1 << 40
	DefaultBurst = time.Second
	MaxBurst     = time.Hour
)

// Any says whether there is a limit.
func (l Limits) Any() bool { return l.IOPS > 0 || l.Bandwidth > 0 }

// Burst is the time whose unused share is kept.
func (l Limits) Burst() time.Duration {
	if l.BurstMillis <= 0 {
		return DefaultBurst
	}
	return time.Duration(l.BurstMillis) * time.Millisecond
}

// validate says what is wrong with the limits, of kind Invalid.
func (l Limits) validate(op string) error {
	bad := func(format string, a ...any) error { return E(op, Invalid, fmt.Sprintf(format, a...)) }
	switch {
	case l.IOPS != 0 && (l.IOPS < MinIOPS || l.IOPS > MaxIOPS):
		return bad("a limit of %d operations a second is not possible; ask for 0 (no limit) or %d to %d", l.IOPS, MinIOPS, MaxIOPS)
	case l.Bandwidth != 0 && (l.Bandwidth < MinBandwidth || l.Bandwidth > MaxBandwidth):
		return bad("a limit of %d bytes a second is not possible; ask for 0 (no limit) or %d (1 MiB) to %d (1 TiB)", l.Bandwidth, MinBandwidth, int64(MaxBandwidth))
	case l.BurstMillis < 0 || l.BurstMillis > MaxBurst.Milliseconds():
		return bad("a burst of %v is not possible; ask for 0 (%v) to %v", time.Duration(l.BurstMillis)*time.Millisecond, DefaultBurst, MaxBurst)
	}
	return nil
}
