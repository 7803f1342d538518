package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

const (
	fioFiles = 3
	fioBytes = 16 << 20
)

// fioWork writes one file after the other with fio, each time with another seed,
// so that old content is not taken for new one. A file that fio has written
// completely and synced must be there, exactly; one that it was writing when
// something failed may be anything.
type fioWork struct {
	net  netcluster.Network
	logs string

	mu    sync.Mutex
	made  bool // the files are there
	seed  int
	next  int
	files [fioFiles]int // the seed with which it was written completely; 0: none
}

func newFioWork(n netcluster.Network, logs string, seed int) *fioWork {
	return &fioWork{net: n, logs: logs, seed: seed}
}

// command is fio on one file. What is written and what is verified have the same
// seed, and so the same order and content. It is a mixed load without a single
// read as fio compares the seed in a block's header, which tells an older content
// from the newest, for mixed loads only.
func (w *fioWork) command(at place, file, seed int, more ...string) *exec.Cmd {
	args := append([]string{"--name=chaos", "--thread=1", "--filename=" + filepath.Join(at.path, fmt.Sprintf("fio-%d", file)), fmt.Sprintf("--size=%d", fioBytes),
		"--rw=randrw", "--rwmixwrite=100", "--bs=8k", "--ioengine=libaio", "--iodepth=8", "--direct=1", "--verify=crc32c", "--verify_state_save=0",
		fmt.Sprintf("--randseed=%d", seed), "--output-format=normal"}, more...)
	cmd := exec.Command("fio", args...)
	cmd.Dir = w.logs
	return cmd
}

// complaint leaves out of fio's words what it says each time.
func complaint(said string) string {
	var out []string
	for line := range strings.Lines(said) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "fio: ") {
			out = append(out, line)
		}
	}
	if len(out) == 0 {
		return strings.TrimSpace(said)
	}
	return strings.Join(out, " | ")
}

// start runs fio on the node.
func (w *fioWork) start(at place, cmd *exec.Cmd) (*netcluster.Process, *bytes.Buffer, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 2 * time.Second
	var p *netcluster.Process
	err := at.m.during(at.boot, func() error {
		var err error
		p, err = w.net.StartIn(at.m.place(), cmd)
		return err
	})
	return p, &out, err
}

// badContent is how fio says that what it read is not what it wrote.
func badContent() *regexp.Regexp {
	return regexp.MustCompile(`verify: bad|verify failed|verify type mismatch`)
}

// check verifies one complete file. It must not make it: when the mount goes away
// between fio's look at the file's size and its opening, fio would find a new,
// empty one in the ordinary folder, and call what it did not read bad content.
func (w *fioWork) check(ctx context.Context, at place, file, seed int) error {
	op := fmt.Sprintf("verify file %d with seed %d", file, seed)
	p, out, err := w.start(at, w.command(at, file, seed, "--allow_file_create=0", "--verify_only=1", "--verify_fatal=1"))
	if err != nil {
		return holdfast.Wrap(op, err)
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		go p.Kill()
		return holdfast.WrapKind(op, holdfast.Unavailable, ctx.Err())
	case <-time.After(time.Minute):
		go p.Kill()
		return holdfast.E(op, holdfast.Unavailable, "fio hangs")
	}
	said := strings.TrimSpace(out.String())
	switch {
	case badContent().MatchString(said):
		return holdfast.E(op, holdfast.Corrupt, said)
	case p.Err() != nil:
		return holdfast.E(op, holdfast.Unavailable, said)
	}
	return nil
}

func (w *fioWork) verify(ctx context.Context, at place) error {
	if err := w.make(at); err != nil {
		return err
	}
	w.mu.Lock()
	files := w.files
	w.mu.Unlock()
	for i, seed := range files {
		if seed != 0 {
			if err := w.check(ctx, at, i, seed); err != nil {
				return err
			}
		}
	}
	return nil
}

// make makes the files, the first time. Later ones are not made: when a device
// is taken away from a node, what was mounted is an ordinary folder again, and
// nothing may be written there.
func (w *fioWork) make(at place) error {
	if w.made {
		return nil
	}
	w.made = true
	for i := range w.files {
		w.seed++
		p, out, err := w.start(at, w.command(at, i, w.seed, "--do_verify=0", "--end_fsync=1"))
		if err == nil {
			<-p.Done()
			err = p.Err()
		}
		if err != nil {
			return holdfast.E("make files with fio", holdfast.Unavailable, fmt.Sprintf("%v: %s", err, out.String()))
		}
		w.files[i] = w.seed
	}
	return nil
}

// begin verifies the file written last, and writes on.
func (w *fioWork) begin(ctx context.Context, at place) (session, error) {
	w.mu.Lock()
	last := (w.next + fioFiles - 1) % fioFiles
	seed := w.files[last]
	w.mu.Unlock()
	if seed != 0 {
		if err := w.check(ctx, at, last, seed); err != nil {
			return nil, err
		}
	}
	s := &fioSession{w: w, at: at, ended: make(chan struct{}), stop: make(chan struct{})}
	go s.run()
	return s, nil
}

type fioSession struct {
	w     *fioWork
	at    place
	ended chan struct{}
	stop  chan struct{}
	once  sync.Once

	// Guarded by w.mu.
	over   bool
	broken error
}

func (s *fioSession) run() {
	defer close(s.ended)
	for s.one() {
	}
}

// one writes a file, and says whether to go on.
func (s *fioSession) one() bool {
	w := s.w
	w.mu.Lock()
	over, file := s.over, w.next
	w.seed++
	seed := w.seed
	if !over {
		w.files[file], w.next = 0, (w.next+1)%fioFiles
	}
	w.mu.Unlock()
	cmd := w.command(s.at, file, seed, "--do_verify=0", "--allow_file_create=0", "--end_fsync=1", "--rate_iops=500", "--fsync=64")
	p, out, err := w.start(s.at, cmd)
	if err == nil {
		select {
		case <-p.Done():
			err = p.Err()
		case <-s.stop:
			p.Kill()
			return false
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		s.broken = holdfast.E("write with fio", holdfast.Unavailable, fmt.Sprintf("%v: %.300s", err, complaint(out.String())))
		return false
	case over:
		s.broken = holdfast.E("write with fio", holdfast.Corrupt, "a whole file was written and synced although that began when the volume was served elsewhere")
		return false
	case !s.over:
		w.files[file] = seed
	}
	return true
}

func (s *fioSession) done() <-chan struct{} { return s.ended }

func (s *fioSession) err() error {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	return s.broken
}

func (s *fioSession) superseded() {
	s.w.mu.Lock()
	defer s.w.mu.Unlock()
	s.over = true
}

func (s *fioSession) end(limit time.Duration) bool {
	s.once.Do(func() { close(s.stop) })
	select {
	case <-s.ended:
		return true
	case <-time.After(limit):
		return false
	}
}
