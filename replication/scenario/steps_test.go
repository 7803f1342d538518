package scenario

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication/sim"
)

// nodes are those named, or all.
func (s *story) nodes(a []string) []holdfast.NodeID {
	if len(a) == 1 && a[0] == "all" {
		return s.s.Nodes()
	}
	var ids []holdfast.NodeID
	for _, x := range a {
		ids = append(ids, node(x))
	}
	return ids
}

func (s *story) faults(verb string, a []string) (bool, error) {
	switch verb {
	case "kill", "power", "power-hard":
		loss := map[string]sim.Loss{"kill": sim.LoseNothing, "power": sim.LoseSome, "power-hard": sim.LoseAll}[verb]
		for _, n := range s.nodes(a) {
			s.s.Kill(n, loss)
		}
	case "start":
		for _, n := range s.nodes(a) {
			s.s.Start(n)
		}
	case "cut", "mend", "one-way":
		s.s.Link(node(a[0]), node(a[1]), verb == "mend")
		if verb != "one-way" {
			s.s.Link(node(a[1]), node(a[0]), verb == "mend")
		}
	case "isolate", "rejoin":
		for _, n := range s.s.Nodes() {
			s.s.Link(n, node(a[0]), verb == "rejoin")
			s.s.Link(node(a[0]), n, verb == "rejoin")
		}
		s.s.Metadata(node(a[0]), verb == "rejoin")
	case "pause", "slow", "stuck":
		d, err := time.ParseDuration(a[1])
		s.s.Afflict(node(a[0]), map[string]sim.Trouble{"pause": sim.Paused, "slow": sim.SlowDisk, "stuck": sim.StuckDisk}[verb], d)
		return true, err
	case "full", "free":
		s.s.Full(node(a[0]), verb == "full")
	case "break":
		s.s.Break(node(a[0]))
	default:
		return false, nil
	}
	return true, nil
}

func (s *story) control(verb string, a []string) (bool, error) {
	switch verb {
	case "metadata":
		s.s.Metadata(node(append(a, "")[1]), a[0] == "on")
	case "snapshot":
		s.s.Snapshot()
	case "rollback":
		s.s.Rollback(len(a) > 0)
	case "grow":
		s.s.Change(verb, func(r *holdfast.Record) { r.Spec.SizeBytes = number(a[0]) * holdfast.BlockSize })
	case "min-in-sync":
		s.s.Change(verb, func(r *holdfast.Record) { r.Spec.MinInSync = int(number(a[0])) })
	case "io-timeout":
		d, err := time.ParseDuration(a[0])
		s.s.Change(verb, func(r *holdfast.Record) {
			x := r.Spec
			x.IOTimeoutMillis = d.Milliseconds()
			r.SetSpec(x)
		})
		return true, err
	case "slow-replicas":
		s.s.Change(verb, func(r *holdfast.Record) {
			x := r.Spec
			x.SlowReplicas = holdfast.SlowPolicy(a[0])
			r.SetSpec(x)
		})
	case "label":
		s.s.Change(verb, func(r *holdfast.Record) { r.Spec.Labels = map[string]string{"label": a[0]} })
	case "leave":
		s.s.Change(verb, func(r *holdfast.Record) { r.On(node(a[0])).Leaving = true })
	case "add":
		s.s.AddReplica(node(a[0]))
	case "remove":
		rec := s.s.Record()
		if rep := rec.On(node(a[0])); rep == nil || rep.State == holdfast.InSync {
			return true, errors.New("only a replica that is not in sync can be removed")
		}
		s.s.RemoveReplica(node(a[0]))
	default:
		return false, nil
	}
	return true, nil
}

// inSync names the nodes of the in-sync set.
func (s *story) inSync() []string {
	rec := s.s.Record()
	var ids []string
	for _, r := range rec.InSyncReplicas() {
		ids = append(ids, string(r.Node))
	}
	slices.Sort(ids)
	return ids
}

func (s *story) expect(verb string, a []string) (bool, error) {
	rec := s.s.Record()
	switch verb {
	case "serving":
		return true, s.soon("not served", func() bool { return s.s.Serving(node(a[0])) })
	case "not-serving":
		d, err := time.ParseDuration(a[1])
		if err == nil && s.s.Until(d, func() bool { return s.s.Serving(node(a[0])) }) {
			err = errors.New("it serves")
		}
		return true, err
	case "in-sync":
		err := s.soon("the in-sync set is another", func() bool { return slices.Equal(s.inSync(), a) })
		if err != nil {
			err = fmt.Errorf("%w; in sync are %v", err, s.inSync())
		}
		return true, err
	case "still":
		if !slices.Equal(s.inSync(), a[1:]) {
			return true, fmt.Errorf("in sync are %v", s.inSync())
		}
		return true, nil
	case "healthy":
		return true, s.soon("not healthy", func() bool {
			rec := s.s.Record()
			return rec.Healthy() && rec.SizeBytes >= rec.Spec.SizeBytes && len(rec.Replicas) == rec.Spec.Replicas
		})
	case "sized":
		return true, s.soon("it has not grown", func() bool {
			rec := s.s.Record()
			return rec.SizeBytes == number(a[0])*holdfast.BlockSize && s.shows(rec.SizeBytes)
		})
	case "epoch":
		if a[0] == "same" && s.epoch != rec.Epoch {
			return true, fmt.Errorf("the epoch was %d and is %d", s.epoch, rec.Epoch)
		}
		s.epoch = rec.Epoch
		return true, nil
	}
	return s.look(verb, a)
}

// shows says whether the device has grown, too.
func (s *story) shows(size int64) bool {
	st, ok := s.s.Status(s.at)
	return ok && st.SizeBytes == size
}

// look is what is expected of one node.
func (s *story) look(verb string, a []string) (bool, error) {
	switch verb {
	case "ended":
		return true, s.ended(a)
	case "says":
		if words := strings.Join(a, " "); !slices.ContainsFunc(s.s.Trace(), func(l string) bool { return strings.Contains(l, words) }) {
			return true, errors.New("nobody says so")
		}
		return true, nil
	case "io-waits":
		return true, s.soon("I/O does not say that it waits", func() bool {
			st, _ := s.s.Status(node(a[0]))
			return st.WaitingFor != ""
		})
	case "disk":
		if !s.s.OnDisk(node(a[0]), number(a[1]), s.labels[a[3]]) {
			return true, errors.New("its disk holds something else")
		}
		return true, nil
	case "repaired":
		return true, s.repaired(node(a[0]), a[1], number(a[2]))
	case "equal":
		s.s.Run(time.Second)
		return true, s.s.Equal()
	}
	return false, nil
}

func (s *story) ended(a []string) error {
	kinds := map[string]error{"fenced": holdfast.Fenced, "corrupt": holdfast.Corrupt}
	return s.soon("it has not ended so", func() bool {
		st, ok := s.s.Status(node(a[0]))
		return ok && st.State == "ended" && (len(a) == 1 || errors.Is(st.Err, kinds[a[1]]))
	})
}

// repaired compares what the last repair of a replica sent.
func (s *story) repaired(n holdfast.NodeID, how string, blocks int64) error {
	st, _ := s.s.Status(s.at)
	for _, p := range st.Peers {
		if p.Replica.Node != n {
			continue
		}
		got := p.CopiedBytes / holdfast.BlockSize
		if strings.HasSuffix(how, "most") && got > blocks || strings.HasSuffix(how, "least") && got < blocks {
			return fmt.Errorf("%d blocks were sent", got)
		}
		return nil
	}
	return errors.New("there is no such replica")
}
