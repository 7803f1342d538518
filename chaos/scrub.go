package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// damaged is a block that was changed behind the daemons' backs.
type damaged struct {
	file string
	off  int64
	was  []byte
}

// scrub changes a byte of one of three equal replicas and has the product find
// and heal it; what is compared afterwards must be as it was before. Every other
// volume has nothing to be found. No volume is served by anybody before.
func (r *run) scrub(ctx context.Context, rng *rand.Rand) error {
	var three []*keeper
	for _, k := range r.keepers {
		if k.claim.Replicas == "3" {
			three = append(three, k)
		}
	}
	victim, sound := three[rng.IntN(len(three))], r.keepers[rng.IntN(len(r.keepers))]
	v, err := r.volume(ctx, victim.claim.Name)
	if err != nil {
		return err
	}
	files, err := r.dataFiles(v)
	if err != nil {
		return err
	}
	d, err := damage(files[rng.IntN(len(files))], rng)
	if err != nil {
		return err
	}
	found := int64(0)
	if d != nil {
		found = 1
	}
	if err := r.scrubbed(ctx, victim, found); err != nil {
		return err
	}
	if sound != victim {
		if err := r.scrubbed(ctx, sound, 0); err != nil {
			return err
		}
	}
	if d != nil {
		if err := r.healed(ctx, victim, d); err != nil {
			return err
		}
	}
	r.j.note("scrubbed %s, where a damaged block was healed (%v), and %s", victim.claim.Name, d != nil, sound.claim.Name)
	return nil
}

// scrubbed scrubs a volume and waits until nobody serves it any more. found is
// how many damaged blocks there are at most; healed checks that none is left.
func (r *run) scrubbed(ctx context.Context, k *keeper, found int64) error {
	name := k.claim.Name
	id := ""
	err := r.within(ctx, tidyWithin, "ask for a scrub of "+name, func(ctx context.Context) (bool, error) {
		err := r.ask(ctx, func(ctx context.Context, _ holdfastv1.ClusterServiceClient, c holdfastv1.VolumeServiceClient) error {
			v, err := c.ScrubVolume(ctx, &holdfastv1.ScrubVolumeRequest{Volume: name})
			id = v.GetScrub().GetId()
			return err
		})
		return err == nil, err
	})
	if err != nil {
		return err
	}
	var s *holdfastv1.Scrub
	err = r.within(ctx, syncWithin, "scrub "+name, func(ctx context.Context) (bool, error) {
		v, err := r.volume(ctx, name)
		if err != nil {
			return false, err
		}
		s = v.GetScrub()
		if s.GetId() != id {
			return false, holdfast.E("scrub "+name, holdfast.Other, fmt.Sprintf("another scrub is there: %v, not %s", s, id))
		}
		return s.GetEnded() != nil, fmt.Errorf("it is %s: %s", s.GetState(), s.GetWaitingFor())
	})
	if err != nil {
		return err
	}
	// Whoever serves a volume first makes equal what was written last, perhaps the
	// damaged block: then there is nothing to be found any more.
	if n := s.GetMismatches(); n > found || s.GetHealed() != n || s.GetUnhealed() != 0 {
		return holdfast.E("scrub "+name, holdfast.Corrupt, fmt.Sprintf("at most %d blocks were damaged; it says: %v", found, s))
	}
	return r.inSync(ctx, name)
}

// healed checks that a damaged block is what it was, on the replica that had it,
// if that is still there, and on all the others.
func (r *run) healed(ctx context.Context, k *keeper, d *damaged) error {
	if err := r.compare(ctx, k.claim); err != nil {
		return err
	}
	f, err := os.OpenFile(d.file, os.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return holdfast.Wrap("look at what was damaged", err)
	}
	defer func() { _ = f.Close() }()
	p := aligned(blockBytes)
	if _, err := f.ReadAt(p, d.off); err != nil {
		return holdfast.Wrap("look at what was damaged", err)
	}
	if !bytes.Equal(p, d.was) {
		return holdfast.E("scrub "+k.claim.Name, holdfast.Corrupt, fmt.Sprintf("the block at %d was healed with other content than the other replicas had", d.off))
	}
	return nil
}

// damage changes one byte of a replica's data; nil if it has none.
func damage(file string, rng *rand.Rand) (*damaged, error) {
	op := "damage " + filepath.Base(filepath.Dir(file))
	f, err := os.OpenFile(file, os.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	off, err := nextData([]*os.File{f}, rng.Int64N(st.Size()))
	if err == nil && off >= st.Size() {
		off, err = nextData([]*os.File{f}, 0)
	}
	if err != nil || off >= st.Size() {
		return nil, err
	}
	off -= off % blockBytes
	p := aligned(blockBytes)
	if _, err := f.ReadAt(p, off); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	d := &damaged{file: file, off: off, was: bytes.Clone(p)}
	p[rng.IntN(len(p))] ^= byte(1 << rng.IntN(8))
	if _, err := f.WriteAt(p, off); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	return d, nil
}

// within is netcluster.Until that remembers what took longest.
func (r *run) within(ctx context.Context, limit time.Duration, what string, f func(context.Context) (bool, error)) error {
	begin := time.Now()
	err := netcluster.Until(ctx, limit, what, f)
	r.mu.Lock()
	defer r.mu.Unlock()
	if took := time.Since(begin); took > r.longest {
		r.longest, r.longestWhat = took, what
	}
	return err
}
