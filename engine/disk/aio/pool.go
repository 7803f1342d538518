package aio

import (
	"errors"
	"sync"

	"github.com/holdfast-storage/holdfast"
)

// Pool lends contexts. It makes one when all are lent, up to a limit, and keeps them
// until the process ends: to destroy one the kernel takes tens of milliseconds.
type Pool struct {
	mu   sync.Mutex // a leaf
	free []*Context
	left int // that may still be made
}

// NewPool makes a Pool of up to so many contexts.
func NewPool(most int) *Pool { return &Pool{left: most} }

// Get lends a context to one caller; nil when all are lent, or the kernel has none.
func (p *Pool) Get() *Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		c := p.free[n-1]
		p.free = p.free[:n-1]
		return c
	}
	if p.left == 0 {
		return nil
	}
	c, err := New()
	switch {
	case errors.Is(err, holdfast.Unsupported):
		p.left = 0
		return nil
	case err != nil:
		return nil // others may give some back
	}
	p.left--
	return c
}

// Put takes back what Get gave.
func (p *Pool) Put(c *Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.free = append(p.free, c)
}
