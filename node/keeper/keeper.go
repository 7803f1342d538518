package keeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device/blockdev"
	"github.com/holdfast-storage/holdfast/node/reclaim"
)

// Config says what a keeper starts.
type Config struct {
	// Path is the daemon's program, looked at anew at each start, and Args its
	// arguments without the program's name.
	Path string
	Args []string
	// Try are arguments with which a new version of the program must end with
	// status 0 before the daemon that runs is stopped for it: such as "version".
	Try []string
	// HandOverWait bounds how long a daemon may take to hand over; then it is
	// killed, which the next one copes with as well. Default 10 s.
	HandOverWait time.Duration
	// StopWait bounds how long it may take to end; then it is killed. Default 50 s.
	StopWait time.Duration
	// StatusFile, if set, tells others about this keeper: see Status.
	StatusFile string

	Stdout *os.File
	Stderr *os.File
	Log    *slog.Logger
}

const (
	// A daemon that ends by itself after it has worked for a while is replaced at
	// once: I/O waits for the next one. firstPause is before the next start if it had
	// not; it doubles up to lastPause.
	firstPause   = 50 * time.Millisecond
	lastPause    = 5 * time.Second
	aWhile       = time.Second
	handOverWait = 10 * time.Second
	stopWait     = 50 * time.Second
	tryWait      = 20 * time.Second
	// A daemon that was killed may not be gone at once: a thread of it that waits
	// in the kernel for one of its own devices can only be freed by its successor,
	// which is started after this time. Locks keep the two apart.
	dyingEvery = 500 * time.Millisecond
	dyingTimes = 4
)

// HandOver is the signal to a daemon to leave its devices as they are and end.
const HandOver = syscall.SIGUSR1

// keeper is the state of Run.
type keeper struct {
	cfg Config

	mu         sync.Mutex
	held       map[string]kept
	status     Status
	readySince time.Time // if it is
}

type kept struct {
	note []byte
	fd   int
}

// Run starts the daemon and keeps it running until ctx ends or it has ended by
// SIGTERM or SIGINT, which are passed on; SIGHUP replaces it by the program that
// now stands at Path. The result is the daemon's exit status.
func Run(ctx context.Context, cfg Config) (status int, err error) {
	if cfg.HandOverWait <= 0 {
		cfg.HandOverWait = handOverWait
	}
	if cfg.StopWait <= 0 {
		cfg.StopWait = stopWait
	}
	k := &keeper{cfg: cfg, held: map[string]kept{}, status: Status{Keeper: os.Getpid()}}
	defer k.dropAll()
	defer k.forgetStatus()
	// It must start the next daemon when memory can only be had by writing to that
	// daemon's devices; the daemon inherits what children do.
	reclaim.Avoid().Tell(cfg.Log, "keeper")
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)
	var pause time.Duration
	for {
		end, err := k.life(ctx, signals)
		switch {
		case err != nil && !k.holdsAny():
			return 1, err
		case err == nil && end.handedOver && !end.wanted:
			pause = 0
			continue
		case err == nil && (end.wanted || end.status == 0 || !end.ready && !end.killed && !k.holdsAny()):
			return end.status, nil
		}
		pause = pauseAfter(end.worked, pause)
		k.cfg.Log.Error("the daemon ended by itself and is started again", "status", end.status, "cause", end.cause, "err", err, "pause", pause, "held", len(k.held))
		if !wait(ctx, signals, pause) {
			return 0, nil
		}
	}
}

// pauseAfter is the pause after a daemon that had worked for so long, and before
// whose start there was one, too.
func pauseAfter(worked, before time.Duration) time.Duration {
	if worked >= aWhile {
		return 0
	}
	return min(max(2*before, firstPause), lastPause)
}

// wait pauses; false when the keeper is to end meanwhile.
func wait(ctx context.Context, signals <-chan os.Signal, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			return true
		case <-ctx.Done():
			return false
		case s := <-signals:
			if s != syscall.SIGHUP { // the new program is started anyway
				return false
			}
		}
	}
}

// ending is how a daemon came to its end.
type ending struct {
	status     int
	cause      string
	wanted     bool // the keeper was told to end
	handedOver bool // the keeper asked for it
	ready      bool // it had worked
	killed     bool // by a signal: it is not its configuration that keeps it from working
	worked     time.Duration
}

// life runs one daemon from start to end.
func (k *keeper) life(ctx context.Context, signals <-chan os.Signal) (ending, error) {
	conn, cmd, err := k.start()
	if err != nil {
		return ending{}, holdfast.WrapKind("start the daemon", holdfast.Unavailable, err)
	}
	k.tell(func(s *Status) { s.Daemon, s.Ready = cmd.Process.Pid, false })
	served := make(chan struct{})
	go func() { defer close(served); k.serve(conn) }()
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	var e ending
	err = k.mind(ctx, signals, cmd, waited, &e)
	// Nothing that it started may go on beside the next one, and nobody else has
	// the other end of the socket.
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	_ = conn.Close()
	<-served
	k.mu.Lock()
	if e.ready = k.status.Ready; e.ready {
		e.worked = time.Since(k.readySince)
	}
	k.mu.Unlock()
	if err != nil {
		e.cause = err.Error()
	}
	e.status, e.killed = exitStatus(err), signaled(err)
	return e, nil
}

// errStuck is the end of a daemon that was killed and is not gone.
var errStuck = errors.New("killed, but not gone: it waits in the kernel")

// mind passes signals on until the daemon has ended, and returns how.
func (k *keeper) mind(ctx context.Context, signals <-chan os.Signal, cmd *exec.Cmd, waited <-chan error, e *ending) error {
	var late <-chan time.Time
	done := ctx.Done()
	look := time.NewTicker(dyingEvery)
	defer look.Stop()
	for dying := 0; ; {
		select {
		case err := <-waited:
			return err
		case <-look.C:
			if !blockdev.Dying(cmd.Process.Pid) {
				dying = 0
			} else if dying++; dying == dyingTimes {
				go func() { <-waited }()
				return errStuck
			}
		case <-done:
			e.wanted, done = true, nil
			_ = cmd.Process.Signal(syscall.SIGTERM)
			late = time.After(k.cfg.StopWait)
		case s := <-signals:
			switch {
			case s != syscall.SIGHUP:
				e.wanted = true
				_ = cmd.Process.Signal(s)
				late = time.After(k.cfg.StopWait)
			case k.mayReplace(ctx):
				e.handedOver = true
				_ = cmd.Process.Signal(HandOver)
				late = time.After(k.cfg.HandOverWait)
			}
		case <-late:
			k.cfg.Log.Warn("the daemon did not end in time and is killed; the next one copes with that", "handing over", e.handedOver, "stopping", e.wanted)
			_ = cmd.Process.Kill()
		}
	}
}

// mayReplace says whether the program at Path can run at all.
func (k *keeper) mayReplace(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, tryWait)
	defer cancel()
	out, err := exec.CommandContext(ctx, k.cfg.Path, k.cfg.Try...).CombinedOutput()
	if err != nil {
		k.cfg.Log.Error("the program does not run: the daemon stays as it is", "program", k.cfg.Path, "err", err, "output", string(out))
	}
	return err == nil
}

// start starts the daemon in a process group of its own with its socket.
func (k *keeper) start() (*net.UnixConn, *exec.Cmd, error) {
	conn, theirs, err := pair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(k.cfg.Path, k.cfg.Args...)
	cmd.Stdout, cmd.Stderr = k.cfg.Stdout, k.cfg.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Env = append(os.Environ(), Env+"=3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, cmd, nil
}

func exitStatus(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	}
	return 1
}

func signaled(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	s, ok := exit.Sys().(syscall.WaitStatus)
	return ok && s.Signaled()
}

// serve answers one daemon until its end of the socket is closed.
func (k *keeper) serve(c *net.UnixConn) {
	for {
		p, err := receive(c)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, unix.ECONNRESET) {
				k.cfg.Log.Error("the daemon's socket is of no use any more", "err", err)
				_ = c.Close()
			}
			return
		}
		if err := k.answer(c, p); err != nil {
			return
		}
	}
}

func (k *keeper) answer(c *net.UnixConn, p packet) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	refused := ""
	switch {
	case p.op == opPut && p.fd >= 0 && p.key != "":
		k.drop(p.key)
		k.held[p.key] = kept{note: p.note, fd: p.fd}
		p.fd = -1
	case p.op == opDrop:
		k.drop(p.key)
	case p.op == opReady:
		if !k.status.Ready {
			k.status.Ready, k.readySince = true, time.Now()
			k.writeStatus()
		}
	case p.op == opList:
		for key, h := range k.held {
			if err := send(c, packet{op: opHeld, key: key, note: h.note, fd: h.fd}); err != nil {
				return err
			}
		}
	default:
		refused = fmt.Sprintf("the request %q is unknown to this version; start the service anew to replace the keeper", p.op)
	}
	if p.fd >= 0 {
		_ = unix.Close(p.fd)
	}
	if refused != "" {
		return send(c, packet{op: opError, note: []byte(refused), fd: -1})
	}
	return send(c, packet{op: opEnd, fd: -1})
}

// drop closes what is held under a key; mu is held.
func (k *keeper) drop(key string) {
	if h, ok := k.held[key]; ok {
		_ = unix.Close(h.fd)
		delete(k.held, key)
	}
}

func (k *keeper) dropAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key := range k.held {
		k.drop(key)
	}
}

func (k *keeper) holdsAny() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.held) > 0
}
