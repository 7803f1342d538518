package vmtest

import (
	"encoding/json"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// event is one of those that go doc test2json describes.
type event struct {
	Action string
	Test   string
	Output string
}

// Report turns the output of a test program that runs with -test.v=test2json in
// the machine into subtests of t, each as soon as it has ended, and fails t when
// no test ended, or one did not. Lines that belong to no test are logged.
func Report(t *testing.T, m *Machine) {
	t.Helper()
	cmd := exec.Command("go", "tool", "test2json")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		for line := range m.Lines() {
			// If test2json is gone the decoder below says so.
			_, _ = io.WriteString(in, line+"\n")
		}
		in.Close()
	}()
	r := results{t: t, open: map[string]*strings.Builder{}}
	d := json.NewDecoder(out)
	for {
		var e event
		if err := d.Decode(&e); err != nil {
			if err != io.EOF {
				t.Errorf("test2json: %v", err)
			}
			break
		}
		r.take(e)
	}
	<-fed
	if err := cmd.Wait(); err != nil {
		t.Errorf("test2json: %v", err)
	}
	r.end()
}

type results struct {
	t     *testing.T
	open  map[string]*strings.Builder // tests that run: what they wrote
	other strings.Builder
	ended int
}

func (r *results) take(e event) {
	switch e.Action {
	case "run":
		r.open[e.Test] = &strings.Builder{}
	case "output":
		if b := r.open[e.Test]; b != nil {
			b.WriteString(e.Output)
		} else {
			r.other.WriteString(e.Output)
		}
	case "pass", "fail", "skip":
		if b := r.open[e.Test]; b != nil {
			delete(r.open, e.Test)
			r.result(e, b.String())
		}
	}
}

// result tells of one test. One with parts fails by its parts, which were told
// before it.
func (r *results) result(e event, output string) {
	r.ended++
	r.t.Run(e.Test, func(t *testing.T) {
		t.Log(output)
		switch e.Action {
		case "fail":
			t.Error("failed in the virtual machine")
		case "skip":
			t.Error("skipped in the virtual machine: nothing is to be skipped")
		}
	})
}

func (r *results) end() {
	for name, b := range r.open {
		r.t.Errorf("%s did not end; what it wrote:\n%s", name, b.String())
	}
	if r.ended == 0 {
		r.t.Error("no test ended in the virtual machine")
	}
	if r.t.Failed() {
		r.t.Logf("output of no test:\n%s", r.other.String())
	}
}
