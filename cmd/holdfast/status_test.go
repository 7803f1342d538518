package main

import (
	"fmt"
	"strings"
	"testing"

	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// TestAThousandProblemsAreReadable: those that are alike are counted, others shown.
func TestAThousandProblemsAreReadable(t *testing.T) {
	st := &holdfastv1.ClusterStatus{}
	for i := range 1000 {
		st.Problems = append(st.Problems, &holdfastv1.Problem{Severity: "warning", Subject: fmt.Sprintf("volume v%d", i), What: "2 of 3 replicas in sync", Remedy: "wait"})
		st.Repairs = append(st.Repairs, &holdfastv1.Repair{Volume: fmt.Sprintf("v%d", i), Node: "n3"})
	}
	for i := range 5 {
		st.Problems = append(st.Problems, &holdfastv1.Problem{Severity: "critical", Subject: fmt.Sprintf("volume w%d", i), What: "no replica answers", Remedy: "start the nodes"})
	}
	var out strings.Builder
	(&cli{}).statusTable(&out, st)
	if n := strings.Count(out.String(), "\n"); n > 60 {
		t.Errorf("%d lines are shown", n)
	}
	for _, want := range []string{"volume v2: 2 of 3", "the same of 997 more", "volume w0: no replica", "volume w4: no replica", "and 980 more"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not shown:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "v3: 2 of 3") {
		t.Errorf("more examples than needed:\n%s", out.String())
	}
}
