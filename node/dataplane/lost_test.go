package dataplane

import (
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// TestALostNodeIsTriedByOneAtATime: and not again at once; the others are told what
// the last attempt came to.
func TestALostNodeIsTriedByOneAtATime(t *testing.T) {
	p := &Plane{lost: map[holdfast.NodeID]*lost{}}
	tries := func(when string, kind holdfast.Kind) {
		t.Helper()
		err := p.unreachable("n")
		if (err != nil) != (kind != holdfast.Other) || err != nil && holdfast.KindOf(err) != kind {
			t.Errorf("%s: %v, want kind %v", when, err, kind)
		}
	}
	later := func() { p.lost["n"].until = time.Now().Add(-time.Second) }
	tries("before anything is known", holdfast.Other)
	tries("a second one before anything is known", holdfast.Other)
	p.reached("n", syscall.ECONNREFUSED)
	tries("just refused", holdfast.NotFound)
	later()
	tries("refused some time ago", holdfast.Other)
	tries("while that one tries", holdfast.NotFound)
	p.reached("n", syscall.EHOSTUNREACH)
	tries("no route just now", holdfast.Unavailable)
	later()
	tries("no route some time ago", holdfast.Other)
	p.reached("n", nil)
	tries("reached", holdfast.Other)
	tries("reached, by a second one", holdfast.Other)
	if err := p.unreachable("m"); err != nil {
		t.Errorf("another node: %v", err)
	}
}
