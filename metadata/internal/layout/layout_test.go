package layout_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

func record() holdfast.Record {
	return holdfast.Record{Version: 1, ID: "v1", Name: "db-1", Phase: holdfast.PhaseReady, SizeBytes: 1 << 20, Epoch: 2,
		Created:  time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC),
		Spec:     holdfast.Spec{SizeBytes: 1 << 20, FSType: "xfs"}.WithDefaults(),
		Primary:  &holdfast.Primary{Node: "n1", Kind: holdfast.ClientPrimary, Grant: 2},
		Replicas: []holdfast.Replica{{ID: "r1", Node: "n1", Pool: "p1", State: holdfast.InSync, Since: 1}},
	}
}

// What is on the disks of users does not change by accident: these are the bytes
// of version 1. A change of a value's form is a new version.
func TestGolden(t *testing.T) {
	const want = `{"version":1,"id":"v1","name":"db-1","created":"2026-03-01T00:00:00Z",` +
		`"spec":{"sizeBytes":1048576,"replicas":3,"minInSync":1,"fsType":"xfs","logicalBlk":4096,"locality":"preferred"},` +
		`"phase":"ready","sizeBytes":1048576,"epoch":2,"primary":{"node":"n1","kind":"client","grant":2},` +
		`"replicas":[{"id":"r1","node":"n1","pool":"p1","state":"in-sync","since":1}]}`
	got, err := layout.EncodeRecord(record())
	if err != nil || string(got) != want {
		t.Errorf("record: %v\ngot  %s\nwant %s", err, got, want)
	}
	stones, err := layout.EncodeTombstones([]holdfast.Tombstone{{Replica: "r1", Volume: "v1", Node: "n1", Pool: "p1"}}, nil)
	const stone = `{"version":1,"replica":"r1","volume":"v1","node":"n1","pool":"p1","made":"0001-01-01T00:00:00Z"}`
	if err != nil || len(stones) != 1 || stones[0].Key != "tombstones/r1" || string(stones[0].Value) != stone {
		t.Errorf("tombstone: %v\ngot  %s\nwant %s", err, stones, stone)
	}
	node, err := layout.EncodeNode(holdfast.Node{Version: 1, ID: "n1", DataAddr: "a:1", APIAddr: "a:2", Release: "v0"})
	const wantNode = `{"version":1,"id":"n1","domain":{},"dataAddr":"a:1","apiAddr":"a:2","started":"0001-01-01T00:00:00Z","release":"v0"}`
	if err != nil || string(node) != wantNode {
		t.Errorf("node: %v\ngot  %s\nwant %s", err, node, wantNode)
	}
}

// The bytes of version 3, with everything that it adds.
func TestGoldenSnapshots(t *testing.T) {
	r := record()
	r.Primary = nil
	asked := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	r.PutSnapshot(holdfast.Snapshot{ID: "s2", Name: "b", Created: asked, State: holdfast.SnapshotWanted, Group: "g"})
	r.PutSnapshot(holdfast.Snapshot{ID: "s1", Created: asked, State: holdfast.SnapshotReady, SizeBytes: 4096, Epoch: 2, Cut: "1-1", Labels: map[string]string{"k": "v"}})
	r.SetRestore(&holdfast.Restore{ID: "x", Snapshot: "s1", Asked: asked})
	r.SetOrigin(holdfast.Origin{Volume: "v0", Snapshot: "s0"})
	const want = `{"version":3,"id":"v1","name":"db-1","created":"2026-03-01T00:00:00Z",` +
		`"spec":{"sizeBytes":1048576,"replicas":3,"minInSync":1,"fsType":"xfs","logicalBlk":4096,"locality":"preferred"},` +
		`"phase":"ready","sizeBytes":1048576,"epoch":2,"replicas":[{"id":"r1","node":"n1","pool":"p1","state":"in-sync","since":1}],` +
		`"snapshots":[{"id":"s1","created":"2026-03-02T00:00:00Z","state":"ready","sizeBytes":4096,"epoch":2,"cut":"1-1","labels":{"k":"v"}},` +
		`{"id":"s2","name":"b","created":"2026-03-02T00:00:00Z","state":"wanted","group":"g"}],` +
		`"restore":{"id":"x","snapshot":"s1","asked":"2026-03-02T00:00:00Z"},"origin":{"volume":"v0","snapshot":"s0"}}`
	got, err := layout.EncodeRecord(r)
	if err != nil || string(got) != want {
		t.Errorf("record: %v\ngot  %s\nwant %s", err, got, want)
	}
	back, err := layout.DecodeRecord(layout.VolumeKey("v1"), got, 7)
	r.Revision = 7
	if err != nil || !reflect.DeepEqual(r, back) {
		t.Errorf("%v\ngot  %+v\nwant %+v", err, back, r)
	}
	for _, unknown := range []string{`{"id":"s1",`, `"snapshot":"s1",`} {
		odd := strings.Replace(string(got), unknown, unknown+`"later":1,`, 1)
		if _, err := layout.DecodeRecord(layout.VolumeKey("v1"), []byte(odd), 7); !errors.Is(err, holdfast.Corrupt) {
			t.Errorf("a member that is not known is dropped silently: %v", err)
		}
	}
}

func TestKeys(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"a", "a b", "a%20b", "a+b", "ü", "..", "名前", "a\\b", "%", "a?b#c"} {
		key := layout.NameKey(name)
		if other, twice := seen[key]; twice {
			t.Errorf("%q and %q have the same key %q", name, other, key)
		}
		seen[key] = name
		if back := layout.ID(key, layout.Names); back != name {
			t.Errorf("%q comes back as %q", name, back)
		}
	}
	if key := layout.VolumeKey("../names/x"); key != "volumes/..%2Fnames%2Fx" {
		t.Errorf("an id gets out of its folder: %s", key)
	}
}

// FuzzDecode: nothing but the kind Corrupt comes out of any bytes, and what is
// understood is written back as the same value.
func FuzzDecode(f *testing.F) {
	good, err := layout.EncodeRecord(record())
	if err != nil {
		f.Fatal(err)
	}
	full := record()
	full.PutSnapshot(holdfast.Snapshot{ID: "s", State: holdfast.SnapshotWanted})
	snapped, err := layout.EncodeRecord(full)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(good), string(snapped), "", "{}", `{"version":1}`, `{"version":2}`, `{"version":1,"id":"v1","sizeBytes":4096}`,
		`{"version":1,"replica":"v1"}`, `{"version":1,"id":"v1"}`, "null", "[]", `{"version":1,"id":"v1","x":1}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := layout.DecodeRecord("volumes/v1", data, 7)
		_, nodeErr := layout.DecodeNode("nodes/v1", data, 7)
		_, stoneErr := layout.DecodeTombstone("tombstones/v1", data)
		_, clusterErr := layout.DecodeCluster(data)
		for _, e := range []error{err, nodeErr, stoneErr, clusterErr} {
			if e != nil && !errors.Is(e, holdfast.Corrupt) {
				t.Fatalf("%q gave %v, which is not of kind Corrupt", data, e)
			}
		}
		if err != nil {
			return
		}
		again, err := layout.EncodeRecord(r)
		if err != nil {
			return // a name that this release would not give out, but reads
		}
		back, err := layout.DecodeRecord("volumes/v1", again, 7)
		if err != nil || !reflect.DeepEqual(normal(r), normal(back)) {
			t.Fatalf("%q is not written back as it was: %v\n%+v\n%+v", data, err, r, back)
		}
	})
}

// normal drops what JSON does not tell apart: empty and absent, and how a time
// zone is written.
func normal(r holdfast.Record) holdfast.Record {
	r.Created = r.Created.UTC()
	r.Snapshots = none(r.Snapshots)
	for i := range r.Snapshots {
		r.Snapshots[i].Created = r.Snapshots[i].Created.UTC()
		if len(r.Snapshots[i].Labels) == 0 {
			r.Snapshots[i].Labels = nil
		}
	}
	if r.Restore != nil {
		r.Restore.Asked = r.Restore.Asked.UTC()
	}
	s := &r.Spec
	s.Requisite, s.Preferred = none(s.Requisite), none(s.Preferred)
	s.Racks, s.Zones = none(s.Racks), none(s.Zones)
	if len(s.Parameters) == 0 {
		s.Parameters = nil
	}
	if len(s.Labels) == 0 {
		s.Labels = nil
	}
	return r
}

func none[T any](s []T) []T {
	if len(s) == 0 {
		return nil
	}
	return s
}
