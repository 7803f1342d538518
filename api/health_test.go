package api

import (
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// record has three replicas on a, b and c in the given states.
func record(states ...holdfast.ReplicaState) holdfast.Record {
	r := holdfast.Record{ID: "v", Name: "db", Phase: holdfast.PhaseReady, Spec: holdfast.Spec{Replicas: 3}, Created: time.Unix(0, 0)}
	for i, s := range states {
		n := holdfast.NodeID("abc"[i : i+1])
		r.Replicas = append(r.Replicas, holdfast.Replica{ID: holdfast.ReplicaID("r" + n), Node: n, Pool: holdfast.PoolID("p" + n), State: s})
	}
	return r
}

func aliveNodes(ids string) nodeIndex {
	idx := nodeIndex{}
	for _, id := range "abc" {
		idx[holdfast.NodeID(id)] = holdfast.Node{ID: holdfast.NodeID(id), Alive: strings.ContainsRune(ids, id)}
	}
	return idx
}

func TestVolumeHealth(t *testing.T) {
	in, stale, re := holdfast.InSync, holdfast.Stale, holdfast.Rebuilding
	attachedTo := func(n holdfast.NodeID, r holdfast.Record) holdfast.Record {
		r.Primary = &holdfast.Primary{Node: n, Kind: holdfast.ClientPrimary}
		return r
	}
	minInSync := func(n int, r holdfast.Record) holdfast.Record { r.Spec.MinInSync = n; return r }
	phase := func(p holdfast.Phase, r holdfast.Record) holdfast.Record { r.Phase = p; return r }
	waiting := func(ms int64) *holdfastv1.PrimaryStatus {
		return &holdfastv1.PrimaryStatus{WaitingFor: "replica on c", WaitingMillis: ms}
	}
	for name, tc := range map[string]struct {
		r     holdfast.Record
		alive string
		live  *holdfastv1.PrimaryStatus
		now   int64 // seconds after creation
		want  string
		says  []string // one piece per problem, in order
		bad   string   // nodes where the replica failed
		full  string   // nodes whose pool is full
		do    string   // in the first remedy
	}{
		"all well":               {r: record(in, in, in), alive: "abc", want: Healthy},
		"one node dead":          {r: record(in, in, in), alive: "ab", want: Degraded, says: []string{"node c"}},
		"one stale":              {r: record(in, in, stale), alive: "abc", want: Degraded, says: []string{"2 of 3 replicas in sync: the replica on node c is stale"}},
		"one stale and dead":     {r: record(in, in, stale), alive: "ab", want: Degraded, says: []string{"the node is dead"}},
		"one in repair":          {r: record(in, in, re), alive: "abc", live: &holdfastv1.PrimaryStatus{Peers: []*holdfastv1.PeerStatus{{ReplicaId: "rc", LeftBytes: 3 << 20}}}, want: Degraded, says: []string{"3 MiB left to copy"}},
		"never placed":           {r: record(in, in), alive: "abc", want: Degraded, says: []string{"1 could not be placed"}},
		"nobody reachable":       {r: record(in, stale, stale), alive: "bc", want: Unavailable, says: []string{"node a is dead"}},
		"waits":                  {r: record(in, in, in), alive: "abc", live: waiting(2500), want: Waiting, says: []string{"waiting for replica on c for 2.5 s"}},
		"waits a moment":         {r: record(in, in, in), alive: "abc", live: waiting(20), want: Healthy},
		"attached to a dead one": {r: attachedTo("c", record(in, in, in)), alive: "ab", want: Degraded, says: []string{"node c cannot be reached", "attached to node c, which is dead"}},
		"a disk failed":          {r: record(in, in, stale), alive: "abc", bad: "c", want: Degraded, says: []string{"the replica on node c is stale and failed: input/output error"}},
		"a disk failed unused":   {r: record(in, in, in), alive: "abc", bad: "c", want: Degraded, says: []string{"its replica on node c failed"}},
		"the last disk failed":   {r: record(in, stale, stale), alive: "a", bad: "a", want: Unavailable, says: []string{"the one on node a failed: input/output error"}},
		"nobody in sync":         {r: record(stale, stale, stale), alive: "abc", want: Unavailable, says: []string{"no replica is in sync"}},
		"waits for minInSync":    {r: minInSync(2, record(in, stale, stale)), alive: "a", live: waiting(700), want: Waiting, says: []string{"0.7 s"}, do: "start the daemon on b or c"},
		"waits for space":        {r: record(in, in, in), alive: "abc", full: "b", live: waiting(700), want: Waiting, says: []string{"0.7 s"}, do: "on node b is full"},
		"creating":               {r: phase(holdfast.PhaseCreating, record()), alive: "abc", now: 3, want: "creating"},
		"creating for long":      {r: phase(holdfast.PhaseCreating, record()), alive: "abc", now: 90, want: "creating", says: []string{"1m30s"}},
		"deleting":               {r: phase(holdfast.PhaseDeleting, record(stale)), alive: "", want: "deleting"},
	} {
		t.Run(name, func(t *testing.T) {
			nodes := aliveNodes(tc.alive)
			for id, n := range nodes {
				p := holdfast.Pool{ID: holdfast.PoolID("p" + id), State: holdfast.PoolOnline}
				if strings.Contains(tc.full, string(id)) {
					p.State = holdfast.PoolFull
				}
				if strings.Contains(tc.bad, string(id)) {
					p.Failed = []holdfast.FailedReplica{{ID: holdfast.ReplicaID("r" + id), Why: "input/output error"}}
				}
				n.Pools = []holdfast.Pool{p}
				nodes[id] = n
			}
			health, problems := volumeHealth(&tc.r, nodes, tc.live, time.Unix(tc.now, 0))
			if tc.do != "" && (len(problems) == 0 || !strings.Contains(problems[0].Remedy, tc.do)) {
				t.Errorf("problems %v, want to be told %q", problems, tc.do)
			}
			if health != tc.want {
				t.Errorf("health %q, want %q", health, tc.want)
			}
			if len(problems) < len(tc.says) || len(tc.says) == 0 && len(problems) > 0 {
				t.Fatalf("problems: %v, want %d", problems, len(tc.says))
			}
			for i, s := range tc.says {
				if !strings.Contains(problems[i].What, s) && !strings.Contains(problems[i].Subject, s) {
					t.Errorf("problem %d is %q, want %q in it", i, problems[i].What, s)
				}
			}
			for _, p := range problems {
				if p.Remedy == "" || p.Subject == "" {
					t.Errorf("no remedy or subject: %v", p)
				}
			}
		})
	}
}

func TestBytesAndQuote(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 1 << 30: "1 GiB", 3<<40 + 1: "3 TiB", 1<<62 + 1<<61: "6 EiB"} {
		if got := Bytes(n); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", n, got, want)
		}
	}
	for in, want := range map[string]string{"db-1": "db-1", "a b": "'a b'", "it's": `'it'\''s'`} {
		if got := quote(in); got != want {
			t.Errorf("quote(%q) = %q, want %q", in, got, want)
		}
	}
}
