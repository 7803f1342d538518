package metrics_test

import (
	"context"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/memory"
	"github.com/holdfast-storage/holdfast/metrics"
	"github.com/holdfast-storage/holdfast/node/agent"
	"github.com/holdfast-storage/holdfast/replication"
)

var update = flag.Bool("update", false, "write docs/metrics.md")

// full is a node of which everything is to be said.
func full() agent.Measures {
	r := holdfast.Record{ID: "0123", Name: "db-1", Epoch: 7, Spec: holdfast.Spec{Replicas: 3, MinInSync: 2, SizeBytes: 1 << 30}, SizeBytes: 1 << 30}
	for i, s := range []holdfast.ReplicaState{holdfast.InSync, holdfast.InSync, holdfast.Rebuilding} {
		r.Replicas = append(r.Replicas, holdfast.Replica{ID: holdfast.ReplicaID(rune('a' + i)), Node: holdfast.NodeID("n" + string(rune('1'+i))), State: s})
	}
	r.SetScrub(holdfast.Scrub{ID: "s", Ended: time.Unix(1000, 0), Blocks: 10, Mismatches: 3, Healed: 2, Unhealed: 1})
	st := replication.PrimaryStatus{State: "serving", Record: r, Epoch: 7, SizeBytes: 1 << 30, InFlight: 4, FailedWrites: 1}
	st.Counters.WriteBytes, st.Counters.Expired, st.Counters.RepairBytes = 8192, 5, 1<<20
	st.Counters.WriteTime.Buckets[0], st.Counters.WriteTime.Buckets[2], st.Counters.WriteTime.Buckets[replication.LatencyBuckets-1] = 3, 1, 1
	st.Counters.WriteTime.Sum = 2 * time.Second
	for i, x := range r.Replicas {
		st.Peers = append(st.Peers, replication.PeerStatus{Replica: x, Connected: true, LeftBytes: 4096, Answers: time.Duration(i) * 10 * time.Millisecond, Slow: i == 1})
	}
	return agent.Measures{
		LeaseHeld: true, Volumes: []agent.MeasuredVolume{{Kind: holdfast.ClientPrimary, Status: st}},
		Pools: []holdfast.Pool{{ID: "p1", Device: "/dev/sdb", State: holdfast.PoolFull, TotalBytes: 100, FreeBytes: 5}},
		Waits: map[holdfast.VolumeID][]agent.Wait{"0123": {
			{What: "I/O", For: "a replica to answer; node n3: dial: refused", Long: 3 * time.Second},
			{What: "repair", For: "the next attempt: its pool is full", Long: time.Second, Node: "n3"},
			{What: "repair", For: "the next attempt: it could not grow", Long: 2 * time.Second, Node: "n3"},
		}},
		Names: map[holdfast.VolumeID]string{"0123": "db-1"},
	}
}

func exporter(t *testing.T) *metrics.Exporter {
	t.Helper()
	e := metrics.New(metrics.Config{Node: "n1", Release: "test", Measures: func() (agent.Measures, bool) { return full(), true }})
	s := e.Store(memory.New())
	defer func() { _ = s.Close() }()
	if _, err := s.Volume(t.Context(), "none"); !errors.Is(err, holdfast.NotFound) {
		t.Fatal(err)
	}
	return e
}

// TestEveryMetricHasARow compares what is exported with the table, and that with
// the document.
func TestEveryMetricHasARow(t *testing.T) {
	got, err := exporter(t).Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var want, have []string
	for _, m := range metrics.Metrics() {
		want = append(want, m.Name)
		ok := strings.HasPrefix(m.Name, "holdfast_") && m.Help != "" && strings.HasSuffix(m.Name, "_total") == (m.Kind == "counter")
		if !ok {
			t.Errorf("%s, a %s, is not named as is usual, or says nothing", m.Name, m.Kind)
		}
	}
	for _, f := range got {
		if strings.HasPrefix(f.GetName(), "holdfast_") {
			have = append(have, f.GetName())
		}
	}
	slices.Sort(want)
	if !slices.Equal(want, have) { // gathered in order
		t.Errorf("in the table: %v\nexported: %v", want, have)
	}
	problems, err := testutil.GatherAndLint(exporter(t).Gatherer())
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "holdfast_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	if err != nil {
		t.Error(err)
	}
	const page = "../docs/metrics.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	head, _, ok := strings.Cut(string(text), "| metric |")
	if !ok {
		t.Fatal("the page has no table")
	}
	if made := head + metrics.Markdown(); made != string(text) {
		if *update {
			if err := os.WriteFile(page, []byte(made), 0o644); err != nil {
				t.Fatal(err)
			}
			return
		}
		t.Error("docs/metrics.md is not up to date: go test ./metrics -update")
	}
}

func TestValues(t *testing.T) {
	e := exporter(t)
	want := `
# HELP holdfast_volume_waiting_seconds For how long something of the volume has waited on this node: I/O, attach, detach, repair, resize or scrub; absent when nothing waits.
# TYPE holdfast_volume_waiting_seconds gauge
holdfast_volume_waiting_seconds{node="",reason="a replica to answer",volume="db-1",what="I/O"} 3
holdfast_volume_waiting_seconds{node="n3",reason="the next attempt",volume="db-1",what="repair"} 2
# HELP holdfast_replica_slow 1 if it has been much slower than the others for a while.
# TYPE holdfast_replica_slow gauge
holdfast_replica_slow{node="n1",volume="db-1"} 0
holdfast_replica_slow{node="n2",volume="db-1"} 1
holdfast_replica_slow{node="n3",volume="db-1"} 0
# HELP holdfast_volume_scrub_end_timestamp_seconds When the newest scrub ended; absent while it is to be done, and if there was none.
# TYPE holdfast_volume_scrub_end_timestamp_seconds gauge
holdfast_volume_scrub_end_timestamp_seconds{volume="db-1"} 1000
`
	if err := testutil.GatherAndCompare(e.Gatherer(), strings.NewReader(want), "holdfast_volume_waiting_seconds", "holdfast_replica_slow", "holdfast_volume_scrub_end_timestamp_seconds"); err != nil {
		t.Error(err)
	}
	fs, err := e.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fs {
		if f.GetName() != "holdfast_volume_io_seconds" {
			continue
		}
		for _, m := range f.GetMetric() {
			h := m.GetHistogram()
			if m.GetLabel()[0].GetValue() == "write" && (h.GetSampleCount() != 5 || h.GetSampleSum() != 2 || h.GetBucket()[1].GetCumulativeCount() != 3 || h.GetBucket()[2].GetCumulativeCount() != 4) {
				t.Errorf("writes: %v", h)
			}
		}
	}
}

func TestANodeThatIsNotThereYetIsScraped(t *testing.T) {
	e := metrics.New(metrics.Config{Node: "n1", Measures: func() (agent.Measures, bool) { return agent.Measures{}, false }})
	if n, err := testutil.GatherAndCount(e.Gatherer(), "holdfast_build_info"); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
}

func TestMeasuredStoreIsTheStore(t *testing.T) {
	db := memory.New()
	s := exporter(t).Store(db)
	if c, err := s.Cluster(context.Background()); err != nil || c == "" {
		t.Errorf("%q, %v", c, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
