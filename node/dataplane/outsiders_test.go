package dataplane

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// others are all nodes that live but this one.
func (nd *node) others(context.Context) (ids []holdfast.NodeID, err error) {
	nd.c.mu.Lock()
	defer nd.c.mu.Unlock()
	for id, alive := range nd.c.alive {
		if alive && id != nd.id {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// rolledBack makes a cluster whose record is one of before the replica on n2 was
// made, which alone has what was written last.
func rolledBack(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t, 3).start()
	first := c.record()
	h := c.open(c.nodes[0], OpenOptions{})
	if err := write(h, 0, make([]byte, 4096)); err != nil {
		t.Fatal(err)
	}
	old := c.record()
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.nodes[0].stop()
	c.nodes[1].stop()
	h = c.open(c.nodes[2], OpenOptions{})
	if err := write(h, 0, bytes.Repeat([]byte{7}, 4096)); err != nil {
		t.Fatal(err)
	}
	if err := h.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	now := c.record()
	old.Replicas, old.Primary, old.Revision = first.Replicas[:2], nil, now.Revision
	if _, err := c.store.SwapVolume(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	c.nodes[0].start()
	c.nodes[1].start()
	return c
}

func TestATakeOverAsksNodesThatTheRecordDoesNotName(t *testing.T) {
	for name, by := range map[string]int{"another node": 0, "this node": 2} {
		t.Run(name, func(t *testing.T) {
			c := rolledBack(t)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			_, err := c.nodes[by].plane.Open(ctx, c.vol, OpenOptions{})
			if !errors.Is(err, replication.ErrRolledBack) {
				t.Fatalf("got %v, want %v", err, replication.ErrRolledBack)
			}
			wantKind(t, err, holdfast.Corrupt)
		})
	}
}

// A node that lives, but does not answer, delays a take-over a little; one that
// answers nonsense, or cannot be asked, does not.
func TestATakeOverDoesNotNeedTheOthers(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	odd, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := odd.Accept()
			if err != nil {
				return
			}
			_, _ = nc.Write(bytes.Repeat([]byte("nonsense"), 100))
			_ = nc.Close()
		}
	}()
	defer func() { _ = odd.Close(); <-done }()
	for name, others := range map[string]func(c *cluster) error{
		"silent":         func(c *cluster) error { c.addrs["x"], c.alive["x"] = silent.Addr().String(), true; return nil },
		"nonsense":       func(c *cluster) error { c.addrs["x"], c.alive["x"] = odd.Addr().String(), true; return nil },
		"unknown":        func(c *cluster) error { c.alive["x"] = true; return nil },
		"not told which": func(*cluster) error { return errors.New("the store does not answer") },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 2)
			err := others(c)
			c.tune = func(cfg *Config) {
				if err != nil {
					cfg.Others = func(context.Context) ([]holdfast.NodeID, error) { return nil, err }
				}
			}
			h := c.start().open(c.nodes[0], OpenOptions{})
			if err := write(h, 0, make([]byte, 4096)); err != nil {
				t.Fatal(err)
			}
		})
	}
}
