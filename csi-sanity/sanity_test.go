package csisanity_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
)

// maySkip says which of csi-test's specs need not run: those of services and
// capabilities that the driver does not announce ("not supported"), of a limit
// of volumes per node, which there is not, and what csi-test itself holds back.
func maySkip(s types.SpecReport) bool {
	m := s.Failure.Message
	return s.State == types.SpecStatePending || strings.Contains(m, "not supported") || strings.Contains(m, "testnodevolumeattachlimit not enabled")
}

// leastPassed is how many specs csi-test 5.6 has for what is announced, with both
// access types. A process can run csi-test once only, so -count=2 fails.
const leastPassed = 198

// TestSanity runs csi-test against a cluster of three nodes with real mounts,
// for filesystems and for raw blocks in one run.
func TestSanity(t *testing.T) {
	c := startCluster(t)
	var contexts []*sanity.TestContext
	for _, access := range []string{"mount", "block"} {
		cfg := sanity.NewTestConfig()
		cfg.Address = c.socks[0]
		cfg.TargetPath = filepath.Join(c.base, access+"-target")
		cfg.StagingPath = filepath.Join(c.base, access+"-staging")
		cfg.TestVolumeSize, cfg.TestVolumeExpandSize = 320<<20, 640<<20
		cfg.TestVolumeAccessType = access
		cfg.TestVolumeParameters = map[string]string{"replicas": "2"}
		cfg.TestVolumeMutableParameters = map[string]string{"replicas": "3", "iops": "5000", "bandwidth": "100Mi"}
		ginkgo.Describe("access type "+access, func() { contexts = append(contexts, sanity.GinkgoTest(&cfg)) })
	}
	passed := 0
	ginkgo.ReportAfterSuite("nothing skipped that is announced", func(r ginkgo.Report) {
		for _, s := range r.SpecReports {
			switch s.State {
			case types.SpecStatePassed:
				passed++
			case types.SpecStateSkipped, types.SpecStatePending:
				if !maySkip(s) {
					t.Errorf("csi-test skipped %q: %s", s.FullText(), s.Failure.Message)
				}
			}
		}
	})
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.RunSpecs(t, "csi-test")
	for _, sc := range contexts {
		sc.Finalize()
	}
	t.Logf("%d specs passed", passed)
	if passed < leastPassed {
		t.Errorf("%d specs passed, want %d or more: does the driver announce less than it did?", passed, leastPassed)
	}
	c.wantEmpty(t)
}
