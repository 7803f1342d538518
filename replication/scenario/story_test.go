package scenario

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/replication"
	"github.com/holdfast-storage/holdfast/replication/sim"
)

//go:embed stories
var stories embed.FS

const seeds = 8

// TestStories tells every story; TestStories/NAME is stories/NAME.txt.
func TestStories(t *testing.T) {
	files, err := fs.Glob(stories, "stories/*.txt")
	if err != nil || len(files) < 60 {
		t.Fatalf("%d stories, error %v", len(files), err)
	}
	for _, f := range files {
		text, err := stories.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(path.Base(f), ".txt"), func(t *testing.T) {
			if !strings.HasPrefix(string(text), "# ") {
				t.Error("the story does not begin by saying what went wrong elsewhere and what must be true")
			}
			for seed := range uint64(seeds) {
				s := &story{seed: seed + 1, labels: map[string]*sim.IO{}}
				if err := s.tell(string(text)); err != nil {
					t.Fatalf("seed %d: %v\n%s", s.seed, err, strings.Join(s.trace(), "\n"))
				}
			}
		})
	}
}

// TestStoriesFail shows that a story can fail: each of these is not true.
func TestStoriesFail(t *testing.T) {
	for _, text := range []string{
		"cluster\nattach n0\nwrite A 0\nread 0 = 0",
		"cluster\nattach n0\nwrite A 0\nwrite B 0\nread 0 = A",
		"cluster\nattach n0\nwrite A 0 waits",
		"cluster\nattach n0\nattach n0 refused\nattach n1",
		"cluster\nattach n0\nstill in-sync n0",
		"cluster\nattach n0\nkill n1\nstill in-sync n0\nthe end",
		"cluster\nattach n0\nisolate n0\nwait 5s\nread 0 = 0",
		"cluster\nattach n0\nended n0",
		"cluster\nattach n0\nwrite A 0\ntake s\nholds n1 s 0 = 0",
		"cluster\nattach n0\ntake s\ndelete s\ngone s\nholds n1 s 0 = 0",
		"cluster\nattach n0\nhold t\nunhold u",
		"cluster\nattach n0\ntake s\nwant q\nstill-wanted s",
		"cluster\nattach n0\nwrite A 0\ndisk n1 0 = 0",
		"cluster\nattach n0\nkill n1\nin-sync n0\nepoch note\nstart n1\nhealthy\nepoch same",
		"cluster\nattach n0\nkill n1\nwrite A 0 9\nstart n1\nhealthy\nrepaired n1 at-most 8",
		"cluster\nattach n0\nfrobnicate",
		"attach n0",
	} {
		s := &story{seed: 1, labels: map[string]*sim.IO{}}
		if s.tell(text) == nil {
			t.Errorf("this story is told without complaint:\n%s", text)
		}
	}
}

// story is one story being told.
type story struct {
	seed   uint64
	s      *sim.Script
	labels map[string]*sim.IO
	at     holdfast.NodeID // where the volume was attached last
	epoch  holdfast.Epoch
	ends   string // "": healed first; otherwise as it is, "served" or "unserved"
}

func (s *story) trace() []string {
	if s.s == nil {
		return nil
	}
	return s.s.Trace()
}

// tell tells all lines, and checks what every story must leave behind.
func (s *story) tell(text string) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if err := s.do(words); err != nil {
			return fmt.Errorf("line %d, %q: %w", i+1, strings.TrimSpace(line), err)
		}
	}
	switch s.ends {
	case "":
		return s.s.Finish()
	case "unserved":
		return s.s.Linearizable()
	}
	return s.s.Check()
}

// do is one line.
func (s *story) do(w []string) error {
	verb, args := w[0], w[1:]
	if s.s == nil && verb != "cluster" {
		return errors.New("a story begins with its cluster")
	}
	for _, part := range []func(string, []string) (bool, error){s.setting, s.access, s.faults, s.control, s.snapshots, s.expect} {
		if known, err := part(verb, args); known {
			return err
		}
	}
	return errors.New("nobody knows what this means")
}

func (s *story) setting(verb string, a []string) (bool, error) {
	switch verb {
	case "cluster":
		return true, s.cluster(a)
	case "attach":
		return true, s.attach(node(a[0]), append(a, "")[1])
	case "detach":
		s.s.Release(node(a[0]))
		return true, s.soon("not detached", func() bool { st, ok := s.s.Status(node(a[0])); return !ok || st.State == "ended" })
	case "wait":
		d, err := time.ParseDuration(a[0])
		s.s.Run(d)
		return true, err
	case "the":
		s.ends = append(a, "served")[1]
		return true, nil
	}
	return false, nil
}

func (s *story) cluster(a []string) error {
	cfg := sim.Config{Seed: s.seed, Hosts: 3, Replicas: 2, Blocks: 64, MinInSync: 1, Depth: 64, Heal: time.Minute, Trace: true}
	for _, x := range a {
		k, v, _ := strings.Cut(x, "=")
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil {
			return err
		}
		switch k {
		case "hosts":
			cfg.Hosts = int(n)
		case "replicas":
			cfg.Replicas = int(n)
		case "blocks":
			cfg.Blocks = n
		case "min-in-sync":
			cfg.MinInSync = int(n)
		case "slow":
			cfg.Protocol.SlowFor, cfg.Protocol.SlowHoldOff = time.Duration(n)*time.Second, 12*time.Second
			cfg.Protocol.IOTimeout = time.Minute
		case "silent":
			cfg.Protocol.SilentAfter = time.Duration(n) * time.Second
		case "window":
			cfg.Protocol.ReadWindow = time.Duration(n) * time.Second
		case "piece":
			cfg.Protocol.RepairChunk = n * holdfast.BlockSize
		case "progress":
			cfg.Protocol.ProgressEvery = time.Duration(n) * time.Millisecond
		case "repair":
			cfg.Protocol.RepairRate = n
		default:
			return fmt.Errorf("a cluster has no %s", k)
		}
	}
	s.s = sim.NewScript(cfg)
	s.s.Run(100 * time.Millisecond)
	return nil
}

func (s *story) attach(n holdfast.NodeID, how string) error {
	s.at = n
	force := how == "force"
	var refused error
	again, tries := true, 0
	var try func()
	try = func() {
		again = false
		s.s.Attach(n, force, func(err error) {
			refused, again = err, true
			if how == "later" && err != nil && tries < 20 {
				tries++ // the answer of the metadata store may have been lost
				try()
			}
		})
	}
	switch how {
	case "later":
		try()
		return nil
	case "refused":
		try()
		if !s.s.Until(5*time.Second, func() bool { return again }) || refused == nil {
			return errors.New("it is granted")
		}
		return nil
	}
	for end := s.s.Now() + 30*time.Second; s.s.Now() < end; s.s.Run(200 * time.Millisecond) {
		if s.s.Serving(n) {
			return nil
		}
		if again {
			try()
		}
		s.s.Until(5*time.Second, func() bool { return again })
	}
	return fmt.Errorf("not served: %v; %s", refused, s.describe(n))
}

func (s *story) describe(n holdfast.NodeID) string {
	st, ok := s.s.Status(n)
	if !ok {
		return "there is no primary"
	}
	return fmt.Sprintf("primary %s, error %v, epoch %d, waits for %q", st.State, st.Err, st.Epoch, st.WaitingFor)
}

// soon waits for what must come, for half a minute.
func (s *story) soon(what string, is func() bool) error {
	if s.s.Until(30*time.Second, is) {
		return nil
	}
	return errors.New(what + ": " + s.describe(s.at))
}

func node(name string) holdfast.NodeID { return holdfast.NodeID(name) }

// on takes "on N" from the end of a line: where an I/O happens.
func (s *story) on(a []string) ([]string, holdfast.NodeID) {
	if n := len(a); n >= 2 && a[n-2] == "on" {
		return a[:n-2], node(a[n-1])
	}
	return a, s.at
}

func (s *story) access(verb string, a []string) (bool, error) {
	a, at := s.on(a)
	switch verb {
	case "write":
		return true, s.write(a, at)
	case "busy":
		return true, s.busy(a[0], at)
	case "trim":
		_, err := s.io(at, sim.Access{Op: replication.OpTrim, First: number(a[0]), Blocks: number(a[1])})
		return true, err
	case "flush":
		if len(a) == 0 {
			_, err := s.io(at, sim.Access{Op: replication.OpFlush})
			return true, err
		}
		return true, s.begin(at, a[1], a[0], sim.Access{Op: replication.OpFlush})
	case "read":
		return true, s.read(a, at)
	case "answered":
		io := s.labels[a[0]]
		return true, s.soon("not answered", func() bool { return io.Done && io.Err == nil })
	case "failed":
		io := s.labels[a[0]]
		return true, s.soon("it has not failed", func() bool { return io.Done && io.Err != nil })
	case "unanswered":
		d, err := time.ParseDuration(append(a, "5s")[1])
		if err == nil && s.s.Until(d, func() bool { return s.labels[a[0]].Done }) {
			err = fmt.Errorf("it is answered: %w", s.labels[a[0]].Err)
		}
		return true, err
	}
	return false, nil
}

// busy writes for a while, about forty times a second, and waits for nothing.
func (s *story) busy(span string, at holdfast.NodeID) error {
	d, err := time.ParseDuration(span)
	i := int64(0)
	for end := s.s.Now() + d; err == nil && s.s.Now() < end; i++ {
		_, err = s.s.Submit(at, sim.Access{Op: replication.OpWrite, First: 32 + i%16, Blocks: 1})
		s.s.Run(25 * time.Millisecond)
	}
	return err
}

func number(w string) int64 {
	n, err := strconv.ParseInt(w, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

// io is an I/O that must be answered well.
func (s *story) io(at holdfast.NodeID, a sim.Access) (*sim.IO, error) {
	io, err := s.s.Submit(at, a)
	if err != nil {
		return nil, err
	}
	if err := s.soon("not answered", func() bool { return io.Done }); err != nil {
		return io, err
	}
	return io, io.Err
}

// begin is an I/O that is answered later, or must not be answered for a while.
func (s *story) begin(at holdfast.NodeID, label, how string, a sim.Access) error {
	io, err := s.s.Submit(at, a)
	s.labels[label] = io
	if err == nil && how == "waits" && s.s.Until(8*time.Second, func() bool { return io.Done }) {
		return fmt.Errorf("it is answered, error %v", io.Err)
	}
	return err
}

func (s *story) write(a []string, at holdfast.NodeID) error {
	x := sim.Access{Op: replication.OpWrite, First: number(a[1]), Blocks: 1}
	how := ""
	for _, w := range a[2:] {
		switch w {
		case "fua":
			x.FUA = true
		case "later", "waits":
			how = w
		default:
			x.Blocks = number(w)
		}
	}
	if how != "" {
		return s.begin(at, a[0], how, x)
	}
	io, err := s.io(at, x)
	s.labels[a[0]] = io
	return err
}

func (s *story) read(a []string, at holdfast.NodeID) error {
	if a[0] == "waits" {
		return s.begin(at, a[1], "waits", sim.Access{Op: replication.OpRead, First: number(a[2]), Blocks: number(a[3])})
	}
	x := sim.Access{Op: replication.OpRead, First: number(a[0]), Blocks: 1}
	if a[1] != "=" {
		x.Blocks = number(a[1])
		a = a[1:]
	}
	io, err := s.io(at, x)
	for b := x.First; err == nil && b < x.First+x.Blocks; b++ {
		found := false
		for _, l := range strings.Split(a[2], "|") {
			found = found || io.Same(b, s.labels[l])
		}
		if !found {
			return fmt.Errorf("block %d reads otherwise", b)
		}
	}
	return err
}
