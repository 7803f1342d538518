package engine

import (
	"sync"
	"sync/atomic"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// space keeps a pool from filling up: writes that need new space are refused
// while less than the reserve is free, so that metadata, which the reserve is
// for, always finds room. Asking the filesystem at every write would cost too
// much: it hands out a budget, and asks again when that is used up.
type space struct {
	fs      disk.FS
	reserve int64
	// budget is how many bytes may be written without asking.
	budget atomic.Int64
	mu     sync.Mutex
}

const (
	maxBudget = 256 << 20
	minBudget = 4 << 20
)

// defaultReserve is a 64th of the pool, at least 64 MiB and at most 1 GiB, and
// never more than an eighth.
func defaultReserve(total int64) int64 {
	return min(max(total/64, 64<<20), 1<<30, total/8)
}

// take says whether [off, off+n) of f may be written: kind NoSpace if that needs
// space that is reserved.
func (s *space) take(f disk.File, off, n int64) error {
	if s.budget.Load() >= n && s.budget.Add(-n) >= 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	avail, err := s.available()
	if err != nil {
		return err
	}
	// At most half of what is there: writes that took from the last budget may
	// not have been allocated yet.
	if b := min(avail/2, maxBudget) - n; b >= minBudget {
		s.budget.Store(b)
		return nil
	}
	s.budget.Store(0)
	// Close to the wall every write is looked at: overwriting always works.
	need := n
	have, err := f.Mapped(off, n)
	if err != nil {
		return err
	}
	for _, x := range have {
		if !x.Shared { // what is shared is not written to in place
			need -= x.Length
		}
	}
	if need > 0 && avail < need {
		return errorf("allocate space", holdfast.NoSpace,
			"the pool has %d bytes left beyond its reserve of %d; %d are needed: delete volumes or move replicas away", max(avail, 0), s.reserve, need)
	}
	return nil
}

// available is what may still be taken; negative when the reserve is touched.
func (s *space) available() (int64, error) {
	u, err := s.fs.Usage()
	return u.FreeBytes - s.reserve, err
}

// room says whether the pool has space beyond its reserve at all: what lists of
// blocks take is not known beforehand, and little.
func (s *space) room() error {
	if s.budget.Load() > 0 {
		return nil
	}
	avail, err := s.available()
	if err == nil && avail <= 0 {
		err = errorf("allocate space", holdfast.NoSpace, "the pool has no space left beyond its reserve of %d bytes: delete snapshots or volumes, or move replicas away", s.reserve)
	}
	return err
}

// forget makes the next write ask.
func (s *space) forget() { s.budget.Store(0) }

// share bounds what the snapshots of a pool's open replicas may take: the blocks
// that they refer to, whether the live data still has them, too, or not.
type share struct {
	limit int64 // bytes; 0 for none
	used  atomic.Int64
}

func (s *share) room(n int64) error {
	if used := s.used.Load(); s.limit > 0 && used+n > s.limit {
		return errorf("keep old content for a snapshot", holdfast.NoSpace,
			"the pool's snapshots refer to %d bytes; they may refer to %d: delete snapshots", used, s.limit)
	}
	return nil
}
