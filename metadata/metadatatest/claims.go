package metadatatest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
)

func testClaims(t *testing.T, h *Harness) {
	s := h.Open(t)
	owner := func(name, want string) {
		t.Helper()
		if got, err := s.Claim(t.Context(), name); err != nil || got != want {
			t.Errorf("%q is claimed by %q, %v; want %q", name, got, err, want)
		}
	}
	swap := func(name, from, to, want string, kind holdfast.Kind) {
		t.Helper()
		got, err := s.SwapClaim(t.Context(), name, from, to)
		if got != want || holdfast.KindOf(err) != kind {
			t.Errorf("%q from %q to %q: %q, %v; want %q, kind %v", name, from, to, got, err, want, kind)
		}
	}
	none := holdfast.KindOf(nil)
	owner("a/b ü", "")
	swap("a/b ü", "", "x", "x", none)
	swap("a/b ü", "", "y", "x", holdfast.Busy)
	swap("a/b ü", "y", "z", "x", holdfast.Busy)
	swap("b", "y", "z", "", holdfast.Busy)
	owner("a/b ü", "x")
	owner("b", "")
	swap("a/b ü", "x", "y", "y", none)
	swap("a/b ü", "y", "", "", none)
	swap("a/b ü", "", "", "", none)
	owner("a/b ü", "")
	swap("", "", "x", "", holdfast.Invalid)
}

// testClaimRace lets many clients claim one name: one gets it, all learn who.
func testClaimRace(t *testing.T, h *Harness) {
	var wg sync.WaitGroup
	var won atomic.Int32
	got := make([]string, 8)
	clients := make([]metadata.Store, len(got))
	for i := range clients {
		clients[i] = h.Open(t)
	}
	for i, s := range clients {
		wg.Go(func() {
			var err error
			got[i], err = s.SwapClaim(t.Context(), "name", "", fmt.Sprint("client ", i))
			switch {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, holdfast.Busy):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, x := range got {
		if x != got[0] || x == "" {
			t.Errorf("the clients were told %q", got)
			break
		}
	}
	if won.Load() != 1 {
		t.Errorf("%d clients won", won.Load())
	}
}
