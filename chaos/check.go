package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// healthy waits until every node says that all nodes and pools are well.
func (r *run) healthy(ctx context.Context) error {
	return r.within(ctx, healthyWithin, "be healthy when all faults are healed", func(ctx context.Context) (bool, error) {
		for _, m := range r.f.machines {
			st, err := r.statusAt(ctx, m.node())
			if err != nil {
				return false, holdfast.Wrap("ask "+m.node(), err)
			}
			ns, ps := st.GetNodes(), st.GetPools()
			if ns.GetWell() != machines || ns.GetTotal() != machines || ps.GetWell() != machines || ps.GetTotal() != machines || st.GetLeader() == "" {
				return false, fmt.Errorf("%s sees %d of %d nodes and %d of %d pools well, leader %q, problems %v",
					m.node(), ns.GetWell(), ns.GetTotal(), ps.GetWell(), ps.GetTotal(), st.GetLeader(), st.GetProblems())
			}
		}
		return true, nil
	})
}

// noProblems asks every node what is wrong, or waits.
func (r *run) noProblems(ctx context.Context) error {
	for _, m := range r.f.machines {
		st, err := r.statusAt(ctx, m.node())
		if err != nil {
			return holdfast.Wrap("ask "+m.node(), err)
		}
		vs := st.GetVolumes()
		if len(st.GetProblems()) > 0 || len(st.GetRepairs()) > 0 || st.GetAttached() > 0 || int(vs.GetWell()) != len(r.keepers) || vs.GetTotal() != vs.GetWell() {
			return fmt.Errorf("%s sees %d of %d volumes well, %d attached, repairs %v, problems %v", m.node(), vs.GetWell(), vs.GetTotal(), st.GetAttached(), st.GetRepairs(), st.GetProblems())
		}
	}
	return nil
}

// check is what has to hold after a round, with all volumes published nowhere.
func (r *run) check(ctx context.Context, rng *rand.Rand) error {
	began := time.Now()
	for _, k := range r.keepers {
		if err := r.inSync(ctx, k.claim.Name); err != nil {
			return err
		}
	}
	r.j.note("all replicas are in sync (%v)", time.Since(began).Round(10*time.Millisecond))
	for _, k := range r.keepers {
		if err := r.compare(ctx, k.claim); err != nil {
			return err
		}
	}
	r.j.note("all replicas are equal")
	if err := r.scrub(ctx, rng); err != nil {
		return err
	}
	if err := r.nothingLeft(ctx); err != nil {
		return err
	}
	if err := r.soundPools(ctx); err != nil {
		return err
	}
	r.j.note("nothing is stuck or left behind, the pools are sound; %d rows so far", r.ledger.Count())
	return errors.Join(r.f.ends(), r.failure(), r.panics())
}

// quietAndInSync says whether a volume has all its replicas, in sync on live
// nodes, and no primary.
func quietAndInSync(v *holdfastv1.Volume) error {
	if n := len(v.GetReplicas()); n != int(v.GetSpec().GetReplicas()) {
		return fmt.Errorf("it has %d replicas", n)
	}
	for _, x := range v.GetReplicas() {
		if x.GetState() != string(holdfast.InSync) || !x.GetNodeAlive() {
			return fmt.Errorf("the replica on %s is %s (alive: %v), %d bytes are left: %s", x.GetNode(), x.GetState(), x.GetNodeAlive(), x.GetLeftBytes(), x.GetMessage())
		}
	}
	if p := v.GetPrimary(); p != nil || v.GetAttachedTo() != "" {
		return fmt.Errorf("%s serves it (%s), attached to %q", p.GetNode(), p.GetKind(), v.GetAttachedTo())
	}
	return nil
}

// whole says whether all replicas of all volumes are in sync now; false when
// nobody knows.
func (r *run) whole(ctx context.Context) bool {
	for _, k := range r.keepers {
		v, err := r.volume(ctx, k.claim.Name)
		if err != nil {
			return false
		}
		for _, x := range v.GetReplicas() {
			if x.GetState() != string(holdfast.InSync) || !x.GetNodeAlive() {
				return false
			}
		}
	}
	return true
}

func (r *run) inSync(ctx context.Context, name string) error {
	return r.within(ctx, syncWithin, "have all replicas of "+name+" in sync", func(ctx context.Context) (bool, error) {
		v, err := r.volume(ctx, name)
		if err == nil {
			err = quietAndInSync(v)
		}
		return err == nil, err
	})
}

// nothingLeft checks mounts, devices, processes and replicas.
func (r *run) nothingLeft(ctx context.Context) error {
	return r.within(ctx, tidyWithin, "find nothing left behind", func(ctx context.Context) (bool, error) {
		err := errors.Join(r.mountsLeft(), r.devicesLeft(), r.processesLeft(ctx), r.replicasLeft(ctx), r.noProblems(ctx))
		return err == nil, err
	})
}

func (r *run) mountsLeft() error {
	ms, err := netcluster.MountsBelow(r.o.dir)
	if err != nil {
		return err
	}
	var left []string
	for _, m := range ms {
		pool, _ := filepath.Match(r.o.dir+"/*/run/pools/*", m.Point)
		memory, _ := filepath.Match(r.o.dir+"/*/run/memory/*", m.Point) // of a pool
		if !pool && !memory {
			left = append(left, fmt.Sprintf("%s (%s of %s)", m.Point, m.Type, m.Source))
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("mounts are left: %v", left)
	}
	return nil
}

// devicesLeft looks for loop devices over anything but pools.
func (r *run) devicesLeft() error {
	var left []string
	for _, dev := range netcluster.LoopsBelow(r.o.dir) {
		file, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/loop/backing_file")
		name := strings.TrimSpace(string(file))
		if err == nil && filepath.Base(name) != "pool.img" {
			left = append(left, dev+" over "+name)
		}
	}
	// A file of a front end whose mount is gone is shown without its folder.
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for _, k := range r.keepers {
			if name := strings.TrimSpace(string(raw)); strings.HasPrefix(name, "/holdfast-"+k.claim.Volume.GetVolumeId()) {
				left = append(left, strings.Split(f, "/")[3]+" over "+name)
			}
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("devices are left: %v", left)
	}
	return nil
}

// processesLeft looks for any but the daemons, and for threads that wait for I/O
// that does not end.
func (r *run) processesLeft(ctx context.Context) error {
	daemons := map[int]bool{}
	for _, m := range r.f.machines {
		if p := m.process(); p != nil {
			daemons[p.Pid()] = true
			if r.f.keepers {
				for _, pid := range children(p) {
					daemons[pid] = true
				}
			}
		}
	}
	var left []string
	for _, pid := range append(r.net.Processes(ctx), os.Getpid()) {
		if !daemons[pid] && pid != os.Getpid() {
			stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			wchan, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
			left = append(left, fmt.Sprintf("process %.60s, in %s", stat, wchan))
		}
		left = append(left, waiting(pid)...)
	}
	if len(left) > 0 {
		return fmt.Errorf("processes are left or hang: %q", left)
	}
	return nil
}

// waiting lists the threads of a process that are in uninterruptible sleep.
func waiting(pid int) []string {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	var out []string
	for _, s := range stats {
		raw, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		if _, rest, ok := strings.Cut(string(raw), ") "); ok && strings.HasPrefix(rest, "D") {
			stack, _ := os.ReadFile(filepath.Join(filepath.Dir(s), "stack"))
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(s), "comm"))
			out = append(out, fmt.Sprintf("thread %s of %d (%s) in %s", filepath.Base(filepath.Dir(s)), pid, strings.TrimSpace(string(name)), frames(string(stack))))
		}
	}
	return out
}

// frames are the functions of a kernel stack as proc(5) has it, the innermost first.
func frames(stack string) string {
	var out []string
	for line := range strings.Lines(stack) {
		_, f, _ := strings.Cut(line, "] ")
		f, _, _ = strings.Cut(strings.TrimSpace(f), "+")
		out = append(out, f)
	}
	return strings.Join(out[:min(len(out), 12)], " < ")
}

// replicasLeft looks for replicas on pools that no record names: their
// tombstones should have removed them.
func (r *run) replicasLeft(ctx context.Context) error {
	named := map[string]bool{}
	for _, k := range r.keepers {
		v, err := r.volume(ctx, k.claim.Name)
		if err != nil {
			return err
		}
		for _, x := range v.GetReplicas() {
			named[x.GetId()] = true
		}
	}
	if err := r.volumesLeft(ctx); err != nil {
		return err
	}
	found, _ := filepath.Glob(filepath.Join(r.o.dir, "*/run/pools/*/replicas/*"))
	var left []string
	for _, f := range found {
		if !named[filepath.Base(f)] {
			left = append(left, f)
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("replicas are left: %v", left)
	}
	if len(found) != len(named) {
		return fmt.Errorf("%d replicas are there, %d are named", len(found), len(named))
	}
	return nil
}

// volumesLeft looks for volumes that should have been deleted. A call that nobody
// waited for any more may have made one after it was deleted, which is deleted
// again.
func (r *run) volumesLeft(ctx context.Context) error {
	var vs []*holdfastv1.Volume
	err := r.ask(ctx, func(ctx context.Context, _ holdfastv1.ClusterServiceClient, c holdfastv1.VolumeServiceClient) error {
		ls, err := c.ListVolumes(ctx, &holdfastv1.ListVolumesRequest{})
		vs = ls.GetVolumes()
		return err
	})
	if err != nil || len(vs) == len(r.keepers) {
		return err
	}
	errs := []error{fmt.Errorf("there are %d volumes, not %d", len(vs), len(r.keepers))}
	for _, v := range vs {
		if strings.HasPrefix(v.GetName(), churnPrefix) {
			errs = append(errs, holdfast.Wrap(v.GetName(), r.churn.remove(ctx, v.GetName())))
		}
	}
	return errors.Join(errs...)
}

// soundPools has every pool verified by its node.
func (r *run) soundPools(ctx context.Context) error {
	var pools []*holdfastv1.Pool
	err := r.ask(ctx, func(ctx context.Context, c holdfastv1.ClusterServiceClient, _ holdfastv1.VolumeServiceClient) error {
		ls, err := c.ListPools(ctx, &holdfastv1.ListPoolsRequest{})
		pools = ls.GetPools()
		return err
	})
	if err != nil {
		return err
	}
	for _, p := range pools {
		if _, err := r.f.cli(ctx, "pool", "check", p.GetId()); err != nil {
			return holdfast.Wrap("check the pool of "+p.GetNode(), err)
		}
	}
	return nil
}

// panics looks for Go's own words in the daemons' logs.
func (r *run) panics() error {
	logs, _ := filepath.Glob(filepath.Join(r.o.logs, "n*.log"))
	var errs []error
	for _, log := range logs {
		raw, err := os.ReadFile(log)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(raw)) {
			if slices.ContainsFunc([]string{"panic: ", "fatal error: ", "DATA RACE"}, func(s string) bool { return strings.HasPrefix(line, s) || strings.HasPrefix(line, "WARNING: "+s) }) {
				errs = append(errs, holdfast.E("read "+log, holdfast.Other, strings.TrimSpace(line)))
			}
		}
	}
	return errors.Join(errs...)
}
