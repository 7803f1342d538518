package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

// With keepers the process of a node is a keeper, and its daemon a child in a
// process group of its own; without, it is the daemon and has no such children.

// withKeepers says whether the nodes of a run have keepers: half of the seeds do.
func withKeepers(choice string, seed uint64) (bool, error) {
	switch choice {
	case "yes":
		return true, nil
	case "no":
		return false, nil
	case "seed":
		return seed%2 == 1, nil
	}
	return false, holdfast.E("read -keeper", holdfast.Invalid, fmt.Sprintf("%q is none of yes, no and seed", choice))
}

// children are the processes that p has started and that have not ended.
func children(p *netcluster.Process) []int {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p.Pid()))
	var out []int
	for _, f := range files {
		raw, _ := os.ReadFile(f) // a thread that has ended has none
		for s := range strings.FieldsSeq(string(raw)) {
			if pid, err := strconv.Atoi(s); err == nil {
				out = append(out, pid)
			}
		}
	}
	return out
}

// halt stops a keeper and waits until it is stopped, so that no other daemon
// appears beside the ones that are returned: while it starts one it does not
// notice the signal.
func (f *fleet) halt(p *netcluster.Process) []int {
	if !f.keepers {
		return nil
	}
	p.Signal(syscall.SIGSTOP)
	for until := time.Now().Add(5 * time.Second); time.Now().Before(until); time.Sleep(5 * time.Millisecond) {
		if s := state(p.Pid()); s == "T" || s == "Z" || s == "" {
			break
		}
	}
	return children(p)
}

// state is the letter that proc(5) has for what a process does; "" if it is gone.
func state(pid int) string {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(raw), ") ")
	return rest[:min(1, len(rest))]
}

// toAll sends a signal to processes and what they have started.
func toAll(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		if unix.Kill(-pid, sig) != nil { // it leads no group
			_ = unix.Kill(pid, sig)
		}
	}
}

// toBoth sends SIGSTOP, SIGCONT or SIGKILL to a node's keeper and its daemon, and
// says which processes the latter are.
func (f *fleet) toBoth(p *netcluster.Process, sig syscall.Signal) []int {
	if sig == syscall.SIGCONT {
		toAll(children(p), sig)
		p.Signal(sig)
		return nil
	}
	daemons := f.halt(p)
	toAll(daemons, sig)
	p.Signal(sig)
	return daemons
}

// tell stops a machine's processes, or lets them go on.
func (f *fleet) tell(m *machine, sig syscall.Signal) {
	if p := m.process(); p != nil {
		f.toBoth(p, sig)
	}
}

// gone waits until none of the processes runs; false when limit has passed.
func gone(pids []int, limit time.Duration) bool {
	runs := func(pid int) bool {
		// Its first thread may have ended while another waits in the kernel.
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		s := state(pid)
		return s != "" && (s != "Z" || len(threads) > 1)
	}
	for until := time.Now().Add(limit); slices.ContainsFunc(pids, runs); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(until) {
			return false
		}
	}
	return true
}

// restarted finds in a log the ends of daemons that a keeper has followed by
// another one: failed are those that nobody had killed.
func restarted(text string) (killed int, failed []error) {
	for line := range strings.Lines(text) {
		switch {
		case !strings.Contains(line, "the daemon ended by itself and is started again"):
		case strings.Contains(line, `cause="signal: killed"`):
			killed++
		default:
			failed = append(failed, holdfast.E("run a daemon under its keeper", holdfast.Other, strings.TrimSpace(line)))
		}
	}
	return killed, failed
}

// restarts are the ends of daemons under their keepers that are not ours.
func (f *fleet) restarts() error {
	logs, _ := filepath.Glob(filepath.Join(f.o.logs, "n*.log"))
	var errs []error
	killed := 0
	for _, l := range logs {
		text, err := os.ReadFile(l)
		n, failed := restarted(string(text))
		killed += n
		errs = append(append(errs, err), failed...)
	}
	if ours := int(f.crashes.Load()); killed > ours {
		errs = append(errs, holdfast.E("run daemons under their keepers", holdfast.Other, fmt.Sprintf("%d were killed, %d of them by this run", killed, ours)))
	}
	return errors.Join(errs...)
}

// daemonOnly makes the faults that only a keeper is there for: it lives, and the
// next daemon goes on where the one before was.
func (in *injector) daemonOnly(ctx context.Context, x fault, m *machine) error {
	if !in.f.keepers {
		in.f.j.note("%v: left out, as there is no keeper", x)
		return nil
	}
	if !m.faulty.TryLock() {
		in.f.j.note("%v: left out, as another fault is on", x)
		return nil
	}
	defer m.faulty.Unlock()
	p := m.process()
	if p == nil {
		return nil
	}
	in.f.j.note("%v", x)
	switch x.kind {
	case upgrade:
		_ = unix.Kill(p.Pid(), unix.SIGHUP)
	case crash:
		in.f.crashes.Add(1)
		for _, pid := range children(p) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	case hang:
		daemons := children(p)
		toAll(daemons, syscall.SIGSTOP)
		sleep(ctx, x.lasts)
		in.f.j.note("end of %v", x)
		toAll(daemons, syscall.SIGCONT)
	}
	return nil
}

// harmless are the faults that applications must not notice but for a pause, as
// long as no other ones have come before them in the round.
func harmless(k kind) bool {
	return slices.Contains([]kind{crash, upgrade, move, grow}, k)
}
