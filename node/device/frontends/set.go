package frontends

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/fuseloop"
	"github.com/holdfast-storage/holdfast/node/device/nbd"
	"github.com/holdfast-storage/holdfast/node/device/ublk"
)

// Config describes a node's front ends.
type Config struct {
	Wanted string // one of Names; empty is Auto
	// RunDir is the daemon's own directory: each front end has one below it.
	RunDir string
	Keeper fuseloop.Keeper // nil: none
	Helper []string        // see fuseloop.Config
	Log    *slog.Logger    // nil drops what is said
}

// Root is the directory of a front end below a daemon's run directory.
func Root(runDir, name string) string {
	if name == FuseLoop {
		return filepath.Join(runDir, "devices")
	}
	return filepath.Join(runDir, "devices-"+name)
}

// frontEnd is what all of them are.
type frontEnd interface {
	device.FrontEnd
	device.Successor
	io.Closer
}

// Set is a node's front end: new devices are made by the chosen one, those that
// others left are adopted and cleaned up by these.
type Set struct {
	chosen frontEnd
	others []frontEnd

	mu      sync.Mutex
	adopted map[holdfast.VolumeID]frontEnd // not opened yet
}

var (
	_ device.FrontEnd  = (*Set)(nil)
	_ device.Successor = (*Set)(nil)
)

// New chooses. Errors: Unsupported when what is wanted is refused or not there;
// InUse while another process that lives has a directory.
func New(c Config) (*Set, error) {
	if c.Wanted == "" {
		c.Wanted = Auto
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	v, err := Kernel()
	if err != nil {
		return nil, err
	}
	order, err := Order(c.Wanted, v)
	if err != nil {
		return nil, err
	}
	s := &Set{adopted: map[holdfast.VolumeID]frontEnd{}}
	var errs []error
	for i := 0; i < len(order) && s.chosen == nil; i++ {
		if s.chosen, err = c.make(order[i]); err != nil {
			errs = append(errs, err)
			if !errors.Is(err, holdfast.Unsupported) {
				break
			}
		}
	}
	if s.chosen == nil {
		return nil, errors.Join(errs...)
	}
	c.Log.Info("front end", "name", s.chosen.Name(), "wanted", c.Wanted, "kernel", v.String(), "not", errors.Join(errs...))
	if err := s.addOthers(c); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// addOthers adds the front ends that have been used here before.
func (s *Set) addOthers(c Config) error {
	for _, name := range Names() {
		if name == Auto || name == s.chosen.Name() {
			continue
		}
		if _, err := os.Stat(Root(c.RunDir, name)); errors.Is(err, os.ErrNotExist) {
			continue
		}
		f, err := c.make(name)
		if errors.Is(err, holdfast.Unsupported) {
			continue // the kernel that had its devices is gone
		}
		if err != nil {
			return err
		}
		s.others = append(s.others, f)
	}
	return nil
}

func (c Config) make(name string) (frontEnd, error) {
	root := Root(c.RunDir, name)
	switch name {
	case FuseLoop:
		return made(fuseloop.New(fuseloop.Config{Root: root, Keeper: c.Keeper, Helper: c.Helper, Log: c.Log}))
	case NBD:
		return made(nbd.New(nbd.Config{Root: root, Keeper: c.Keeper, Log: c.Log}))
	case UBLK:
		return made(ublk.New(ublk.Config{Root: root, Log: c.Log}))
	}
	return nil, holdfast.E("choose a front end", holdfast.Invalid, fmt.Sprintf("there is no front end %q; choose one of %s", name, strings.Join(Names(), ", ")))
}

// made keeps a nil pointer from becoming an interface that is not nil.
func made[F frontEnd](f F, err error) (frontEnd, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (s *Set) all() []frontEnd { return append([]frontEnd{s.chosen}, s.others...) }

// Name is that of the chosen one.
func (s *Set) Name() string { return s.chosen.Name() }

// Open makes a device, or goes on with an adopted one by the front end that made
// it.
func (s *Set) Open(ctx context.Context, o device.Options, b device.Backend) (device.Device, error) {
	by := s.take(o.Volume)
	if by == nil {
		by = s.chosen
	}
	return by.Open(ctx, o, b)
}

// take forgets who adopted a volume's device, and says it: nil if nobody did.
func (s *Set) take(vol holdfast.VolumeID) frontEnd {
	s.mu.Lock()
	defer s.mu.Unlock()
	by := s.adopted[vol]
	delete(s.adopted, vol)
	return by
}

// CleanOrphans removes what predecessors left with any front end.
func (s *Set) CleanOrphans(ctx context.Context) ([]holdfast.VolumeID, error) {
	var all []holdfast.VolumeID
	var errs []error
	for _, f := range s.all() {
		vols, err := f.CleanOrphans(ctx)
		all, errs = append(all, vols...), append(errs, err)
	}
	slices.Sort(all)
	return slices.Compact(all), errors.Join(errs...)
}

// Adopt implements device.Successor. Of a volume with several devices, that of
// the first front end counts; the others are removed.
func (s *Set) Adopt(ctx context.Context) ([]holdfast.VolumeID, error) {
	var all []holdfast.VolumeID
	var errs []error
	for _, f := range s.all() {
		vols, err := f.Adopt(ctx)
		errs = append(errs, err)
		for _, vol := range vols {
			if s.note(vol, f) {
				all = append(all, vol)
			} else {
				errs = append(errs, f.Discard(vol, true))
			}
		}
	}
	slices.Sort(all)
	return all, errors.Join(errs...)
}

func (s *Set) note(vol holdfast.VolumeID, by frontEnd) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.adopted[vol]; ok {
		return false
	}
	s.adopted[vol] = by
	return true
}

// Discard implements device.Successor.
func (s *Set) Discard(vol holdfast.VolumeID, force bool) error {
	by := s.take(vol)
	if by == nil {
		return holdfast.E("remove the device of volume "+string(vol), holdfast.NotFound, "no predecessor left one")
	}
	err := by.Discard(vol, force)
	if errors.Is(err, holdfast.InUse) {
		s.note(vol, by)
	}
	return err
}

// Leave implements device.Successor.
func (s *Set) Leave() []holdfast.VolumeID {
	var all []holdfast.VolumeID
	for _, f := range s.all() {
		all = append(all, f.Leave()...)
	}
	slices.Sort(all)
	return all
}

// Close gives the directories back. It fails with InUse while devices are open.
func (s *Set) Close() error {
	var errs []error
	for _, f := range s.all() {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
