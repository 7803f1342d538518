package replication

import "github.com/holdfast-storage/holdfast"

// judgeScrub decides whose copy of a block is damaged: those that differ from the
// designated source's, from the majority or, of a volume with no more than two
// replicas to ask, from the one that repairs copy from.
func (p *Primary) judgeScrub(s *scrub, block holdfast.Extent, hashes [][]Hash) {
	source, designated := p.scrubSource(s)
	right, found, differ := hashes[source][0], designated, false
	for _, h := range hashes {
		n := 0
		for _, o := range hashes {
			if o[0] == h[0] {
				n++
			}
		}
		differ = differ || n < len(hashes)
		if s.source == "" && 2*n > len(hashes) != mutant(MutateScrubMinority) {
			right, found = h[0], true
		}
	}
	if differ && !found && (s.source != "" || p.witnesses() > 2) {
		s.open = union(s.open, []holdfast.Extent{block})
		return
	}
	for i, h := range hashes {
		if h[0] != right {
			s.bad[i] = union(s.bad[i], []holdfast.Extent{block})
		}
	}
}

// scrubSource is which of the scrub's peers is right where there is no majority, and
// whether somebody said so. One that was named but has left the in-sync set leaves
// everything undecided.
func (p *Primary) scrubSource(s *scrub) (at int, designated bool) {
	for i, t := range s.peers {
		switch {
		case t.rep.ID == s.source:
			return i, true
		case t == p.repairSource():
			at = i
		}
	}
	return at, false
}

// witnesses are the replicas in the record that have copies of their own: all but
// those that have never been in sync.
func (p *Primary) witnesses() int {
	n := 0
	for _, t := range p.peers {
		if t.inSync() || t.rep.Since != 0 {
			n++
		}
	}
	return n
}

// closeWindow goes on to the next window or, where there is damage, drops a
// damaged replica, to begin with the same one again when that is back. Whoever
// would be the source of the repair is dropped first. False: it cannot be dropped
// now.
func (p *Primary) closeWindow(s *scrub) bool {
	loser := -1
	for i, t := range s.peers {
		if len(s.bad[i]) > 0 && (loser < 0 || t == p.repairSource()) {
			loser = i
		}
	}
	if loser >= 0 && s.tries < 2*len(s.peers) {
		return p.dropDamaged(s, s.peers[loser], s.bad[loser])
	}
	for i := range s.peers {
		s.status.Unhealed += blocksOf(s.bad[i])
	}
	if n := blocksOf(s.open); n > 0 {
		s.status.Mismatches += n // one copy at least
		s.status.Unhealed += n
		p.changed("a scrub found %d blocks that differ, the first at byte %d, and no majority of the replicas says which copy is right: scrub again when all are in sync", n, s.open[0].Offset)
	}
	s.status.Blocks += s.compared
	s.window.Offset += s.window.Length
	s.tries, s.stage = 0, scrubListing
	return true
}

func blocksOf(x extentSet) int64 {
	n := int64(0)
	for _, e := range x {
		n += (e.Length + HashBlock - 1) / HashBlock
	}
	return n
}
