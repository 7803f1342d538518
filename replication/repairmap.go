package replication

import "github.com/holdfast-storage/holdfast"

// backlog is what a replica under repair lacks and what was not begun.
type backlog struct {
	copies   extentSet // to be read and written
	probes   extentSet // of which it is not known where the source has holes
	compares extentSet // to be compared, and copied where it differs
}

func (b *backlog) bytes() int64 { return b.copies.bytes() + b.probes.bytes() + b.compares.bytes() }

// first is the list to go on with; nil when nothing is left. Everything is done in
// the order of offsets, so that one number says how far it has come; but what is
// known to be lacking within the next span to be compared goes before it: it would
// make whole hash blocks differ.
func (b *backlog) first(span int64) *extentSet {
	best := &b.copies
	if len(b.probes) > 0 && (len(b.copies) == 0 || b.probes[0].Offset < b.copies[0].Offset) {
		best = &b.probes
	}
	switch {
	case len(b.compares) > 0 && (len(*best) == 0 || b.compares[0].Offset+span <= (*best)[0].Offset):
		return &b.compares
	case len(*best) == 0:
		return nil
	}
	return best
}

// front is the lowest offset of what is left; end if nothing is.
func (b *backlog) front(end int64) int64 {
	for _, s := range []extentSet{b.copies, b.probes, b.compares} {
		if len(s) > 0 {
			end = min(end, s[0].Offset)
		}
	}
	return end
}

// lacking collects what a replica lacks, source by source.
type lacking struct {
	r        *repair
	copies   extentSet
	compares extentSet
	suspects extentSet
	parts    []ProgressPart // of an interrupted repair, still to be listed
	from     int64          // up to here the interrupted repair has come
}

// goLive sends live writes to the target from now on. Those under way that it
// does not get are part of what it lacks, as are its own tail and suspects and
// those of the source (invariant 7).
func (p *Primary) goLive(r *repair) {
	r.isLive = true
	r.save.liveEpoch = p.epoch
	if r.st.exact != nil {
		p.mapNext(r, "", p.rec.SizeBytes, p.flying())
		r.st.exact = nil
		return
	}
	l := &lacking{r: r, copies: union(p.flying(), r.t.welcome.Tail)}
	l.suspects = union(r.t.welcome.Suspects, r.source.welcome.Suspects)
	switch {
	case mutant(Mutate7NoOwnTail):
		l.copies = p.flying()
	case mutant(Mutate7NoSuspects):
		l.suspects = nil
	case mutant(Mutate7NoSourceSuspects):
		l.suspects = union(r.t.welcome.Suspects)
	case mutant(Mutate7NoFlying):
		l.copies = union(r.t.welcome.Tail)
	}
	p.resume(l)
	p.listParts(l)
}

// flying are the ranges of all writes under way: begun before, whatever an
// earlier session got.
func (p *Primary) flying() extentSet {
	var xs []holdfast.Extent
	for _, w := range p.inflight {
		xs = append(xs, w.ext)
	}
	return union(xs)
}

// listParts lists what changed in the parts that an interrupted repair had
// finished, since it finished them; then everything in the rest.
func (p *Primary) listParts(l *lacking) {
	if len(l.parts) == 0 {
		p.listRest(l)
		return
	}
	part, from := l.parts[0], l.from
	l.parts, l.from = l.parts[1:], part.End
	p.list(l.r.source, &Message{Type: MsgChanged, Since: part.AsOf, Offset: from}, func(changed extentSet, st Status) {
		switch {
		case l.r.dead:
		case st == StatusNoMap:
			l.r.save.base, l.parts, l.from = nil, nil, 0
			p.listRest(l)
		case st != StatusOK:
			p.failRepair(l.r, "the source's change maps could not be read")
		default:
			if !mutant(Mutate7ResumeForgets) {
				l.copies = union(l.copies, changed.from(from).until(part.End))
			}
			p.listParts(l)
		}
	})
}

// listRest lists what the target lacks from l.from on.
func (p *Primary) listRest(l *lacking) {
	r := l.r
	switch {
	case l.from >= p.rec.SizeBytes && l.from > 0:
		p.mapped(l)
		return
	case r.t.rep.Since == 0:
		p.listAllocated(l)
		return
	}
	p.list(r.source, &Message{Type: MsgChanged, Since: r.t.rep.Since, Offset: l.from}, func(changed extentSet, st Status) {
		switch {
		case r.dead:
		case st == StatusNoMap:
			p.listAllocated(l)
		case st != StatusOK:
			p.failRepair(r, "the source's change maps could not be read")
		default:
			l.copies = union(l.copies, changed.from(l.from))
			p.mapped(l)
		}
	})
}

// listAllocated is for a replica of which it is not known what it lacks: what
// both sides have is compared, what only one has is copied or trimmed.
func (p *Primary) listAllocated(l *lacking) {
	r := l.r
	rest := func() *Message {
		return &Message{Type: MsgAllocated, Offset: l.from, Length: p.rec.SizeBytes - l.from}
	}
	p.list(r.source, rest(), func(ours extentSet, st Status) {
		if r.dead || st != StatusOK {
			p.failRepair(r, "the source's allocation could not be read")
			return
		}
		p.list(r.t, rest(), func(theirs extentSet, st Status) {
			if r.dead || st != StatusOK {
				p.failRepair(r, "its allocation could not be read")
				return
			}
			shared := ours.both(theirs)
			l.compares = shared
			l.copies = union(l.copies, ours.minus(shared))
			r.todo.probes = theirs.minus(shared)
			p.mapped(l)
		})
	})
}

// mapped begins to copy.
func (p *Primary) mapped(l *lacking) {
	r, size := l.r, p.rec.SizeBytes
	l.copies = clip(l.copies, size)
	probes := clip(r.todo.probes, size)
	wide := p.cfg.RepairChunk * 4
	for _, x := range l.copies { // a small one is read, wherever its holes are
		if x.Length >= wide {
			probes = union(probes, extentSet{x})
		}
	}
	r.todo.probes = probes
	r.todo.copies = l.copies.minus(probes)
	known := union(r.todo.copies, probes)
	compares := union(l.compares, l.suspects).widen(HashBlock, size).minus(known).widen(HashBlock, size)
	r.todo.compares = compares
	r.total = r.todo.bytes()
	r.left, r.save.done = r.total, r.total
	r.stage = repairCopying
	r.save.next = p.now() + p.cfg.ProgressEvery
	from := ""
	if len(r.save.base) > 0 {
		from = ", going on from what an earlier repair has copied"
	}
	p.changed("repairing replica %s on node %s: %d bytes to copy, %d to compare%s", r.t.rep.ID, r.t.rep.Node, known.bytes(), compares.bytes(), from)
	p.plan() // the record says Rebuilding
	p.pump(r)
}
