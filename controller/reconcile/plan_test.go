package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/placement"
)

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// view is written as text: nodes as "n1 n2:dead@20 n3:draining n4:cordoned
// n5:pool-failed@20" (minutes ago), and volumes as "name replicas n1:S n2:s n3:n!"
// with S in sync, s stale, r rebuilding, n new, and ! leaving.
func view(nodes string, volumes ...string) *View {
	v := &View{Now: t0, NodeGone: map[holdfast.NodeID]time.Time{}, PoolGone: map[holdfast.PoolID]time.Time{},
		Refused: map[holdfast.NodeID]time.Time{}, Policy: placement.DefaultPolicy(), Limits: Limits{}.withDefaults()}
	for _, f := range strings.Fields(nodes) {
		id, attrs, _ := strings.Cut(f, ":")
		how, ago, _ := strings.Cut(attrs, "@")
		var minutes int
		_, _ = fmt.Sscan(ago, &minutes)
		since := t0.Add(-time.Duration(minutes) * time.Minute)
		pool := holdfast.Pool{ID: holdfast.PoolID("p-" + id), State: holdfast.PoolOnline, TotalBytes: 100 << 30, FreeBytes: 100 << 30}
		n := holdfast.Node{ID: holdfast.NodeID(id), Alive: how != "dead", Draining: how == "draining", Cordoned: how == "draining" || how == "cordoned"}
		switch how {
		case "dead":
			v.NodeGone[n.ID] = since
		case "pool-failed":
			pool.State = holdfast.PoolFailed
			v.PoolGone[pool.ID] = since
		}
		n.Pools = []holdfast.Pool{pool}
		if how == "poolless" {
			n.Pools = nil
		}
		v.Nodes = append(v.Nodes, n)
	}
	states := map[byte]holdfast.ReplicaState{'S': holdfast.InSync, 's': holdfast.Stale, 'r': holdfast.Rebuilding, 'n': holdfast.New}
	for _, text := range volumes {
		fs := strings.Fields(text)
		r := holdfast.Record{ID: holdfast.VolumeID(fs[0]), Name: fs[0], Phase: holdfast.PhaseReady, SizeBytes: 1 << 30, Created: t0.Add(-time.Hour)}
		_, _ = fmt.Sscan(fs[1], &r.Spec.Replicas)
		r.Spec = holdfast.Spec{SizeBytes: 1 << 30, Replicas: r.Spec.Replicas}.WithDefaults()
		for _, f := range fs[2:] {
			id, s, _ := strings.Cut(f, ":")
			r.Replicas = append(r.Replicas, holdfast.Replica{ID: holdfast.ReplicaID(fs[0] + "@" + id), Node: holdfast.NodeID(id),
				Pool: holdfast.PoolID("p-" + id), State: states[s[0]], Leaving: strings.HasSuffix(s, "!")})
		}
		v.Volumes = append(v.Volumes, r)
	}
	return v
}

func showAdds(adds []Addition) string {
	var out []string
	for _, a := range adds {
		for _, c := range a.Choices {
			out = append(out, fmt.Sprintf("%s@%s", a.Record.Name, c.Node))
		}
	}
	return strings.Join(out, " ")
}

func TestPlanReplace(t *testing.T) {
	for name, c := range map[string]struct {
		v        *View
		want     string
		problems int
	}{
		"all is well":                          {view("n1 n2 n3 n4", "v 3 n1:S n2:S n3:S"), "", 0},
		"gone for a moment":                    {view("n1 n2 n3:dead@5 n4", "v 3 n1:S n2:S n3:s"), "", 0},
		"gone for long":                        {view("n1 n2 n3:dead@20 n4", "v 3 n1:S n2:S n3:s"), "v@n4", 0},
		"gone for exactly the limit":           {view("n1 n2 n3:dead@10 n4", "v 3 n1:S n2:S n3:s"), "v@n4", 0},
		"gone while nobody served it":          {view("n1 n2 n3:dead@20 n4", "v 3 n1:S n2:S n3:S"), "v@n4", 0},
		"forgotten":                            {view("n1 n2 n4", "v 3 n1:S n2:S n3:s"), "v@n4", 0},
		"pool failed for long":                 {view("n1 n2 n3:pool-failed@20 n4", "v 3 n1:S n2:S n3:s"), "v@n4", 0},
		"pool failed just now":                 {view("n1 n2 n3:pool-failed@1 n4", "v 3 n1:S n2:S n3:s"), "", 0},
		"more replicas wanted":                 {view("n1 n2 n3 n4", "v 4 n1:S n2:S n3:S"), "v@n4", 0},
		"its successor is being built":         {view("n1 n2 n3:dead@20 n4 n5", "v 3 n1:S n2:S n3:s n4:n"), "", 0},
		"its successor's node died too":        {view("n1 n2 n3:dead@40 n4:dead@20 n5", "v 3 n1:S n2:S n3:s n4:n"), "v@n5", 0},
		"one leaving is replaced":              {view("n1 n2 n3 n4", "v 3 n1:S n2:S n3:S!"), "v@n4", 0},
		"nobody to build from":                 {view("n1:dead@20 n2 n3 n4", "v 1 n1:S"), "", 0},
		"nobody in sync":                       {view("n1:dead@20 n2 n3 n4", "v 2 n1:s n2:s"), "", 0},
		"nowhere to go":                        {view("n1 n2 n3:dead@20", "v 3 n1:S n2:S n3:s"), "", 1},
		"two of six at once is a third":        {view("n1 n2 n3 n4 n5:dead@20 n6:dead@20", "v 3 n1:S n2:S n5:s"), "v@n3", 0},
		"two of five at once: the network":     {view("n1 n2 n3 n4:dead@20 n5:dead@20", "v 3 n1:S n2:S n5:s"), "", 0},
		"two of five one after another":        {view("n1 n2 n3 n4:dead@40 n5:dead@20", "v 3 n1:S n2:S n5:s"), "v@n3", 0},
		"storageless nodes do not count":       {view("n1 n2 n3 n4:dead@20 n5:dead@20 s1:poolless s2:poolless", "v 3 n1:S n2:S n5:s"), "", 0},
		"one of two is not a network event":    {view("n1 n2:dead@20 n3:cordoned", "v 2 n1:S n2:s"), "", 1},
		"part of what is needed":               {view("n1 n2:dead@40 n3:dead@20 n4", "v 3 n1:S n2:s n3:s"), "v@n4", 1},
		"the one in most danger first":         {view("n1 n2 n3:dead@20 n4", "a 3 n1:S n2:S n3:s", "b 2 n1:S n3:s"), "b@n4 a@n4", 0},
		"caps per node":                        {view("n1 n2 n3:dead@20 n4", "a 3 n1:S n2:S n3:s", "b 3 n1:S n2:S n3:s", "c 3 n1:S n2:S n3:s"), "a@n4 b@n4", 0},
		"what is being repaired counts":        {view("n1 n2 n3:dead@20 n4", "a 3 n1:S n2:S n4:r", "b 3 n1:S n2:S n4:s", "c 3 n1:S n2:S n3:s"), "", 0},
		"no volume that is not ready":          {view("n1 n2 n3"), "", 0},
		"replicas that only wait do not count": {view("n1 n2 n3:dead@20 n4 n5:dead@2", "a 3 n1:S n2:S n5:s", "b 3 n1:S n2:S n5:s", "c 3 n1:S n2:S n3:s"), "c@n4", 0},
	} {
		t.Run(name, func(t *testing.T) {
			adds, problems := planReplace(c.v)
			if got := showAdds(adds); got != c.want || len(problems) != c.problems {
				t.Errorf("adds %q, problems %v; want %q, %d", got, problems, c.want, c.problems)
			}
		})
	}
}

func TestPlanReplaceCapsTheCluster(t *testing.T) {
	var nodes, vols []string
	for i := range 20 {
		nodes = append(nodes, fmt.Sprintf("a%02d", i))
		vols = append(vols, fmt.Sprintf("v%02d 2 a%02d:S zz:s", i, i))
	}
	adds, problems := planReplace(view(strings.Join(nodes, " "), vols...))
	if len(adds) != 8 || len(problems) != 0 {
		t.Errorf("%d additions, problems %v; want 8, none", len(adds), problems)
	}
}

func TestPlanReplaceSkipsPhasesAndRefusals(t *testing.T) {
	v := view("n1 n2 n3 n4", "v 3 n1:S n2:S", "w 3 n1:S n2:S")
	v.Volumes[0].Phase = holdfast.PhaseDeleting
	v.Refused["n3"] = t0.Add(time.Minute)
	v.Refused["n4"] = t0 // over
	adds, _ := planReplace(v)
	if got := showAdds(adds); got != "w@n4" {
		t.Errorf("adds %q", got)
	}
}

func TestPlanDrain(t *testing.T) {
	for name, c := range map[string]struct {
		v        *View
		want     string
		problems int
	}{
		"moved":                      {view("n1:draining n2 n3 n4", "v 3 n1:S n2:S n3:S"), "v@n4", 0},
		"being moved":                {view("n1:draining n2 n3 n4 n5", "v 3 n1:S n2:S n3:S n4:r"), "", 0},
		"nowhere to go":              {view("n1:draining n2 n3", "v 3 n1:S n2:S n3:S"), "", 1},
		"the only copy can be moved": {view("n1:draining n2", "v 1 n1:S"), "v@n2", 0},
		"not to a draining one":      {view("n1:draining n2:draining n3", "v 1 n1:S"), "v@n3", 0},
		"nothing drains":             {view("n1 n2 n3 n4", "v 3 n1:S n2:S n3:S"), "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			adds, problems := planDrain(c.v)
			if got := showAdds(adds); got != c.want || len(problems) != c.problems {
				t.Errorf("adds %q, problems %v; want %q, %d", got, problems, c.want, c.problems)
			}
		})
	}
}

func TestPlanSurplus(t *testing.T) {
	attached := func(v *View, n holdfast.NodeID) *View {
		v.Volumes[0].Primary = &holdfast.Primary{Node: n, Kind: holdfast.ClientPrimary}
		return v
	}
	for name, c := range map[string]struct {
		v             *View
		retire, leave string
	}{
		"as many as wanted":                     {view("n1 n2 n3", "v 3 n1:S n2:S n3:S"), "", ""},
		"the stale one is kept while it counts": {view("n1 n2 n3 n4", "v 3 n1:S n2:S n3:s n4:r"), "", ""},
		"the replacement won":                   {view("n1 n2 n3:dead@20 n4", "v 3 n1:S n2:S n3:s n4:S"), "v@n3", ""},
		"the old one won":                       {view("n1 n2 n3 n4", "v 3 n1:S n2:S n3:S n4:r"), "v@n4", ""},
		"both won":                              {view("n1 n2 n3 n4", "v 3 n1:S n2:S n3:S n4:S"), "", "v@n1"},
		"both won, the first is attached":       {attached(view("n1 n2 n3 n4", "v 3 n1:S n2:S n3:S n4:S"), "n1"), "", "v@n2"},
		"both won, one is cordoned":             {view("n1 n2 n3:cordoned n4", "v 3 n1:S n2:S n3:S n4:S"), "", "v@n3"},
		"drained":                               {view("n1:draining n2 n3 n4", "v 3 n1:S n2:S n3:S n4:S"), "", "v@n1"},
		"still draining":                        {view("n1:draining n2 n3 n4", "v 3 n1:S n2:S n3:S n4:r"), "", ""},
		"left":                                  {view("n1:draining n2 n3 n4", "v 3 n1:s! n2:S n3:S n4:S"), "v@n1", ""},
		"leaving, the primary's turn":           {view("n1:draining n2 n3 n4", "v 3 n1:S! n2:S n3:S n4:S"), "", ""},
		"left, with too few others":             {view("n1 n2 n3:dead@1", "v 3 n1:s! n2:S n3:s"), "v@n1", ""},
		"one in sync on a dead node does not count as kept":     {view("n1 n2 n3:dead@1 n4", "v 3 n1:S n2:S n3:S n4:r"), "", ""},
		"one in sync on a dead node goes when there are enough": {view("n1 n2 n3:dead@1 n4", "v 3 n1:S n2:S n3:S n4:S"), "", "v@n3"},
		"a failed pool does not count":                          {view("n1 n2 n3:pool-failed@1 n4", "v 3 n1:S n2:S n3:S n4:r"), "", ""},
		"two too many: one at a time":                           {view("n1 n2 n3", "v 1 n1:S n2:S n3:S"), "", "v@n1"},
		"fewer wanted now, one is stale":                        {view("n1 n2 n3", "v 2 n1:S n2:S n3:s"), "v@n3", ""},
		"on a forgotten node":                                   {view("n1 n2 n4", "v 3 n1:S n2:S n3:s n4:S"), "v@n3", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var retire, leave []string
			for _, rm := range planSurplus(c.v) {
				for _, id := range rm.Retire {
					retire = append(retire, string(id))
				}
				for _, id := range rm.Leave {
					leave = append(leave, string(id))
				}
			}
			if r, l := strings.Join(retire, " "), strings.Join(leave, " "); r != c.retire || l != c.leave {
				t.Errorf("retires %q, lets %q leave; want %q, %q", r, l, c.retire, c.leave)
			}
		})
	}
}

func TestSurplusGivesUpTheWorstSpread(t *testing.T) {
	v := view("n1 n2 n3 n4", "v 3 n1:S n2:S n3:S n4:S")
	for i, z := range []string{"z1", "z2", "z3", "z3"} {
		v.Nodes[i].Domain.Zone = z
	}
	v.Nodes[2].Pools[0].FreeBytes = 200 << 30
	rms := planSurplus(v)
	if len(rms) != 1 || len(rms[0].Leave) != 1 || rms[0].Leave[0] != "v@n4" {
		t.Errorf("got %+v", rms)
	}
}

func TestPlanFinishMakePurge(t *testing.T) {
	v := view("n1 n2:dead@1 n3", "ready 2 n1:n n2:n n3:n!", "fresh 1 n1:n", "old 1 n1:n", "going 1 n1:S")
	v.Volumes[1].Phase, v.Volumes[1].Created = holdfast.PhaseCreating, t0.Add(-time.Minute)
	v.Volumes[2].Phase = holdfast.PhaseCreating
	v.Volumes[3].Phase = holdfast.PhaseDeleting
	var finish []string
	for _, r := range planFinish(v) {
		finish = append(finish, r.Name)
	}
	if got := strings.Join(finish, " "); got != "old going" {
		t.Errorf("finishes %q", got)
	}
	v.Made = map[holdfast.ReplicaID]bool{"ready@n1": true}
	if ms := planMake(v); len(ms) != 0 {
		t.Errorf("makes again %+v", ms)
	}
	v.Made = nil
	if ms := planMake(v); len(ms) != 1 || ms[0].Replica.ID != "ready@n1" {
		t.Errorf("makes %+v", ms)
	}
	for _, n := range []holdfast.NodeID{"n3", "n2", "n9", "n1", "n3"} {
		v.Tombstones = append(v.Tombstones, holdfast.Tombstone{Node: n})
	}
	if got := planPurge(v); !slices.Equal(got, []holdfast.NodeID{"n1", "n3"}) {
		t.Errorf("purges %v", got)
	}
}

func TestPlanGrants(t *testing.T) {
	for nodes, want := range map[string]int{
		"n1 n2": 0, "n1:dead@5 n2": 0, "n1:dead@20 n2": 1, "n2": 1, "n1:pool-failed@20 n2": 0,
		"n1:dead@20 n2:dead@20 n3": 0, // the network
	} {
		v := view(nodes, "v 1 n2:S", "w 1 n2:S")
		v.Volumes[0].Primary = &holdfast.Primary{Node: "n1", Kind: holdfast.ClientPrimary}
		if got := planGrants(v); len(got) != want {
			t.Errorf("%s: clears %v, want %d", nodes, got, want)
		}
	}
}

func TestPlanVerify(t *testing.T) {
	v := view("n1 n2 n3", "v 3 n1:S n2:s n3:n")
	v.Tombstones = []holdfast.Tombstone{{Replica: "buried"}}
	found := []Found{{"n1", "v", "v@n1"}, {"n1", "x", "orphan"}, {"n1", "y", "buried"}}
	ps := planVerify(v, found, map[holdfast.NodeID]bool{"n1": true, "n2": true, "n3": true})
	if len(ps) != 2 || !strings.Contains(ps[0].String(), "orphan") || !strings.Contains(ps[1].String(), "v@n2") {
		t.Errorf("got %v", ps)
	}
	if ps := planVerify(v, found[:1], map[holdfast.NodeID]bool{"n1": true}); len(ps) != 0 {
		t.Errorf("nodes that did not answer: %v", ps)
	}
}

func TestPoolsAreGoneSince(t *testing.T) {
	v := view("n1 n2:dead@0 n3:pool-failed@0", "v 3 n1:S n2:s n3:s")
	v.Volumes[0].Replicas[0].Pool = "taken out"
	r := &Reconciler{}
	r.rememberPools(v.Nodes, v.Volumes, t0)
	got := r.rememberPools(v.Nodes, v.Volumes, t0.Add(time.Minute))
	if len(got) != 2 || !got["p-n3"].Equal(t0) || !got["taken out"].Equal(t0) {
		t.Errorf("got %v", got)
	}
	v.Nodes[2].Pools[0].FailedSince = t0.Add(-time.Hour) // the node knows better
	v.Nodes[0].Alive = false
	if got = r.rememberPools(v.Nodes, v.Volumes, t0.Add(time.Minute)); !got["p-n3"].Equal(t0.Add(-time.Hour)) || len(got) != 2 {
		t.Errorf("got %v", got)
	}
	v.Nodes[2].Pools[0].State, v.Volumes = holdfast.PoolOnline, nil
	if got = r.rememberPools(v.Nodes, v.Volumes, t0.Add(2*time.Minute)); len(got) != 0 {
		t.Errorf("all is well again, but %v", got)
	}
}

func TestPlanMakeRoom(t *testing.T) {
	swapped := func(nodes, volume string) *View { // n3 has another disk, for long
		v := view(nodes, volume)
		x := v.Volumes[0].On("n3")
		x.Pool = "old"
		v.PoolGone["old"] = t0.Add(-20 * time.Minute)
		return v
	}
	for name, c := range map[string]struct {
		v    *View
		want string
	}{
		"nowhere else":            {swapped("n1 n2 n3", "v 3 n1:S n2:S n3:s"), "retire v@n3"},
		"not dropped yet":         {swapped("n1 n2 n3", "v 3 n1:S n2:S n3:S"), "leave v@n3"},
		"elsewhere":               {swapped("n1 n2 n3 n4", "v 3 n1:S n2:S n3:s"), ""},
		"the last good one":       {swapped("n1:dead@20 n2 n3", "v 3 n1:S n2:s n3:S"), ""},
		"leaving already":         {swapped("n1 n2 n3", "v 3 n1:S n2:S n3:S!"), ""},
		"its only disk is broken": {view("n1 n2 n3:pool-failed@20", "v 3 n1:S n2:S n3:s"), ""},
		"its node is dead":        {view("n1 n2 n3:dead@20", "v 3 n1:S n2:S n3:s"), ""},
		"all is well":             {view("n1 n2 n3", "v 3 n1:S n2:S n3:S"), ""},
	} {
		got := ""
		for _, rm := range planMakeRoom(c.v) {
			for _, id := range rm.Retire {
				got += "retire " + string(id)
			}
			for _, id := range rm.Leave {
				got += "leave " + string(id)
			}
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
