package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

// rows is a PostgreSQL that commits numbered rows, one after the other. Every
// acknowledged commit is noted outside the volume.
type rows struct {
	net    netcluster.Network
	pg     *netcluster.Postgres
	ledger *netcluster.Ledger
	dir    string // for sockets

	mu    sync.Mutex
	count int // sessions
	made  bool
}

// server starts the database of a place. Errors: Unavailable.
func (w *rows) server(ctx context.Context, at place) (*netcluster.Postgres, *netcluster.Process, error) {
	w.mu.Lock()
	w.count++
	sockets := filepath.Join(w.dir, fmt.Sprint(w.count))
	w.mu.Unlock()
	pg, err := w.pg.At(sockets)
	if err != nil {
		return nil, nil, err
	}
	data := netcluster.DataOf(at.path)
	// The node that wrote it is another machine, or has died.
	if err := os.Remove(filepath.Join(data, "postmaster.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, holdfast.WrapKind("start the database", holdfast.Unavailable, err)
	}
	p, err := pg.Start(ctx, w.net, at.m.place(), data)
	return pg, p, holdfast.WrapKind("start the database", holdfast.Unavailable, err)
}

// make makes the database; only without faults.
func (w *rows) make(ctx context.Context, at place) error {
	if err := w.pg.Create(ctx, netcluster.DataOf(at.path)); err != nil {
		return err
	}
	pg, p, err := w.server(ctx, at)
	if err != nil {
		return err
	}
	_, err = pg.Query(ctx, netcluster.Table)
	p.Stop(syscall.SIGINT, 10*time.Second)
	return err
}

// check compares the rows that are there with those that must be there.
func (w *rows) check(ctx context.Context, pg *netcluster.Postgres) error {
	var found string
	err := netcluster.Until(ctx, 15*time.Second, "ask the database", func(ctx context.Context) (bool, error) {
		var err error
		found, err = pg.Query(ctx, netcluster.VerifyRows) // it cannot connect while the volume pauses
		return err == nil, err
	})
	if err != nil {
		return holdfast.WrapKind("read rows", holdfast.Unavailable, err)
	}
	missing, _, err := w.ledger.Compare(found)
	if err == nil && len(missing) > 0 {
		err = holdfast.E("compare rows", holdfast.Corrupt, fmt.Sprintf("%d of %d acknowledged rows are lost; the first and last are %d and %d",
			len(missing), w.ledger.Count(), missing[0], missing[len(missing)-1]))
	}
	return err
}

func (w *rows) verify(ctx context.Context, at place) error {
	if !w.made {
		w.made = true
		return w.make(ctx, at)
	}
	pg, p, err := w.server(ctx, at)
	if err != nil {
		return err
	}
	defer p.Stop(syscall.SIGINT, 20*time.Second)
	return w.check(ctx, pg)
}

func (w *rows) begin(ctx context.Context, at place) (session, error) {
	pg, p, err := w.server(ctx, at)
	if err != nil {
		return nil, err
	}
	if err := w.check(ctx, pg); err != nil {
		go p.Kill()
		return nil, err
	}
	writer, err := netcluster.StartWriter(context.WithoutCancel(ctx), pg, w.ledger)
	if err != nil {
		go p.Kill()
		return nil, err
	}
	s := &rowSession{writer: writer, server: p, ended: make(chan struct{})}
	go s.watch()
	return s, nil
}

type rowSession struct {
	writer *netcluster.Writer
	server *netcluster.Process
	ended  chan struct{}
	why    error // after ended
}

// watch ends the session when its writer has ended.
func (s *rowSession) watch() {
	<-s.writer.Done()
	s.why = s.writer.Err()
	if s.why != nil {
		s.server.Kill() // perhaps half dead
	} else {
		s.server.Stop(syscall.SIGINT, 5*time.Second)
	}
	close(s.ended)
}

func (s *rowSession) done() <-chan struct{} { return s.ended }

func (s *rowSession) err() error {
	select {
	case <-s.ended:
		return s.why
	default:
		return nil
	}
}

// superseded needs nothing: a row that is acknowledged from now on is missed at
// the next comparison.
func (s *rowSession) superseded() {}

func (s *rowSession) end(limit time.Duration) bool {
	s.writer.Halt()
	select {
	case <-s.ended:
		return true
	case <-time.After(limit):
		go s.server.Kill() // it need not end in good order
		return false
	}
}
