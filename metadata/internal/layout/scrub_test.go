package layout_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// The bytes of version 2: those of version 1 and the scrub.
func TestGoldenScrub(t *testing.T) {
	r := record()
	r.SetScrub(holdfast.Scrub{ID: "s1", Asked: time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC), Ended: time.Date(2026, 3, 3, 0, 0, 0, 0, time.UTC), Blocks: 16, Mismatches: 2, Healed: 1})
	got, err := layout.EncodeRecord(r)
	const end = `"replicas":[{"id":"r1","node":"n1","pool":"p1","state":"in-sync","since":1}],` +
		`"scrub":{"id":"s1","asked":"2026-03-02T00:00:00Z","ended":"2026-03-03T00:00:00Z","blocks":16,"mismatches":2,"healed":1}}`
	if err != nil || !strings.HasPrefix(string(got), `{"version":2,"id":"v1",`) || !strings.HasSuffix(string(got), end) {
		t.Fatalf("%v\n%s", err, got)
	}
	back, err := layout.DecodeRecord("volumes/v1", got, 7)
	r.Revision = 7
	if err != nil || !reflect.DeepEqual(back, r) {
		t.Fatalf("%v\n%+v\n%+v", err, back, r)
	}
	old := strings.Replace(string(got), `"version":2`, `"version":1`, 1)
	if _, err := layout.DecodeRecord("volumes/v1", []byte(old), 7); err == nil {
		t.Error("a scrub in a record of version 1 is read: an earlier release would refuse it")
	}
	if c := back.Clone(); c.Scrub == back.Scrub {
		t.Error("a clone shares the scrub")
	}
}
