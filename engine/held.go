package engine

import (
	"encoding/binary"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

// heldSets is the content of the file held: what the snapshots hold, as it was
// when the replica was closed. It counts only for the opening that follows.
type heldSets struct {
	Opens     uint64    `json:"opens"` // meta's, then
	Snapshots []heldSet `json:"snapshots"`
}

type heldSet struct {
	File   uint64     `json:"file"`
	Leaves []heldLeaf `json:"leaves"`
}

// heldLeaf has the bits of 256 MiB, number Index; little-endian words.
type heldLeaf struct {
	Index int64  `json:"index"`
	Bits  []byte `json:"bits"`
}

func (s *granules) encode() []heldLeaf {
	var out []heldLeaf
	for i := range s.leaves {
		l := s.leaves[i].Load()
		if l == nil {
			continue
		}
		bits := make([]byte, 0, leafWords*8)
		for k := range l {
			bits = binary.LittleEndian.AppendUint64(bits, l[k].Load())
		}
		out = append(out, heldLeaf{Index: int64(i), Bits: bits})
	}
	return out
}

// decodeGranules makes a set of at most n from leaves; kind Corrupt when they
// are not of such a set.
func decodeGranules(n int64, leaves []heldLeaf) (*granules, error) {
	s := newGranules(n)
	for _, l := range leaves {
		if l.Index < 0 || l.Index >= int64(len(s.leaves)) || len(l.Bits) != leafWords*8 {
			return nil, errorf("decode held granules", holdfast.Corrupt, "a leaf of %d bytes at %d is not possible", len(l.Bits), l.Index)
		}
		for k := range int64(leafWords) {
			w := binary.LittleEndian.Uint64(l.Bits[8*k:])
			for b := int64(0); w != 0; b, w = b+1, w>>1 {
				g := l.Index*leafGranules + k*64 + b
				if w&1 == 0 {
					continue
				}
				if g >= n {
					return nil, errorf("decode held granules", holdfast.Corrupt, "granule %d is beyond the end", g)
				}
				s.add(g, g)
			}
		}
	}
	return s, nil
}

// loadHeld reads the sets that were saved when the replica was closed; those that
// are missing must be rebuilt, and all when it was not closed cleanly.
func loadHeld(fs disk.FS, name string, m *meta) map[uint64]*granules {
	var saved heldSets
	if err := readSealed(fs, name, "held granules", &saved); err != nil || saved.Opens != m.Opens {
		return nil
	}
	sizes := map[uint64]int64{}
	for _, s := range m.Snapshots {
		sizes[s.File] = s.SizeBytes
	}
	out := map[uint64]*granules{}
	for _, s := range saved.Snapshots {
		g, err := decodeGranules(granulesOf(sizes[s.File]), s.Leaves)
		if err == nil {
			out[s.File] = g
		}
	}
	return out
}

// saveHeld keeps the sets for the next opening; everything else is durable.
func (c *chain) saveHeld(opens uint64) error {
	if len(c.snaps) == 0 {
		return nil
	}
	sets := heldSets{Opens: opens}
	for _, s := range c.snaps {
		sets.Snapshots = append(sets.Snapshots, heldSet{File: s.meta.File, Leaves: s.held.encode()})
	}
	return writeSealed(c.pool.fs, c.file(heldFile), "held granules", sets)
}
