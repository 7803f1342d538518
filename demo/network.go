package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// network is one namespace per node and one with the bridge that connects them,
// apart from the machine's own network: nothing of it can be reached from
// outside, nor the outside from it.
type network struct{ prefix string }

func (n network) hub() string             { return n.prefix + "net" }
func (n network) node(id string) string   { return n.prefix + id }
func (n network) port(id string) string   { return "to-" + id }
func (n network) address(i int) string    { return fmt.Sprintf("10.99.99.%d", 10+i) }
func (n network) isOurs(name string) bool { return strings.HasPrefix(name, n.prefix) }

// up makes the namespaces, links and addresses for the given nodes.
func (n network) up(ctx context.Context, ids []string) error {
	hub := n.hub()
	steps := [][]string{
		{"netns", "add", hub},
		{"-n", hub, "link", "set", "lo", "up"},
		{"-n", hub, "link", "add", "bridge", "type", "bridge", "forward_delay", "0", "stp_state", "0"},
		{"-n", hub, "link", "set", "bridge", "up"},
	}
	for i, id := range ids {
		ns, port := n.node(id), n.port(id)
		steps = append(steps,
			[]string{"netns", "add", ns},
			[]string{"-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", ns},
			[]string{"-n", hub, "link", "set", port, "master", "bridge"},
			[]string{"-n", hub, "link", "set", port, "up"},
			[]string{"-n", ns, "link", "set", "lo", "up"},
			[]string{"-n", ns, "addr", "add", n.address(i) + "/24", "dev", "eth0"},
			[]string{"-n", ns, "link", "set", "eth0", "up"},
		)
	}
	for _, s := range steps {
		if _, err := command(ctx, "ip", s...); err != nil {
			return err
		}
	}
	return nil
}

// cut takes a node's link away without a word; mend gives it back.
func (n network) cut(ctx context.Context, id string) error  { return n.set(ctx, id, "down") }
func (n network) mend(ctx context.Context, id string) error { return n.set(ctx, id, "up") }

func (n network) set(ctx context.Context, id, state string) error {
	_, err := command(ctx, "ip", "-n", n.hub(), "link", "set", n.port(id), state)
	return err
}

// namespaces lists those that carry the prefix.
func (n network) namespaces() []string {
	es, err := os.ReadDir("/run/netns")
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range es {
		if n.isOurs(e.Name()) {
			out = append(out, e.Name())
		}
	}
	return out
}

// processes lists the ids of the processes inside our namespaces.
func (n network) processes(ctx context.Context) []int {
	var out []int
	for _, ns := range n.namespaces() {
		out = append(out, processesIn(ctx, ns)...)
	}
	return out
}

func processesIn(ctx context.Context, ns string) []int {
	text, err := command(ctx, "ip", "netns", "pids", ns)
	if err != nil {
		return nil
	}
	var out []int
	for _, f := range strings.Fields(text) {
		var pid int
		if _, err := fmt.Sscan(f, &pid); err == nil && pid > 1 && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	return out
}

// killOn ends everything that runs on a node without warning. It returns when
// nothing is left: a database's own processes outlive their parent for a moment.
func (n network) killOn(ctx context.Context, id string) error {
	return killAll(ctx, func() []int { return processesIn(ctx, n.node(id)) })
}

// down removes the namespaces; links and bridge go with them.
func (n network) down(ctx context.Context) error {
	var errs []error
	for _, ns := range n.namespaces() {
		_, err := command(ctx, "ip", "netns", "del", ns)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// inside runs f on a thread that is in a namespace: processes that f starts are
// in it too, and share everything else with this one, mounts included.
func (n network) inside(ns string, f func() error) error {
	op := "enter namespace " + ns
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and no other one
		// can get it while it is in the namespace.
		runtime.LockOSThread()
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- holdfast.Wrap(op, err)
			return
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- holdfast.Wrap(op, err)
			return
		}
		done <- f()
	}()
	return <-done
}
