package holdfast

import (
	"fmt"
	"maps"
	"time"
)

// Schedule takes snapshots of one volume, or of all that have certain labels, at
// times, and deletes those that it has taken when they are not to be kept any
// longer.
type Schedule struct {
	Version int    `json:"version"` // ScheduleVersion
	Name    string `json:"name"`    // unique among schedules; never changes
	// Cron says when: minute, hour, day of month, month, day of week; Zone in which
	// time zone, "" for UTC.
	Cron string `json:"cron"`
	Zone string `json:"zone,omitempty"`
	// Volume is what to take snapshots of; "": all volumes that have all of Labels.
	Volume VolumeID          `json:"volume,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// A snapshot is kept while it is one of the KeepLast newest of its volume, or
	// younger than KeepSeconds; the newest one in any case. One of them is set.
	KeepLast    int   `json:"keepLast,omitempty"`
	KeepSeconds int64 `json:"keepSeconds,omitempty"`

	Created time.Time `json:"created"`
	Paused  bool      `json:"paused,omitempty"` // nothing is taken, nothing deleted
	// Since: what was due until then is done, or is not to be done.
	Since   time.Time `json:"since"`
	LastRun time.Time `json:"lastRun,omitzero"`  // when the newest run was due that is done
	Problem string    `json:"problem,omitempty"` // why the run that is due is not done

	// Revision is the metadata store's, see Record.
	Revision int64 `json:"-"`
}

// ScheduleVersion is the version of Schedule's JSON form. History: 1, the first.
const ScheduleVersion = 1

// MaxScheduleName bounds a schedule's name, in bytes: its snapshots' names begin
// with it.
const MaxScheduleName = 64

// MaxKeepLast bounds the snapshots that a schedule keeps of a volume: there has to
// be room for the next one, and for others.
const MaxKeepLast = DefaultSnapshots - 16

const maxKeepSeconds = 100 * 366 * 24 * 3600

// Clone copies the schedule deeply.
func (s Schedule) Clone() Schedule {
	s.Labels = maps.Clone(s.Labels)
	return s
}

// Validate says what is wrong with a schedule, of kind Invalid, but for Cron and
// Zone, which whoever carries it out looks into.
func (s Schedule) Validate() error {
	op := "validate schedule " + s.Name
	bad := func(format string, a ...any) error { return E(op, Invalid, fmt.Sprintf(format, a...)) }
	if err := ValidateName(s.Name); err != nil {
		return Wrap(op, err)
	}
	switch {
	case s.Version != ScheduleVersion:
		return bad("it has version %d; this release writes version %d", s.Version, ScheduleVersion)
	case len(s.Name) > MaxScheduleName:
		return bad("the name has %d bytes; at most %d are allowed", len(s.Name), MaxScheduleName)
	case s.Cron == "":
		return bad("it does not say when; as in cron: \"0 3 * * *\"")
	case (s.Volume == "") == (len(s.Labels) == 0):
		return bad("it has to name a volume, or labels of volumes, and not both")
	case s.KeepLast < 0 || s.KeepLast > MaxKeepLast:
		return bad("keeping the last %d is not possible; ask for 0 (not by number) to %d", s.KeepLast, MaxKeepLast)
	case s.KeepSeconds < 0 || s.KeepSeconds > maxKeepSeconds:
		return bad("keeping for %d seconds is not possible; ask for 0 (not by age) to %d, a hundred years", s.KeepSeconds, int64(maxKeepSeconds))
	case s.KeepLast == 0 && s.KeepSeconds == 0:
		return bad("it has to say how many snapshots are kept, or for how long")
	}
	return nil
}

// Selects says whether a volume is one of those that the schedule is for.
func (s Schedule) Selects(r *Record) bool {
	if s.Volume != "" {
		return r.ID == s.Volume
	}
	for k, v := range s.Labels {
		if have, ok := r.Spec.Labels[k]; !ok || have != v {
			return false
		}
	}
	return len(s.Labels) > 0
}
