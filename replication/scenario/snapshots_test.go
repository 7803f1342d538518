package scenario

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
)

// snapshots are the lines about snapshots.
func (s *story) snapshots(verb string, a []string) (bool, error) {
	id := func(i int) holdfast.SnapshotID { return holdfast.SnapshotID(append(a, "", "")[i]) }
	switch verb {
	case "take":
		s.s.Want(id(0), "")
		return true, s.ready(id(0))
	case "want":
		s.s.Want(id(0), append(a, "")[1])
	case "ready":
		return true, s.ready(id(0))
	case "still-wanted":
		rec := s.s.Record()
		if x := rec.Snapshot(id(0)); x == nil || x.State != holdfast.SnapshotWanted {
			return true, errors.New("it is not")
		}
	case "delete":
		s.s.Delete(id(0))
	case "gone":
		return true, s.soon("it is still there", func() bool { rec := s.s.Record(); return rec.Snapshot(id(0)) == nil })
	case "restore":
		s.s.Restore(id(0))
	case "maintain":
		s.s.Maintain(node(a[0]))
	case "restored":
		return true, s.restored(node(a[0]))
	case "hold", "cut-group", "unhold":
		return true, s.group(verb, a)
	default:
		return s.snapshotLook(verb, a)
	}
	return true, nil
}

func (s *story) ready(id holdfast.SnapshotID) error {
	return s.soon("it is not ready", func() bool {
		rec := s.s.Record()
		x := rec.Snapshot(id)
		return x != nil && x.State == holdfast.SnapshotReady
	})
}

// restored waits for the end of a restore that a node's maintenance primary does.
func (s *story) restored(n holdfast.NodeID) error {
	for end := s.s.Now() + 30*time.Second; s.s.Now() < end; s.s.Run(300 * time.Millisecond) {
		if rec := s.s.Record(); rec.Restore == nil {
			return nil
		}
		s.s.Maintain(n)
	}
	return errors.New("it is not restored")
}

// group is "hold TOKEN [1s] [refused]", "cut-group TOKEN SNAPSHOT [refused]" and
// "unhold TOKEN [refused]", each on the node that serves.
func (s *story) group(verb string, a []string) error {
	refused := a[len(a)-1] == "refused"
	var got error
	done := verb == "unhold"
	hear := func(err error) { got, done = err, true }
	switch verb {
	case "hold":
		ttl := 5 * time.Second
		if len(a) > 1 && !(refused && len(a) == 2) {
			d, err := time.ParseDuration(a[1])
			if err != nil {
				return err
			}
			ttl = d
		}
		s.s.Hold(s.at, a[0], ttl, hear)
	case "cut-group":
		s.s.Cut(s.at, a[0], holdfast.SnapshotID(a[1]), hear)
	default:
		got = s.s.Unhold(s.at, a[0])
	}
	if err := s.soon("no answer", func() bool { return done }); err != nil {
		return err
	}
	if refused != (got != nil) {
		return fmt.Errorf("refused %v: %w", refused, got)
	}
	return nil
}

// snapshotLook is what is expected of snapshots on nodes.
func (s *story) snapshotLook(verb string, a []string) (bool, error) {
	switch verb {
	case "holds": // holds N SNAPSHOT BLOCK = LABEL|LABEL
		if !slices.ContainsFunc(strings.Split(a[4], "|"), func(l string) bool {
			return s.s.InSnapshot(node(a[0]), holdfast.SnapshotID(a[1]), number(a[2]), s.labels[l])
		}) {
			return true, fmt.Errorf("it holds something else; it has %v", s.s.Snapshots(node(a[0])))
		}
	case "lacks": // lacks N SNAPSHOT
		if slices.ContainsFunc(s.s.Snapshots(node(a[0])), func(x replication.SnapshotRef) bool { return string(x.ID) == a[1] }) {
			return true, errors.New("it has it")
		}
	case "shares": // shares N M
		return true, s.s.SameSharing(node(a[0]), node(a[1]))
	case "snapshots-well":
		return true, s.soon("they are not", func() bool { return s.s.SnapshotsWell() == nil })
	case "differs": // differs SNAPSHOT FROM BLOCK [not]
		var got []holdfast.Extent
		var failed error
		done := false
		s.s.ReadSnapshot(s.at, holdfast.SnapshotID(a[0]), holdfast.SnapshotID(a[1]), number(a[2]), func(x []holdfast.Extent, err error) {
			got, failed, done = x, err, true
		})
		if err := s.soon("no answer", func() bool { return done }); err != nil || failed != nil {
			return true, errors.Join(err, failed)
		}
		if want := len(a) < 4; want != (len(got) > 0) {
			return true, fmt.Errorf("it differs: %v", got)
		}
	default:
		return false, nil
	}
	return true, nil
}
