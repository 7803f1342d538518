package reconcile_test

import (
	"context"
	"slices"
	"testing"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/controller/internal/fakes"
	"github.com/holdfast-storage/holdfast/controller/lifecycle"
	"github.com/holdfast-storage/holdfast/controller/reconcile"
	"github.com/holdfast-storage/holdfast/controller/schedule"
)

type scheduled struct {
	passes   int
	problems []schedule.Problem
}

func (s *scheduled) Pass(context.Context) ([]schedule.Problem, error) {
	s.passes++
	return s.problems, holdfast.E("carry out", holdfast.Unavailable, "some were not seen")
}

// Each pass carries the schedules out, and shows what they could not do.
func TestAPassCarriesOutSchedules(t *testing.T) {
	c := fakes.New(t)
	c.AddThree()
	life, err := lifecycle.New(lifecycle.Config{Store: c.Store, Nodes: c})
	if err != nil {
		t.Fatal(err)
	}
	defer life.Close()
	s := &scheduled{problems: []schedule.Problem{{Schedule: "nightly", Text: "not now"}, {Schedule: "nightly", Volume: "db", Text: "full"}}}
	r, err := reconcile.New(reconcile.Config{Store: c.Store, Lifecycle: life, Nodes: c, Candidate: "a", Schedules: s})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Pass(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range r.Problems() {
		got = append(got, p.String())
	}
	if s.passes != 1 || !slices.Equal(got, []string{"schedule nightly: not now", "volume db: full"}) {
		t.Errorf("%d passes, problems %q", s.passes, got)
	}
}
