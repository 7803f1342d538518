// Package freeze stops what applications write to the filesystem of a volume that
// is mounted on this node (FIFREEZE), so that a snapshot of the volume is one of a
// clean filesystem, and lets it go on (FITHAW).
//
// It promises:
//   - A filesystem that it has frozen goes on after the limit of the freeze at the
//     latest, whatever becomes of who asked for it; and when this process is killed,
//     soon after the next one of this node has begun: before anything is frozen, a
//     note of it is durable in Config.Dir.
//   - Nobody waits for a kernel that does not answer: calls end with their contexts.
//   - It never freezes what this daemon itself needs (Config.Protect).
//
// It does not know filesystems that are mounted in other mount namespaces only, and
// it may let go on what somebody else froze between a note and its outcome, when the
// process was killed just then.
//
// It owns one goroutine per freeze, until that is over, and one per note of a
// predecessor, until what it names is thawed.
package freeze

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/holdfast-storage/holdfast"
)

const (
	// DefaultLimit is for how long a filesystem is frozen at most unless the caller
	// says otherwise, and MaxLimit whatever it says.
	DefaultLimit = 10 * time.Second
	MaxLimit     = time.Minute
	// retryThaw is how often what does not thaw is tried.
	retryThaw = 200 * time.Millisecond
)

// Config is what a Freezer is made of; Dir and Log are required.
type Config struct {
	Dir string // of notes; lost at a reboot at the latest
	// Protect lists paths of what the daemon writes to: their filesystems are never
	// frozen.
	Protect []string
	Log     *slog.Logger
}

// Freezer freezes and thaws. Its methods may be called from any goroutine.
type Freezer struct {
	cfg Config

	mu     sync.Mutex
	active map[holdfast.VolumeID]*freeze
	closed bool
	dead   chan struct{} // closed when nothing is to be thawed any more
}

// Request asks for a freeze.
type Request struct {
	Volume holdfast.VolumeID
	Device string // where the volume is a block device
	// Token names the freeze: the same again is the same one. It is thawed by it.
	Token string
	// Limit is how long it may last; 0: DefaultLimit.
	Limit time.Duration
}

// New makes a Freezer, and begins to thaw what a predecessor left frozen.
func New(c Config) (*Freezer, error) {
	const op = "prepare to freeze filesystems"
	if c.Dir == "" || c.Log == nil {
		return nil, holdfast.E(op, holdfast.Invalid, "a directory and a log are needed")
	}
	f := &Freezer{cfg: c, active: map[holdfast.VolumeID]*freeze{}, dead: make(chan struct{})}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Other, err)
	}
	notes, err := f.notes()
	if err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	for _, n := range notes {
		left := &freeze{note: n, over: make(chan struct{}), end: make(chan struct{})}
		f.active[n.Volume] = left
		go f.recover(left)
	}
	return f, nil
}

// Freeze freezes the filesystem of a volume; on return nothing writes to it, and
// all that was written is on the device. It says false when none is mounted here.
// Errors: Busy while another freeze lasts; Denied where this daemon's own files are;
// Unavailable when it could not be frozen in time: then it is not, or thawed soon.
func (f *Freezer) Freeze(ctx context.Context, q Request) (bool, error) {
	op := "freeze the filesystem of volume " + string(q.Volume)
	if q.Token == "" {
		return false, holdfast.E(op, holdfast.Invalid, "a token is needed")
	}
	if q.Limit <= 0 {
		q.Limit = DefaultLimit
	}
	q.Limit = min(q.Limit, MaxLimit)
	m, err := f.mountOf(q.Device)
	if m == nil || err != nil {
		return false, holdfast.Wrap(op, err)
	}
	// Most of what is dirty goes to the device before anybody has to wait for it.
	if err := child(ctx, nil, "sync", "-f", m.path); err != nil {
		return false, holdfast.Wrap(op, err)
	}
	x, err := f.begin(q, *m)
	if err != nil {
		return false, holdfast.Wrap(op, err)
	}
	late := time.NewTimer(q.Limit)
	defer late.Stop()
	select {
	case <-x.frozen:
		err = x.err
		if err == nil && x.ended() {
			err = holdfast.E("", holdfast.Unavailable, "the freeze was over already")
		}
		return err == nil, holdfast.Wrap(op, err)
	case <-ctx.Done():
		err = ctx.Err()
	case <-late.C:
		err = context.DeadlineExceeded
	}
	x.stop()
	return false, holdfast.WrapKind(op+": what was written to it does not reach the device in time", holdfast.Unavailable, err)
}

// begin writes the note and starts to freeze.
func (f *Freezer) begin(q Request, m mounted) (*freeze, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch have := f.active[q.Volume]; {
	case f.closed:
		return nil, holdfast.E("", holdfast.Unavailable, "the node is stopping")
	case have != nil && have.note.Token == q.Token && have.frozen != nil:
		return have, nil
	case have != nil:
		return nil, holdfast.E("", holdfast.Busy, "it is frozen for another snapshot; try again")
	}
	dir, err := os.Open(m.path) // to thaw it by, and so that it is not unmounted meanwhile
	if err != nil {
		return nil, holdfast.WrapKind("", holdfast.Unavailable, err)
	}
	n, err := f.writeNote(note{Version: noteVersion, Volume: q.Volume, Token: q.Token, Mount: m.path, Device: m.dev})
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	x := &freeze{note: n, dir: dir, frozen: make(chan struct{}), end: make(chan struct{}), over: make(chan struct{})}
	f.active[q.Volume] = x
	go f.live(x, q.Limit)
	return x, nil
}

// Thaw lets a filesystem go on. Unavailable when the freeze of this token was over
// already: what was done since its begin need not have been done under it.
func (f *Freezer) Thaw(ctx context.Context, id holdfast.VolumeID, token string) error {
	op := "thaw the filesystem of volume " + string(id)
	f.mu.Lock()
	x := f.active[id]
	f.mu.Unlock()
	if x == nil || x.note.Token != token || x.ended() {
		return holdfast.E(op, holdfast.Unavailable, "the freeze was over already")
	}
	x.stop()
	return holdfast.Wrap(op, x.wait(ctx))
}

// Release thaws whatever of a volume is frozen, for its filesystem is about to be
// unmounted; none is fine. Unavailable when that is not done in time.
func (f *Freezer) Release(ctx context.Context, id holdfast.VolumeID) error {
	f.mu.Lock()
	x := f.active[id]
	f.mu.Unlock()
	if x == nil {
		return nil
	}
	x.stop()
	return holdfast.Wrap("thaw the filesystem of volume "+string(id), x.wait(ctx))
}

// Close thaws everything, as long as ctx lasts; what is left is noted for the next
// process.
func (f *Freezer) Close(ctx context.Context) error {
	var errs []error
	for _, x := range f.closing() {
		x.stop()
		errs = append(errs, x.wait(ctx))
	}
	return errors.Join(append(errs, f.finish())...)
}

// Abandon leaves everything as it is, as a crash would, to the next process.
func (f *Freezer) Abandon() error {
	f.closing()
	return f.finish()
}

// closing lets nothing begin any more, and gives what there is.
func (f *Freezer) closing() (all []*freeze) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	for _, x := range f.active {
		all = append(all, x)
	}
	return all
}

// finish ends the goroutines but those that the kernel keeps, and gives up the locks
// of the notes that are left.
func (f *Freezer) finish() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.dead:
		return nil
	default:
	}
	close(f.dead)
	var errs []error
	for _, x := range f.active {
		errs = append(errs, x.close())
	}
	f.active = nil
	return errors.Join(errs...)
}

// freeze is one filesystem that is, or may be, frozen.
type freeze struct {
	note   note
	dir    *os.File      // the mount's root; nil for a predecessor's
	frozen chan struct{} // closed when it is known whether it froze; nil for a predecessor's
	err    error         // why it did not; set before frozen is closed
	once   sync.Once
	end    chan struct{} // closed when it is to be thawed
	over   chan struct{} // closed when it is
}

// close closes the files.
func (x *freeze) close() error {
	err := x.note.file.Close()
	if x.dir != nil {
		err = errors.Join(err, x.dir.Close())
	}
	return err
}

func (x *freeze) stop() { x.once.Do(func() { close(x.end) }) }

// ended says whether somebody, or the watchdog, has ended it.
func (x *freeze) ended() bool {
	select {
	case <-x.end:
		return true
	default:
		return false
	}
}

func (x *freeze) wait(ctx context.Context) error {
	select {
	case <-x.over:
		return nil
	case <-ctx.Done():
		return holdfast.WrapKind("the filesystem at "+x.note.Mount+" is not thawed yet", holdfast.Unavailable, ctx.Err())
	}
}

// live is a freeze from begin to end.
func (f *Freezer) live(x *freeze, limit time.Duration) {
	watchdog := time.AfterFunc(limit, func() {
		if !x.ended() {
			f.cfg.Log.Warn("a filesystem was frozen for as long as it may be, and is thawed", "volume", string(x.note.Volume), "path", x.note.Mount, "limit", limit)
		}
		x.stop()
	})
	defer watchdog.Stop()
	// A process of its own, as it writes to the device, which this one serves: a
	// thread that waits for that would keep this process from ending when it is
	// killed. The child keeps the note locked: the next process knows when it has
	// ended.
	x.err = child(context.Background(), []*os.File{x.dir, x.note.file}, "fsfreeze", "--freeze", "/proc/self/fd/3")
	close(x.frozen)
	if x.err == nil {
		select {
		case <-x.end:
		case <-f.dead:
			return
		}
		if !f.thaw(x, func() error { return thaw(x.dir) }) {
			return
		}
	}
	x.stop()
	f.forget(x)
}

// recover thaws what a predecessor may have left frozen.
func (f *Freezer) recover(x *freeze) {
	n := x.note
	done := f.thaw(x, func() error {
		if err := n.lock(); err != nil { // its child may still be about to freeze it
			return err
		}
		m, err := f.mountByID(n.Device)
		if m == nil || err != nil {
			return err // it is not mounted any more
		}
		dir, err := os.Open(m.path)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		return thaw(dir)
	})
	if !done {
		return
	}
	f.cfg.Log.Warn("a filesystem that a predecessor of this daemon may have frozen is thawed", "volume", string(n.Volume), "path", n.Mount)
	x.stop()
	f.forget(x)
}

// thaw calls do until it succeeds; false when it is left to the next process.
func (f *Freezer) thaw(x *freeze, do func() error) bool {
	for told := false; ; {
		err := do()
		if err == nil {
			return true
		}
		if !told {
			told = true
			f.cfg.Log.Error("a filesystem cannot be thawed; it is tried again", "volume", string(x.note.Volume), "path", x.note.Mount, "err", err)
		}
		select {
		case <-time.After(retryThaw):
		case <-f.dead:
			return false
		}
	}
}

// forget removes the note of what is thawed.
func (f *Freezer) forget(x *freeze) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.active == nil {
		return // abandoned meanwhile: its files are closed
	}
	err := x.note.remove()
	if x.dir != nil {
		err = errors.Join(err, x.dir.Close())
	}
	if err != nil {
		// The next process thaws what is not frozen, which does nothing.
		f.cfg.Log.Warn("a note of a freeze cannot be removed", "file", x.note.path, "err", err)
	}
	delete(f.active, x.note.Volume)
	close(x.over)
}
