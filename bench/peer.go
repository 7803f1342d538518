package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// qemuProgram is of Debian's package qemu-system-common.
const qemuProgram = "qemu-storage-daemon"

// qemu is the peer that anyone can install: a quorum of three files, one in each
// node's pool, each served by a process of its own, as each node would. What
// connects them are UNIX sockets, which is kind to it: over TCP it waits for
// delayed acknowledgements. Reads are from the first file, as ours are local. aio is
// how it does its disks' I/O: threads by default, native is the fastest.
func (b *bench) qemu(name, aio string) func(context.Context) (target, error) {
	return func(ctx context.Context) (target, error) { return b.quorum(ctx, name, aio) }
}

func (b *bench) quorum(ctx context.Context, name, aio string) (target, error) {
	if _, err := exec.LookPath(qemuProgram); err != nil {
		return target{}, holdfast.E("run qemu's quorum", holdfast.Unsupported, qemuProgram+" is not installed; on Debian: apt-get install qemu-system-common")
	}
	q := &peer{}
	b.ends = append(b.ends, q.remove)
	var children, nodes []string
	for i := range 3 {
		file, err := b.rawFile(i, "bench-"+name)
		if err != nil {
			return target{}, err
		}
		q.files = append(q.files, file)
		node := fmt.Sprintf("n%d", i)
		socket := b.cluster.path(i, name+".sock")
		if err := q.serve(ctx, socket, node, "--blockdev", "driver=file,cache.direct=on,aio="+aio+",node-name="+node+",filename="+file); err != nil {
			return target{}, err
		}
		children = append(children, "--blockdev", fmt.Sprintf("driver=nbd,node-name=%s,export=%s,server.type=unix,server.path=%s", node, node, socket))
		nodes = append(nodes, fmt.Sprintf("children.%d=%s", i, node))
	}
	socket := filepath.Join(b.o.dir, name+".sock")
	quorum := "driver=quorum,node-name=q,vote-threshold=2,read-pattern=fifo"
	for _, n := range nodes {
		quorum += "," + n
	}
	if err := q.serve(ctx, socket, "q", append(children, "--blockdev", quorum)...); err != nil {
		return target{}, err
	}
	return target{path: "nbd+unix:///q?socket=" + socket, pids: q.pids}, nil
}

// peer are processes that are measured against.
type peer struct {
	procs []*process
	files []string
}

// serve starts a process that exports one of its block nodes on a socket.
func (q *peer) serve(ctx context.Context, socket, node string, args ...string) error {
	args = append(args, "--nbd-server", "addr.type=unix,addr.path="+socket, "--export", fmt.Sprintf("type=nbd,id=e,node-name=%s,name=%s,writable=on", node, node))
	p, err := startProcess(exec.Command(qemuProgram, args...), socket+".log")
	if err != nil {
		return err
	}
	q.procs = append(q.procs, p)
	return until(ctx, 10*time.Second, "start "+qemuProgram, func(context.Context) (bool, error) {
		if p.ended() {
			said, _ := os.ReadFile(socket + ".log")
			return false, holdfast.E("start "+qemuProgram, holdfast.Other, string(said))
		}
		_, err := os.Stat(socket)
		return err == nil, nil
	})
}

func (q *peer) pids() []int {
	var out []int
	for _, p := range q.procs {
		out = append(out, p.cmd.Process.Pid)
	}
	return out
}

func (q *peer) remove() error {
	for i := len(q.procs) - 1; i >= 0; i-- {
		q.procs[i].kill()
	}
	for _, f := range q.files {
		if err := os.Remove(f); err != nil {
			return holdfast.Wrap("remove "+f, err)
		}
	}
	return nil
}
