package holdfast

import "time"

// Scrub is the newest comparison of a volume's replicas: one that is to be done,
// or what came of it. Whoever serves the volume does it and notes the outcome.
// Blocks are of 64 KiB.
type Scrub struct {
	ID        string    `json:"id"` // names this one among all the volume ever had
	Asked     time.Time `json:"asked"`
	Scheduled bool      `json:"scheduled,omitempty"` // nobody asked for it
	// Source is the replica whose copies are right, whatever the others hold; empty:
	// the majority is.
	Source    ReplicaID `json:"source,omitempty"`
	Ended     time.Time `json:"ended,omitzero"` // zero while it is to be done
	Cancelled bool      `json:"cancelled,omitempty"`

	Blocks     int64 `json:"blocks,omitempty"`     // compared
	Mismatches int64 `json:"mismatches,omitempty"` // damaged copies found
	Healed     int64 `json:"healed,omitempty"`     // of these
	Unhealed   int64 `json:"unhealed,omitempty"`   // blocks that differ and could not be healed
}

// Pending says whether there is a scrub to be done.
func (s *Scrub) Pending() bool { return s != nil && s.Ended.IsZero() }

// SetScrub puts a scrub into the record, which needs its second version for that.
func (r *Record) SetScrub(s Scrub) {
	r.Scrub = &s
	r.fitVersion()
}
