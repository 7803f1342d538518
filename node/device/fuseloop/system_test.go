package fuseloop

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-storage/holdfast"
)

func TestRootHasOneOwner(t *testing.T) {
	dir := t.TempDir()
	a, err := New(Config{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Root: dir}); holdfast.KindOf(err) != holdfast.InUse {
		t.Errorf("a second front end in the same root: %v", err)
	}
	owner := a.root.Owner()
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := New(Config{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.root.Owner() != owner || len(owner) != 16 {
		t.Errorf("the successor's mark is %q, the predecessor's was %q", b.root.Owner(), owner)
	}
	if vol, ok := b.root.VolumeOf(b.fileName("v")); !ok || vol != "v" {
		t.Errorf("a file's name does not lead back to its volume: %q", vol)
	}
	for _, foreign := range []string{"holdfast-v-0000000000000000", "disk.img", "holdfast-"} {
		if vol, ok := b.root.VolumeOf(foreign); ok {
			t.Errorf("%s is taken for ours, volume %q", foreign, vol)
		}
	}
	if _, err := New(Config{}); holdfast.KindOf(err) != holdfast.Invalid {
		t.Errorf("no root: %v", err)
	}
}

// TestForeignFilesAreLeftAlone puts things into the root that are not ours.
func TestForeignFilesAreLeftAlone(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"file", "ABCDEF"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := New(Config{Root: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if vols, err := f.CleanOrphans(t.Context()); err != nil || len(vols) != 0 {
		t.Errorf("cleaned %v, %v", vols, err)
	}
	if names, _ := filepath.Glob(dir + "/*"); len(names) != 3 {
		t.Errorf("left are %v", names)
	}
}
