package engine

import (
	"sync"
	"sync/atomic"
	"time"

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
	// reclaimed is when the filesystem was last asked for what it keeps back.
	reclaimed time.Time
}

const (
	// reclaimEvery bounds how often that is asked: writes stand still meanwhile.
	reclaimEvery = time.Second

	// copyUnit is what XFS takes, by default, for the first page that is written
	// of those that files share; it keeps what is not needed for the next ones.
	copyUnit = 128 << 10

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
	if s.grant(avail, n) {
		return nil
	}
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

// room says whether the pool has space beyond its reserve at all, and counts n
// bytes that may be taken besides what is written: what lists of blocks take is
// not known beforehand, and little.
func (s *space) room(n int64) error {
	if b := s.budget.Load(); b > 0 && b >= n && s.budget.Add(-n) >= 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	avail, err := s.available()
	if err == nil && avail <= 0 {
		err = errorf("allocate space", holdfast.NoSpace, "the pool has no space left beyond its reserve of %d bytes: delete snapshots or volumes, or move replicas away", s.reserve)
	}
	s.grant(avail, n)
	return err
}

// grant makes a new budget, of which n bytes are taken, and says whether there is
// one. It is at most half of what is there: writes that took from the last one may
// not have been allocated yet.
func (s *space) grant(avail, n int64) bool {
	b := min(avail/2, maxBudget) - n
	if b < minBudget {
		b = 0
	}
	s.budget.Store(b)
	return b > 0
}

// forget makes the next write ask.
func (s *space) forget() { s.budget.Store(0) }

// reclaimer is the filesystem if it keeps space back and should be asked for it
// now, else nil.
func (s *space) reclaimer() disk.Reclaimer {
	fs, ok := s.fs.(disk.Reclaimer)
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.reclaimed) < reclaimEvery {
		return nil
	}
	s.reclaimed = time.Now()
	return fs
}

// reclaim gets back what the filesystem keeps for later writes to this replica,
// and to others that are idle, after an error that says that there is no space:
// what is tried again may find some. No write may be under way, or the filesystem
// would leave the replica's file alone; the caller holds nothing but durable.
func (r *Replica) reclaim(err error) {
	if holdfast.KindOf(err) != holdfast.NoSpace {
		return
	}
	fs := r.pool.space.reclaimer()
	if fs == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	// That it fails changes nothing: the disk's errors show where they count.
	if !r.closed && fs.Reclaim() == nil {
		r.pool.space.forget()
	}
}

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
