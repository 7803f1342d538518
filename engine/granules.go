package engine

import (
	"math/bits"
	"sync/atomic"

	"github.com/holdfast-storage/holdfast"
)

// granuleSize is the unit in which snapshots keep old content and in which
// clones take theirs over, in bytes.
const granuleSize = int64(64 << 10)

// granulesOf counts the granules of size bytes.
func granulesOf(size int64) int64 { return (size + granuleSize - 1) / granuleSize }

const (
	leafWords    = 64
	leafGranules = leafWords * 64 // 256 MiB
)

type granuleLeaf [leafWords]atomic.Uint64

// granules is a set of granules, of which most are not there: it takes memory
// for every 256 MiB that have a member. Members are only added. All methods may
// be called at once.
type granules struct {
	n      int64 // granules there can be
	leaves []atomic.Pointer[granuleLeaf]
	count  atomic.Int64
}

func newGranules(n int64) *granules {
	return &granules{n: n, leaves: make([]atomic.Pointer[granuleLeaf], (n+leafGranules-1)/leafGranules)}
}

// has says whether g, which may be beyond the end, is a member.
func (s *granules) has(g int64) bool {
	if g >= s.n {
		return false
	}
	l := s.leaves[g/leafGranules].Load()
	return l != nil && l[g%leafGranules/64].Load()&(1<<(g%64)) != 0
}

// add makes [first, last] members.
func (s *granules) add(first, last int64) {
	for g := first; g <= last; g++ {
		p := &s.leaves[g/leafGranules]
		l := p.Load()
		if l == nil {
			p.CompareAndSwap(nil, new(granuleLeaf))
			l = p.Load()
		}
		if bit := uint64(1) << (g % 64); l[g%leafGranules/64].Or(bit)&bit == 0 {
			s.count.Add(1)
		}
	}
}

// join adds the members of another set that are within this one.
func (s *granules) join(o *granules) {
	for i := range min(len(s.leaves), len(o.leaves)) {
		from := o.leaves[i].Load()
		if from == nil {
			continue
		}
		s.leaves[i].CompareAndSwap(nil, new(granuleLeaf))
		to := s.leaves[i].Load()
		for k := range to {
			w := from[k].Load()
			if left := s.n - int64(i)*leafGranules - int64(k)*64; left <= 0 {
				w = 0
			} else if left < 64 {
				w &= 1<<left - 1
			}
			s.count.Add(int64(bits.OnesCount64(w &^ to[k].Or(w))))
		}
	}
}

// each visits the members from first on in order, until visit says false.
func (s *granules) each(first int64, visit func(g int64) bool) {
	for i := first / leafGranules; i < int64(len(s.leaves)); i++ {
		l := s.leaves[i].Load()
		if l == nil {
			continue
		}
		for k := range l {
			base := i*leafGranules + int64(k)*64
			for w := l[k].Load(); w != 0; w &= w - 1 {
				if g := base + int64(bits.TrailingZeros64(w)); g >= first && !visit(g) {
					return
				}
			}
		}
	}
}

// alike is the longest range from g on, up to last, whose members are all equal by
// what.
func alike[T comparable](g, last int64, what func(g int64) T) (value T, end int64) {
	value, end = what(g), g
	for end < last && what(end+1) == value {
		end++
	}
	return value, end
}

// extent is the bytes of granules [first, last], cut at size.
func granuleExtent(first, last, size int64) holdfast.Extent {
	off := first * granuleSize
	return holdfast.Extent{Offset: off, Length: min((last+1)*granuleSize, size) - off}
}
