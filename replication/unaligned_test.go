package replication

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

const memBytes = 4 << 20

// memory answers the replicas' messages from real content.
type memory struct {
	g       *rig
	content [2][]byte
}

func newMemory(t *testing.T) *memory {
	g := served(t, states{in, in}, func(c *Config) { c.Record.SizeBytes, c.Record.Spec.SizeBytes = memBytes, memBytes })
	return &memory{g: g, content: [2][]byte{make([]byte, memBytes), make([]byte, memBytes)}}
}

// serve does what was sent, one message of each replica at a time.
func (m *memory) serve() {
	for again := true; again; {
		again = false
		for i := range 2 {
			c := m.g.conn(i)
			if len(c.sent) > 0 {
				msg := c.sent[0]
				c.sent = slices.Delete(c.sent, 0, 1)
				m.do(i, msg)
				again = true
			}
		}
	}
}

func (m *memory) do(i int, msg *Message) {
	where := m.content[i]
	a := &Message{Type: msg.Type, Answer: true, ID: msg.ID, Epoch: msg.Epoch}
	switch msg.Type {
	case MsgWrite:
		copy(where[msg.Offset:], msg.Buf.B)
	case MsgTrim:
		clear(where[msg.Offset : msg.Offset+msg.Length])
	case MsgRead:
		if a.Buf = msg.Buf.Retain(); a.Buf == nil {
			a.Buf = buf.Get(int(msg.Length))
		}
		copy(a.Buf.B, where[msg.Offset:])
	}
	msg.Buf.Release()
	m.g.p.OnMessage(m.g.conn(i), a)
}

// onlyOurs fails unless the test has the one reference to a request's buffer.
func onlyOurs(t interface{ Fatal(...any) }, b *buf.Buf) {
	if b == nil {
		return
	}
	defer func() {
		if recover() == nil {
			t.Fatal("somebody still holds the buffer of a request that is over")
		}
	}()
	b.Release()
	b.Retain() // panics after the last reference is gone
}

func TestRequestsNeedNotBeWholeBlocks(t *testing.T) {
	m := newMemory(t)
	model := make([]byte, memBytes)
	rapid.Check(t, func(t *rapid.T) {
		type pending struct {
			res *result
			x   holdfast.Extent
		}
		var open []pending
		for range rapid.IntRange(1, 4).Draw(t, "operations") {
			op := rapid.SampledFrom([]Op{OpRead, OpWrite, OpTrim}).Draw(t, "op")
			n := rapid.SampledFrom([]int64{512, 1536, 4096, 12288, 70144, buf.Max - 512, buf.Max}).Draw(t, "length")
			x := holdfast.Extent{Offset: rapid.Int64Range(0, (memBytes-n)/512).Draw(t, "offset") * 512, Length: n}
			if slices.ContainsFunc(open, func(o pending) bool { return o.x.Overlaps(x) }) {
				continue // what wins is not known
			}
			fill := rapid.Byte().Draw(t, "fill")
			res := m.submit(op, x, fill)
			open = append(open, pending{res, x})
			switch op {
			case OpWrite:
				copy(model[x.Offset:], bytes.Repeat([]byte{fill}, int(n)))
			case OpTrim:
				clear(model[x.Offset:x.End()])
			}
		}
		m.serve()
		for _, o := range open {
			if !o.res.done || o.res.err != nil {
				t.Fatalf("%v: done %v, error %v", o.x, o.res.done, o.res.err)
			}
			if o.res.r.Op == OpRead && !bytes.Equal(o.res.r.Buf.B, model[o.x.Offset:o.x.End()]) {
				t.Fatalf("%v reads something else", o.x)
			}
			onlyOurs(t, o.res.r.Buf)
		}
		if !bytes.Equal(m.content[0], model) || !bytes.Equal(m.content[1], model) {
			t.Fatal("the replicas do not hold what was written")
		}
		if len(m.g.p.locks.held)+len(m.g.p.locks.waiting)+len(m.g.p.inflight) > 0 {
			t.Fatal("something is still locked or in flight")
		}
	})
}

func (m *memory) submit(op Op, x holdfast.Extent, fill byte) *result {
	res := &result{r: &Request{Op: op, Offset: x.Offset, Length: x.Length}}
	if op != OpTrim {
		res.r.Buf = buf.Get(int(x.Length))
		copy(res.r.Buf.B, bytes.Repeat([]byte{fill}, int(x.Length)))
	}
	res.r.Done = func(_ *Request, err error) { res.done, res.err = true, err }
	m.g.p.Submit(res.r)
	return res
}

// Whatever is under way when the primary ends is answered, once, and lets go of
// its buffers and ranges.
func TestTheEndLetsEverythingGo(t *testing.T) {
	for name, sent := range map[string]int{"at once": 0, "after some": 3, "after many": 9} {
		m := newMemory(t)
		var all []*result
		for _, x := range []holdfast.Extent{{Offset: 0, Length: 4096}, {Offset: 512, Length: 512}, {Offset: 0, Length: 8192}, {Offset: 1024, Length: 9216}, {Offset: 1 << 20, Length: 4096}} {
			for _, op := range []Op{OpWrite, OpRead, OpTrim} {
				all = append(all, m.submit(op, x, 7))
			}
		}
		flush := m.g.submit(OpFlush, holdfast.Extent{})
		for range sent {
			for i := range 2 {
				if c := m.g.conn(i); len(c.sent) > 0 {
					msg := c.sent[0]
					c.sent = c.sent[1:]
					m.do(i, msg)
				}
			}
		}
		m.g.p.Abort()
		for i := range 2 { // what was sent and not answered
			for _, msg := range m.g.conn(i).sent {
				msg.Buf.Release()
			}
		}
		for k, res := range append(all, flush) {
			if !res.done {
				t.Errorf("%s: request %d is never answered", name, k)
				continue
			}
			onlyOurs(t, res.r.Buf)
		}
		if !m.g.ended || len(m.g.p.locks.held)+len(m.g.p.locks.waiting) > 0 {
			t.Errorf("%s: ended %v, %d ranges held, %d waited for", name, m.g.ended, len(m.g.p.locks.held), len(m.g.p.locks.waiting))
		}
	}
}
