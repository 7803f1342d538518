package frontends_test

import (
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/devicetest"
	"github.com/holdfast-storage/holdfast/node/device/frontends"
)

func TestOrder(t *testing.T) {
	for _, c := range []struct {
		wanted       string
		major, minor int
		want         []string // nil: refused
	}{
		{"auto", 5, 10, []string{"fuseloop"}},
		{"auto", 6, 1, []string{"nbd", "fuseloop"}},
		{"auto", 6, 8, []string{"nbd", "fuseloop"}},
		{"auto", 6, 9, []string{"fuseloop"}},
		{"auto", 7, 3, []string{"fuseloop"}},
		{"fuseloop", 5, 4, []string{"fuseloop"}},
		{"nbd", 5, 19, nil},
		{"nbd", 6, 12, []string{"nbd"}},
		{"ublk", 6, 1, nil},
		{"ublk", 6, 7, nil},
		{"ublk", 6, 12, []string{"ublk"}},
	} {
		v := frontends.Version{Major: c.major, Minor: c.minor}
		got, err := frontends.Order(c.wanted, v)
		if !slices.Equal(got, c.want) || (c.want == nil) != errors.Is(err, holdfast.Unsupported) {
			t.Errorf("%s with Linux %v: %v, %v; wanted %v", c.wanted, v, got, err, c.want)
		}
	}
}

func TestKernel(t *testing.T) {
	if v, err := frontends.Kernel(); err != nil || v.Before(4, 0) {
		t.Errorf("the kernel is %v, %v", v, err)
	}
}

func newSet(dir string) (device.FrontEnd, error) {
	s, err := frontends.New(frontends.Config{Wanted: frontends.FuseLoop, RunDir: dir})
	if err != nil {
		return nil, err
	}
	return s, nil
}

func TestMain(m *testing.M) {
	devicetest.Child(newSet)
	os.Exit(m.Run())
}

// TestSet has the set do what one front end does: what it adds is only who is
// asked.
func TestSet(t *testing.T) {
	dir := t.TempDir()
	first, err := newSet(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := first.(*frontends.Set)
	if s.Name() != frontends.FuseLoop {
		t.Errorf("the name is %s", s.Name())
	}
	o := device.Options{Volume: holdfast.NewVolumeID(), SizeBytes: 8 << 20, LogicalBlk: holdfast.BlockSize}
	d, err := s.Open(t.Context(), o, devicetest.NewMemory(o.SizeBytes))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Abort()
	if _, err := newSet(dir); !errors.Is(err, holdfast.InUse) {
		t.Errorf("a second one in the same directory: %v", err)
	}
	if err := s.Close(); !errors.Is(err, holdfast.InUse) {
		t.Errorf("closed while a device is open: %v", err)
	}
	if vols, err := s.Adopt(t.Context()); err != nil || len(vols) != 0 {
		t.Errorf("adopted %v, %v", vols, err)
	}
	if err := s.Discard(o.Volume, true); !errors.Is(err, holdfast.NotFound) {
		t.Errorf("discarded what was not adopted: %v", err)
	}
	if vols, err := s.CleanOrphans(t.Context()); err != nil || len(vols) != 0 {
		t.Errorf("cleaned %v, %v", vols, err)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := frontends.New(frontends.Config{Wanted: "floppy", RunDir: dir}); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("an unknown name: %v", err)
	}
}
