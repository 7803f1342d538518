package nodecsi

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/node/freeze"
)

// A frozen filesystem is thawed before it is unmounted: afterwards nobody could.
func TestFrozenFilesystemsAreUnmounted(t *testing.T) {
	for _, fsType := range []string{"xfs", "ext4"} {
		t.Run(fsType, func(t *testing.T) {
			var fr *freeze.Freezer
			f := newFixture(t, func(c *Config) {
				var err error
				if fr, err = freeze.New(freeze.Config{Dir: filepath.Join(c.StateDir, "frozen"), Log: slog.New(slog.DiscardHandler)}); err != nil {
					t.Fatal(err)
				}
				c.Thaw = fr.Release
			})
			id, st, tg := f.volume(fsType, 320*mib), f.staging("s"), f.target("t")
			for range 2 {
				f.ok(f.stage(id, st, mountCap()), f.publish(id, st, tg, mountCap(), false))
				frozen, err := fr.Freeze(t.Context(), freeze.Request{Volume: id, Device: f.vols.devs[id], Token: "x", Limit: time.Minute})
				if err != nil || !frozen {
					t.Fatalf("frozen %v, %v", frozen, err)
				}
				f.ok(f.unpublish(id, tg), f.unstage(id, st))
				f.wantMounts(f.dir, 0)
				f.wantAttached(id, false)
			}
		})
	}
}
