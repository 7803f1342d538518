package replication

import (
	"math/bits"
	"time"
)

// LatencyBuckets is how many buckets Latencies has; the last has no bound.
const LatencyBuckets = 21

// firstBound is that of the first bucket. A power of two in nanoseconds makes
// finding a bucket one instruction; 65.5 µs is less than any network's round trip
// with a disk behind it.
const firstBound = 1 << 16

// LatencyBound is the largest time that bucket i counts, 65.5 µs to 34 s, each
// twice the one before.
func LatencyBound(i int) time.Duration { return firstBound << i }

// Latencies counts how long requests took.
type Latencies struct {
	Buckets [LatencyBuckets]uint64
	Sum     time.Duration
}

func (l *Latencies) add(d time.Duration) {
	if d < 0 {
		d = 0
	}
	i := bits.Len64(uint64(max(d-1, 0)) / firstBound)
	l.Buckets[min(i, LatencyBuckets-1)]++
	l.Sum += d
}

// Count is how many there were.
func (l *Latencies) Count() uint64 {
	n := uint64(0)
	for _, b := range l.Buckets {
		n += b
	}
	return n
}

// sampler keeps the times of one window for their median, with a resolution of a
// quarter of an octave, from 16 µs to 17 s. It does not allocate.
type sampler struct {
	n      uint32
	counts [80]uint32
}

const sampleShift = 14 // 16 µs

func (s *sampler) add(d time.Duration) {
	x := uint64(max(d, 1<<sampleShift))
	exp := bits.Len64(x) - 1 // x is in [2^exp, 2^(exp+1))
	quarter := int(x>>(exp-2)) & 3
	s.counts[min(4*(exp-sampleShift)+quarter, len(s.counts)-1)]++
	s.n++
}

// median is the middle of the bucket that holds it.
func (s *sampler) median() time.Duration {
	seen := uint32(0)
	for i, c := range s.counts {
		if seen += c; 2*seen >= s.n && c > 0 {
			low := uint64(4+i%4) << (sampleShift - 2 + i/4)
			return time.Duration(low + low/16)
		}
	}
	return 0
}
