package sim

import (
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// ScrubResult is what a run with scrubs did.
type ScrubResult struct {
	Result
	Scrubs     int // begun
	Ended      int
	Flips      int
	Mismatches int64
	Healed     int64
}

// scrubbing is a run whose volume is scrubbed all the time. With flips, cells
// that nobody writes change by themselves on single replicas.
type scrubbing struct {
	*cluster
	flips bool
	res   ScrubResult
	seen  map[string]replication.ScrubStatus
	cold  [2]int64 // cells from and to which nobody writes
	last  string   // the final scrub, of all replicas
}

// RunScrub runs one seed with scrubs. Without flips no scrub may ever find
// anything; with them all replicas are equal in the end.
func RunScrub(cfg Config, flips bool) (res ScrubResult) {
	w := newWorld(&cfg, 3)
	s := &scrubbing{cluster: newCluster(cfg, newSite(w, cfg.Hosts)), flips: flips, seen: map[string]replication.ScrubStatus{}}
	defer func() {
		if r := recover(); r != nil {
			res.Result = s.result(panicError(r))
		}
	}()
	s.hotOnly = true
	s.build()
	s.power()
	s.cold = [2]int64{(cfg.HotBlocks + 4) * blockCells, (cfg.Blocks - 8) * blockCells}
	for _, h := range s.meta.hosts {
		if h.disk != nil {
			s.fill(h.disk)
		}
	}
	s.drive()
	s.fault()
	s.every(streamScrubs, time.Second, s.keepScrubbing)
	if s.damaged = flips; flips {
		s.every(streamFlips, 2*time.Second, s.flip)
	}
	w.runUntil(cfg.Faults, nil)
	err := s.judge(s.healed(), s.finalScrub, s.found, s.check, s.equal)
	s.res.Result = s.result(err)
	return s.res
}

// fill gives the cells that nobody writes their content.
func (s *scrubbing) fill(d *disk) {
	for i := s.cold[0]; i < s.cold[1]; i++ {
		d.live[i], d.safe[i] = value(1e12)+value(i), value(1e12)+value(i)
	}
}

// keepScrubbing begins scrubs and notes what came of them.
func (s *scrubbing) keepScrubbing(n int) time.Duration {
	w := s.w
	pause := w.between(10*time.Millisecond, 300*time.Millisecond)
	for i, d := range s.devs {
		x := d.p.Status().Scrub
		if x.ID != "" {
			s.seen[x.ID] = x
		}
		switch {
		case d.h.pausedUntil > s.w.now || s.quiet:
		case x.ID == "" || x.Ended():
			w.perhaps(Choice{ChoiceScrub, n, i}, 0.3, func() { s.begin(d) })
		default:
			w.perhaps(Choice{ChoiceScrub, n, i}, 0.02, d.p.CancelScrub)
		}
	}
	return pause
}

func (s *scrubbing) begin(d *device) string {
	s.res.Scrubs++
	s.faults["scrub"]++
	id := strconv.Itoa(s.res.Scrubs)
	d.p.Scrub(id, "")
	return id
}

// flip damages a copy of a cell, on a replica that counts as in sync, wherever
// the others hold what was written, also those that may come back with their copy:
// the majority stays right. With two replicas there is none; either copy may win.
func (s *scrubbing) flip(n int) time.Duration {
	pause := s.w.between(100*time.Millisecond, 8*time.Second)
	if s.quiet || s.meta.calm && !s.restoring {
		return 0
	}
	s.w.choose(Choice{ChoiceFlip, n, 0}, s.flipOne)
	return pause
}

func (s *scrubbing) flipOne() {
	in := s.meta.rec.InSyncReplicas()
	if slices.ContainsFunc(in, func(x holdfast.Replica) bool { return s.host(x.Node).replicaID != x.ID }) {
		return // the metadata store was rolled back
	}
	i := s.cold[0] + s.w.rng.Int64N(s.cold[1]-s.cold[0])
	block := func(d *disk) []value {
		unit := int64(replication.HashBlock / cellSize)
		return d.live[i/unit*unit : min((i/unit+1)*unit, s.cold[1])]
	}
	sound := len(in) > 2
	for _, rep := range s.meta.rec.Replicas {
		h := s.host(rep.Node)
		if rep.Since == 0 || h.replicaID != rep.ID {
			continue // it has no copy of its own
		}
		for k, v := range block(h.disk) {
			at := i/int64(replication.HashBlock/cellSize)*int64(replication.HashBlock/cellSize) + int64(k)
			sound = sound && (at < s.cold[0] || v == value(1e12)+value(at))
		}
	}
	if sound || len(in) == 2 && s.cfg.Replicas == 2 {
		h := s.host(in[s.w.rng.IntN(len(in))].Node)
		s.w.logf("flip: cell %d on %s", i, h.id)
		h.disk.live[i] ^= 1 << 50
		h.disk.safe[i] = h.disk.live[i]
		s.res.Flips++
		s.faults["flip"]++
	}
}

// finalScrub has the healed volume scrubbed once more, to its end.
func (s *scrubbing) finalScrub() error {
	for range 2 { // the first may have been begun before the last flip
		d := s.devs[0]
		s.w.runUntil(s.w.now+time.Minute, func() bool { r := d.p.Status().Record; return r.Healthy() }) // it hears later than the store
		d.p.CancelScrub()
		id := s.begin(d)
		s.last = id
		done := func() bool {
			x := d.p.Status().Scrub
			s.seen[id] = x
			return x.ID == id && x.State == replication.ScrubDone && s.meta.rec.Healthy()
		}
		s.w.runUntil(s.w.now+time.Minute, done)
		if !done() {
			return violation{wrongScrub, fmt.Sprintf("the last scrub does not end: %+v\n%s", d.p.Status().Scrub, s.stuck())}
		}
	}
	return nil
}

// found judges what the scrubs have found. While one of three replicas is away there
// may be no majority; the last scrub has all, and decides.
func (s *scrubbing) found() error {
	for _, id := range slices.Sorted(func(yield func(string) bool) {
		for id := range s.seen {
			if !yield(id) {
				return
			}
		}
	}) {
		x := s.seen[id]
		if x.State == replication.ScrubDone {
			s.res.Ended++
		}
		s.res.Mismatches += x.Mismatches
		s.res.Healed += x.Healed
		undecided := s.flips && s.cfg.Replicas > 2 && id != s.last
		if x.Unhealed > 0 && !undecided || !s.flips && x.Mismatches > 0 {
			return violation{wrongScrub, fmt.Sprintf("scrub %s of replicas without damage: %+v", id, x)}
		}
	}
	return nil
}
