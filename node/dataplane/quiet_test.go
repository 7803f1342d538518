package dataplane

import (
	"context"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// neverQuiet makes waiting for older reads take longer than any test.
func neverQuiet(c *Config) { c.Primary.ReadWindow = time.Hour }

// TestTheNextProcessOfANodeNeedNotWaitForItsOwnReads: again and again.
// died before it served.
func TestTheNextProcessOfANodeNeedNotWaitForItsOwnReads(t *testing.T) {
	c := newCluster(t, 3)
	c.tune = neverQuiet
	c.start()
	c.open(c.nodes[0], OpenOptions{})
	for range 2 {
		c.nodes[0].stop()
		c.nodes[0].start()
		h := c.open(c.nodes[0], OpenOptions{})
		if err := write(h, 0, make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	h := c.open(c.nodes[0], OpenOptions{})
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := c.nodes[0].quiet.Quiet(c.vol); e != 0 {
		t.Errorf("after the release the grant %d is still noted", e)
	}
}

// TestOthersReadsAreWaitedFor: another node, or a note of an older grant, or none.
func TestOthersReadsAreWaitedFor(t *testing.T) {
	for name, forget := range map[string]func(c *cluster){
		"another node": func(c *cluster) { c.nodes[0], c.nodes[1] = c.nodes[1], c.nodes[0] },
		"an old note":  func(c *cluster) { c.nodes[0].quiet.SetQuiet(c.vol, 1) },
		"no note":      func(c *cluster) { c.nodes[0].quiet.SetQuiet(c.vol, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 3)
			c.tune = neverQuiet
			c.start()
			h := c.open(c.nodes[0], OpenOptions{})
			if _, err := read(h, 0, 4096); err != nil { // the replicas answer it, so they are not quiet
				t.Fatal(err)
			}
			if err := write(h, 0, make([]byte, 4096)); err != nil {
				t.Fatal(err)
			}
			c.nodes[0].stop()
			forget(c)
			if c.nodes[0].plane == nil {
				c.nodes[0].start()
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			_, err := c.nodes[0].plane.Open(ctx, c.vol, OpenOptions{})
			wantKind(t, err, holdfast.Unavailable)
		})
	}
}
