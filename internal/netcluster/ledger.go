package netcluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// Ledger notes, outside the volume, every commit that the database
// acknowledged: what must be there after every failure.
type Ledger struct {
	file *os.File

	mu    sync.Mutex
	acked []int64
	next  int64
	last  time.Time     // of the newest acknowledgement, or when watching began
	worst time.Duration // longest wait for one since watching began
}

// NewLedger begins an empty one.
func NewLedger(path string) (*Ledger, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, holdfast.Wrap("make ledger", err)
	}
	return &Ledger{file: f, next: 1}, nil
}

// Close closes its file.
func (l *Ledger) Close() { _ = l.file.Close() }

// take gives the number of the next row. A number that was never acknowledged is
// not used again: its row may or may not be there.
func (l *Ledger) take() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	return l.next - 1
}

// ack notes that row n is committed.
func (l *Ledger) ack(n int64, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked = append(l.acked, n)
	if !l.last.IsZero() {
		l.worst = max(l.worst, now.Sub(l.last))
	}
	l.last = now
	_, err := fmt.Fprintln(l.file, n)
	return holdfast.Wrap("write ledger", err)
}

// WatchStall begins a new measurement of the longest wait between commits.
func (l *Ledger) WatchStall(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last, l.worst = now, 0
}

// Stall is the longest wait since WatchStall, the present one included.
func (l *Ledger) Stall(now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(l.worst, now.Sub(l.last))
}

// Count is how many commits were acknowledged.
func (l *Ledger) Count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.acked)
}

// Compare checks the rows found, in any order, against the ledger: all that
// were acknowledged must be among them. unacked counts the others, committed
// without anybody having been told.
func (l *Ledger) Compare(found string) (missing []int64, unacked int, err error) {
	return l.CompareFirst(l.Count(), found)
}

// CompareFirst is Compare with what was acknowledged first, so many rows.
func (l *Ledger) CompareFirst(acked int, found string) (missing []int64, unacked int, err error) {
	there := map[int64]bool{}
	for line := range strings.Lines(found) {
		n, err := strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		if err != nil {
			return nil, 0, holdfast.Wrap("read rows", err)
		}
		there[n] = true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.acked[:acked] {
		if !there[n] {
			missing = append(missing, n)
		}
		delete(there, n)
	}
	return missing, len(there), nil
}

// Writer commits one row after the other until stopped or until the database
// is gone.
type Writer struct {
	stop context.CancelFunc
	done chan struct{} // closed when it has ended
	err  error         // how; after done
}

// StartWriter begins to write through psql, which prints a row's number when
// its commit is acknowledged.
func StartWriter(ctx context.Context, p *Postgres, l *Ledger) (*Writer, error) {
	ctx, stop := context.WithCancel(ctx)
	cmd := p.Command(ctx, "psql", "-qAtX", "-v", "ON_ERROR_STOP=1")
	// A server whose volume pauses accepts it late; one that is gone refuses at once.
	cmd.Env = append(cmd.Env, "PGCONNECT_TIMEOUT=30")
	cmd.SysProcAttr.Setpgid = true
	cmd.WaitDelay = 2 * time.Second
	var said strings.Builder
	cmd.Stderr = &said
	in, err := cmd.StdinPipe()
	if err != nil {
		stop()
		return nil, holdfast.Wrap("start writer", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		stop()
		return nil, holdfast.Wrap("start writer", err)
	}
	if err := cmd.Start(); err != nil {
		stop()
		return nil, holdfast.Wrap("start writer", err)
	}
	l.WatchStall(time.Now())
	w := &Writer{stop: stop, done: make(chan struct{})}
	go func() {
		err := write(ctx, in, out, l)
		_ = in.Close()
		_ = cmd.Wait() // ends with its input or by ctx
		if err != nil && ctx.Err() == nil {
			w.err = holdfast.E("write rows", holdfast.Unavailable, strings.TrimSpace(err.Error()+" "+said.String()))
		}
		close(w.done)
	}()
	return w, nil
}

// write is the loop: one row, its acknowledgement, the next row.
func write(ctx context.Context, in io.Writer, out io.Reader, l *Ledger) error {
	answers := bufio.NewScanner(out)
	for ctx.Err() == nil {
		n := l.take()
		if _, err := io.WriteString(in, insert(n)); err != nil {
			return err
		}
		if !answers.Scan() {
			return fmt.Errorf("the database is gone while row %d was being committed: %w", n, errors.Join(answers.Err(), io.ErrUnexpectedEOF))
		}
		if answers.Text() != strconv.FormatInt(n, 10) {
			return fmt.Errorf("the database answered %q to row %d", answers.Text(), n)
		}
		if err := l.ack(n, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// Done is closed when it has ended; Err says how then: nil when it was stopped.
func (w *Writer) Done() <-chan struct{} { return w.done }

// Err says how it has ended; nil while it goes on.
func (w *Writer) Err() error {
	select {
	case <-w.done:
		return w.err
	default:
		return nil
	}
}

// Halt stops the writer without waiting for it.
func (w *Writer) Halt() { w.stop() }

// End stops the writer and gives the error with which it had ended before.
func (w *Writer) End() error {
	w.stop()
	<-w.done
	return w.err
}
