package memory_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	"github.com/holdfast-storage/holdfast/metadata/metadatatest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestContract(t *testing.T) {
	metadatatest.Run(t, func(t *testing.T) *metadatatest.Harness {
		first := memory.New()
		var mu sync.Mutex
		var clients []*memory.Store
		var skipped []string
		h := &metadatatest.Harness{TTL: 300 * time.Millisecond, CallTimeout: metadata.DefaultCallTimeout}
		h.Open = func(t *testing.T) metadata.Store {
			s := first.Client()
			s.OnCorrupt(func(key string, _ error) {
				mu.Lock()
				defer mu.Unlock()
				skipped = append(skipped, key)
			})
			mu.Lock()
			defer mu.Unlock()
			clients = append(clients, s)
			t.Cleanup(func() { _ = s.Close() })
			return s
		}
		h.Outage = func(*testing.T) func() {
			set := func(down bool) {
				mu.Lock()
				defer mu.Unlock()
				for _, s := range clients {
					s.SetOutage(down)
				}
			}
			set(true)
			return func() { set(false) }
		}
		h.Put = func(_ *testing.T, key, value string) { first.Put(key, []byte(value)) }
		h.Skipped = func() []string {
			mu.Lock()
			defer mu.Unlock()
			return append([]string(nil), skipped...)
		}
		h.Remember = func(*testing.T) func() {
			snap := first.Snapshot()
			return func() { first.Restore(snap) }
		}
		return h
	})
}

func TestAnswerLost(t *testing.T) {
	s := memory.New()
	defer s.Close()
	r, err := s.CreateVolume(t.Context(), metadatatest.Record("db-1"))
	if err != nil {
		t.Fatal(err)
	}
	s.Inject(func(op memory.Op) memory.Fault {
		if op.Name == "SwapVolume" && op.Subject == string(r.ID) {
			return memory.Fault{Lose: memory.Lost()}
		}
		return memory.Fault{}
	})
	next := r.Clone()
	next.Epoch++
	if _, err = s.SwapVolume(t.Context(), next); holdfast.KindOf(err) != holdfast.Unavailable {
		t.Fatalf("the swap gave %v", err)
	}
	s.Inject(nil)
	now, err := s.Volume(t.Context(), "db-1")
	if err != nil || now.Epoch != next.Epoch {
		t.Fatalf("epoch %d, %v: the swap must have happened", now.Epoch, err)
	}
	if got, err := s.SwapVolume(t.Context(), next); holdfast.KindOf(err) != holdfast.Busy || got.Epoch != next.Epoch {
		t.Fatalf("trying it again gave %v and epoch %d", err, got.Epoch)
	}
}

func TestRefusedIsNotDone(t *testing.T) {
	s := memory.New()
	defer s.Close()
	s.Inject(func(memory.Op) memory.Fault {
		return memory.Fault{Refuse: holdfast.E("", holdfast.Unavailable, "no")}
	})
	if _, err := s.CreateVolume(t.Context(), metadatatest.Record("db-1")); holdfast.KindOf(err) != holdfast.Unavailable {
		t.Fatalf("the creation gave %v", err)
	}
	s.Inject(nil)
	if _, err := s.Volume(t.Context(), "db-1"); holdfast.KindOf(err) != holdfast.NotFound {
		t.Fatalf("reading gave %v", err)
	}
}

// One client's partition, its lease and a late answer, in virtual time.
func TestPartitionInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := memory.New()
		cut := s.Client()
		defer s.Close()
		defer cut.Close()
		l, err := cut.Join(t.Context(), "n1", "i1", 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		cut.SetOutage(true)
		began := time.Now()
		<-l.Lost()
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("lost after %v", took)
		}
		began = time.Now()
		for alive := true; alive; {
			if alive, err = s.Alive(t.Context(), "n1"); err != nil {
				t.Fatal(err)
			}
			<-time.After(10 * time.Millisecond)
		}
		if took := time.Since(began); took > time.Second {
			t.Fatalf("the node was alive for another %v", took)
		}
		s.Inject(func(memory.Op) memory.Fault { return memory.Fault{Delay: time.Second, Late: time.Second} })
		began = time.Now()
		if _, err = s.Volumes(t.Context()); err != nil || time.Since(began) != 2*time.Second {
			t.Fatalf("%v after %v, want no error after 2 s", err, time.Since(began))
		}
	})
}
