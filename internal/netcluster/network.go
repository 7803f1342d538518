package netcluster

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

// Network is one namespace per node and one with the bridge that connects them,
// apart from the machine's own network: nothing of it can be reached from
// outside, nor the outside from it.
type Network struct{ Prefix string }

// Hub is the namespace with the bridge, Node that of a node.
func (n Network) Hub() string           { return n.Prefix + "net" }
func (n Network) Node(id string) string { return n.Prefix + id }

// Port is a node's end at the bridge, Address the one of the node with number i.
func (n Network) Port(id string) string   { return "to-" + id }
func (n Network) Address(i int) string    { return fmt.Sprintf("10.99.99.%d", 10+i) }
func (n Network) isOurs(name string) bool { return strings.HasPrefix(name, n.Prefix) }

// Up makes the namespaces, links and addresses for the given nodes.
func (n Network) Up(ctx context.Context, ids []string) error {
	hub := n.Hub()
	steps := [][]string{
		{"netns", "add", hub},
		{"-n", hub, "link", "set", "lo", "up"},
		{"-n", hub, "link", "add", "bridge", "type", "bridge", "forward_delay", "0", "stp_state", "0"},
		{"-n", hub, "link", "set", "bridge", "up"},
	}
	for i, id := range ids {
		ns, port := n.Node(id), n.Port(id)
		steps = append(steps,
			[]string{"netns", "add", ns},
			[]string{"-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", ns},
			[]string{"-n", hub, "link", "set", port, "master", "bridge"},
			[]string{"-n", hub, "link", "set", port, "up"},
			[]string{"-n", ns, "link", "set", "lo", "up"},
			[]string{"-n", ns, "link", "set", "eth0", "address", hardware(i)},
			[]string{"-n", ns, "addr", "add", n.Address(i) + "/24", "dev", "eth0"},
			[]string{"-n", ns, "link", "set", "eth0", "up"},
		)
	}
	for _, s := range steps {
		if _, err := Command(ctx, "ip", s...); err != nil {
			return err
		}
	}
	return nil
}

// Cut takes a node's link away without a word; Mend gives it back.
func (n Network) Cut(ctx context.Context, id string) error  { return n.set(ctx, id, "down") }
func (n Network) Mend(ctx context.Context, id string) error { return n.set(ctx, id, "up") }

// Deafen makes one node's packets to another one vanish, silently and in that
// direction alone: they are sent to an address that nobody has. Hear ends it.
func (n Network) Deafen(ctx context.Context, from, to Place) error {
	_, err := inNode(ctx, "", "ip", "-n", n.Node(from.ID), "neigh", "replace", n.Address(to.Number), "lladdr", nobody, "dev", "eth0", "nud", "permanent")
	return err
}

// Hear ends what Deafen began; again is fine.
func (n Network) Hear(ctx context.Context, from, to Place) error {
	_, err := inNode(ctx, "", "ip", "-n", n.Node(from.ID), "neigh", "replace", n.Address(to.Number), "lladdr", hardware(to.Number), "dev", "eth0", "nud", "reachable")
	return err
}

// Place is a node and its number, from which its addresses follow.
type Place struct {
	ID     string
	Number int
}

// nobody is a hardware address that no link has.
const nobody = "02:68:66:00:ff:ff"

// hardware is the address of the link of the node with number i.
func hardware(i int) string { return fmt.Sprintf("02:68:66:00:00:%02x", 10+i) }

func (n Network) set(ctx context.Context, id, state string) error {
	_, err := Command(ctx, "ip", "-n", n.Hub(), "link", "set", n.Port(id), state)
	return err
}

// Namespaces lists those that carry the prefix.
func (n Network) Namespaces() []string {
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

// Processes lists the ids of the processes inside our namespaces.
func (n Network) Processes(ctx context.Context) []int {
	var out []int
	for _, ns := range n.Namespaces() {
		out = append(out, ProcessesIn(ctx, ns)...)
	}
	return out
}

// ProcessesIn lists the ids of the processes inside a namespace.
func ProcessesIn(ctx context.Context, ns string) []int {
	text, err := Command(ctx, "ip", "netns", "pids", ns)
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

// KillOn ends everything that runs on a node without warning. It returns when
// nothing is left: a database's own processes outlive their parent for a moment.
func (n Network) KillOn(ctx context.Context, id string) error {
	return KillAll(ctx, func() []int { return ProcessesIn(ctx, n.Node(id)) })
}

// Down removes the namespaces; links and bridge go with them.
func (n Network) Down(ctx context.Context) error {
	var errs []error
	for _, ns := range n.Namespaces() {
		_, err := Command(ctx, "ip", "netns", "del", ns)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Inside runs f on a thread that is in a namespace: processes that f starts are
// in it too, and share everything else with this one, mounts included.
func (n Network) Inside(ns string, f func() error) error {
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
