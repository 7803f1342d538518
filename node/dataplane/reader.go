package dataplane

import (
	"bufio"
	"io"
	"sync"

	"github.com/holdfast-storage/holdfast/replication/wire"
)

// readBuffers keeps the buffers of idle connections for busy ones: a thousand
// idle volumes would hold half a gigabyte otherwise.
type readBuffers struct{ pool sync.Pool }

func (b *readBuffers) get(from io.Reader) *bufio.Reader {
	if r, _ := b.pool.Get().(*bufio.Reader); r != nil {
		r.Reset(from)
		return r
	}
	return bufio.NewReaderSize(from, wire.ReaderSize)
}

func (b *readBuffers) put(r *bufio.Reader) {
	r.Reset(nil)
	b.pool.Put(r)
}

// await waits until r has something to decode, or the connection has ended. A
// buffer is not held while waiting, so the reader may be another one on return.
// Connections that do not show their socket keep theirs: s is nil.
func (b *readBuffers) await(s *socketReader, r *bufio.Reader) *bufio.Reader {
	if s == nil || r.Buffered() > 0 {
		return r
	}
	r.Reset(s)
	s.lender, s.lent = b, r
	_ = s.raw.Read(s.look) // why it failed the read to come says
	if r, s.lent = s.lent, nil; r == nil {
		r = b.get(s)
	}
	return r
}
