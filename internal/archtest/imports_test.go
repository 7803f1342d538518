package archtest

import (
	"slices"
	"strings"
	"testing"
)

// importRule says what the packages below a folder may import. Test files are
// free to import what they test with.
type importRule struct {
	name string
	// from are folders; "." is the root package alone.
	from []string
	// only, when set, lists all that may be imported besides the standard library.
	only []string
	// never lists what may not be imported.
	never []string
	why   string
}

var importRules = []importRule{
	{
		name: "vocabulary", from: []string{"."}, only: []string{},
		why: "the root package is the vocabulary that everybody imports; put what needs more next to its user",
	},
	{
		name: "engine", from: []string{"engine"}, only: []string{".", "engine", "internal", "golang.org/x/sys"},
		why: "a disk is checked and repaired without a network or a cluster; hand in what the engine needs through its options",
	},
	{
		name: "replication", from: []string{"replication"},
		only: []string{".", "replication", "internal", "github.com/anishathalye/porcupine"},
		why:  "the protocol runs without I/O, network and clock, so that it can be simulated; add to its ports and wire the real thing in node",
	},
	{
		name: "controller", from: []string{"controller"}, never: []string{"node", "engine", "replication", "daemon", "demo", "cmd"},
		why: "the controller decides and touches no data; it speaks to nodes through proto and to package metadata",
	},
	{
		name: "node", from: []string{"node"}, never: []string{"controller", "api", "daemon", "demo", "cmd"},
		why: "a node serves I/O while there is no controller; a node's duty goes into proto and the controller calls it",
	},
	{
		name: "metadata", from: []string{"metadata"}, never: []string{"node", "controller", "engine", "replication", "api", "proto", "daemon", "demo", "cmd", "internal"},
		why: "metadata stores records and interprets nothing",
	},
	{
		name: "proto", from: []string{"proto"}, never: []string{"node", "controller", "engine", "replication", "api", "metadata", "daemon", "demo", "cmd", "internal"},
		why: "proto is what others speak; it speaks to nobody",
	},
	{
		name: "internal", from: []string{"internal/buf", "internal/join", "internal/grpcstatus", "internal/rpc", "internal/mountpoint", "internal/archtest"},
		never: []string{"node", "controller", "engine", "replication", "api", "metadata", "daemon", "demo", "cmd"},
		why:   "small tools below everything else import nothing of what uses them",
	},
}

// below says whether an import is p or in a folder below p; with "=" before p,
// whether it is p itself.
func below(imported, p string) bool {
	if exact, ok := strings.CutPrefix(p, "="); ok {
		return imported == exact
	}
	return imported == p || p != "." && strings.HasPrefix(imported, p+"/")
}

func inside(imported string, list []string) bool {
	return slices.ContainsFunc(list, func(p string) bool { return below(imported, p) })
}

// ours says whether an import is of this module: its root, or has one of its
// folders first.
func ours(imported string, files []*file) bool {
	first, _, _ := strings.Cut(imported, "/")
	return imported == "." || slices.ContainsFunc(files, func(f *file) bool {
		return f.dir == imported || strings.HasPrefix(f.dir, first+"/") || f.dir == first
	})
}

// standard says whether an import is of the standard library.
func standard(imported string, files []*file) bool {
	first, _, _ := strings.Cut(imported, "/")
	return !strings.Contains(first, ".") && !ours(imported, files)
}

func TestImportRules(t *testing.T) {
	files := handWritten(t)
	for _, r := range importRules {
		t.Run(r.name, func(t *testing.T) {
			found := false
			for _, f := range files {
				if !slices.ContainsFunc(r.from, func(p string) bool { return below(f.dir, p) }) {
					continue
				}
				found = true
				if f.test {
					continue
				}
				for _, imported := range f.imports() {
					bad := inside(imported, r.never)
					if r.only != nil {
						bad = !standard(imported, files) && !inside(imported, r.only)
					}
					if bad {
						t.Errorf("%s imports %q, which is against the rules for %s: %s", f.path, imported, r.name, r.why)
					}
				}
			}
			if !found {
				t.Errorf("there is no package in %v: correct the rule", r.from)
			}
		})
	}
}

// onlyHere are imports that a few packages may have, tests included.
var onlyHere = []struct {
	imported []string
	here     []string
	why      string
}{
	{
		imported: []string{"go.etcd.io/etcd"}, here: []string{"metadata/etcd"},
		why: "only package metadata/etcd knows etcd; go through metadata.Store",
	},
	{
		imported: []string{"google.golang.org/grpc/codes", "google.golang.org/grpc/status"},
		here:     grpcEdges,
		why:      "codes exist at the edges alone: below them use holdfast.Kind, and translate with internal/grpcstatus",
	},
	{
		imported: []string{"github.com/container-storage-interface/spec"},
		here:     []string{"controller/csi", "node/csi", "=node", "csi-sanity", "demo", "daemon", "internal/testcluster", "internal/netcluster", "cmd/holdfast"},
		why:      "CSI is an edge: below it use the vocabulary of the root package",
	},
	{
		imported: []string{"google.golang.org/grpc"},
		here:     append([]string{"metadata/etcd", "proto", "controller", "internal/testcluster"}, grpcEdges...),
		why:      "connections are made in internal/rpc; below the edges use the interfaces of proto or your own",
	},
	{
		imported: []string{"github.com/spf13/cobra"}, here: []string{"cmd/holdfast"},
		why: "the command line is cmd/holdfast's; take a struct of options",
	},
}

// grpcEdges are where gRPC and CSI begin.
var grpcEdges = []string{"api", "internal/grpcstatus", "internal/rpc", "controller/csi", "node/csi", "node/agent",
	"=node", "csi-sanity", "cmd/holdfast", "demo", "daemon", "internal/netcluster"}

func TestImportsAtTheEdges(t *testing.T) {
	for _, f := range handWritten(t) {
		for _, imported := range f.imports() {
			for _, rule := range onlyHere {
				if inside(imported, rule.imported) && !inside(f.dir, rule.here) {
					t.Errorf("%s imports %q: %s", f.path, imported, rule.why)
				}
			}
		}
	}
}

func TestPackageNames(t *testing.T) {
	vague := []string{"util", "utils", "common", "types", "helper", "helpers", "misc", "base", "shared", "tools"}
	for _, f := range handWritten(t) {
		if slices.Contains(vague, strings.TrimSuffix(f.ast.Name.Name, "_test")) {
			t.Errorf("%s is in a package called %s: name it after what it gives to its users", f.path, f.ast.Name.Name)
		}
	}
}
