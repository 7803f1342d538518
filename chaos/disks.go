package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

// leftFree is what a filled pool has left: less than its reserve.
const leftFree = 24 << 20

// fill takes a pool's space with a file beside its replicas.
func (in *injector) fill(ctx context.Context, x fault, m *machine) error {
	found, _ := filepath.Glob(filepath.Join(in.f.folder(m.node()), "run/pools/*/replicas"))
	if len(found) != 1 {
		in.f.j.note("%v: left out, its pool is not mounted", x)
		return nil
	}
	pool := filepath.Dir(found[0])
	if !m.faulty.TryLock() {
		in.f.j.note("%v: left out, as another fault is on", x)
		return nil
	}
	defer m.faulty.Unlock()
	in.f.j.note("%v", x)
	ballast := filepath.Join(pool, "ballast")
	if err := takeSpace(pool, ballast); err != nil {
		in.f.j.note("%v: left out: %v", x, err)
	}
	sleep(ctx, x.lasts)
	in.f.j.note("end of %v", x)
	return giveSpace(pool, ballast)
}

// giveSpace removes the ballast durably: a machine that loses its power later
// must not find it again.
func giveSpace(pool, ballast string) error {
	if err := os.Remove(ballast); err != nil {
		return holdfast.Wrap("empty the pool", err)
	}
	dir, err := os.Open(pool)
	if err != nil {
		return holdfast.Wrap("empty the pool", err)
	}
	return holdfast.Wrap("empty the pool", errors.Join(dir.Sync(), dir.Close()))
}

func takeSpace(pool, ballast string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(pool, &st); err != nil {
		return holdfast.Wrap("fill the pool", err)
	}
	f, err := os.Create(ballast)
	if err != nil {
		return holdfast.Wrap("fill the pool", err)
	}
	defer func() { _ = f.Close() }()
	n := int64(st.Bavail)*st.Bsize - leftFree
	return holdfast.Wrap("fill the pool", unix.Fallocate(int(f.Fd()), 0, 0, n))
}

// disk is for faults of a machine's pool: a disk that does not answer, or only
// with errors. The machine has no other fault meanwhile.
func (in *injector) disk(ctx context.Context, x fault, m *machine) error {
	if !m.faulty.TryLock() {
		in.f.j.note("%v: left out, as another fault is on", x)
		return nil
	}
	defer m.faulty.Unlock()
	pools, err := netcluster.PoolsBelow(in.f.folder(m.node()))
	if err != nil || len(pools) != 1 {
		in.f.j.note("%v: left out, its pool is not mounted", x)
		return err
	}
	in.f.j.note("%v", x)
	if x.kind == eio {
		// Its end is the daemon's task.
		return netcluster.BreakDisk(pools[0])
	}
	err = netcluster.StallDisk(pools[0])
	sleep(ctx, x.lasts)
	in.f.j.note("end of %v", x)
	return errors.Join(err, netcluster.ThawDisk(pools[0]))
}

// mayLose says whether a machine may lose what it has not synced: once in a
// round, and only when all replicas were in sync. A volume may lose what was not
// flushed when all its replicas lose their power, and nobody would know then
// what it must still have.
func (in *injector) mayLose(ctx context.Context) bool {
	in.mu.Lock()
	lost := in.lost
	in.mu.Unlock()
	if lost || !in.whole(ctx) {
		return false
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	may := !in.lost
	in.lost = true
	return may
}

// blackout takes the power of all machines in one moment.
func (in *injector) blackout(ctx context.Context, x fault) error {
	calm := context.WithoutCancel(ctx)
	in.trouble()
	in.f.j.note("%v", x)
	ms := in.f.machines
	for _, m := range ms {
		m.faulty.Lock()
		defer m.faulty.Unlock()
		in.f.tell(m, syscall.SIGSTOP)
	}
	in.dark()
	errs := make([]error, len(ms))
	var wg sync.WaitGroup
	for i, m := range ms {
		wg.Go(func() { errs[i] = in.f.powerOff(calm, m, true) })
	}
	wg.Wait()
	sleep(ctx, x.lasts)
	in.f.j.note("end of %v", x)
	again := make([]error, 0, len(ms))
	for _, m := range ms {
		again = append(again, in.f.start(m))
	}
	return errors.Join(errors.Join(errs...), errors.Join(again...))
}

// quality is for links that are bad without being away.
func (in *injector) quality(ctx, calm context.Context, x fault, m *machine) error {
	key := string(x.kind) + " " + m.place()
	in.mu.Lock()
	busy := in.holds[key] > 0
	if !busy {
		in.holds[key] = 1
	}
	in.mu.Unlock()
	if busy {
		in.f.j.note("%v: left out, as another one is on", x)
		return nil
	}
	in.f.j.note("%v", x)
	n, place := in.f.net, m.place()
	begin, end := func() error { return n.Lose(calm, place, x.percent) }, n.Keep
	if x.kind == slow {
		begin, end = func() error { return n.Slow(calm, place) }, n.Hurry
	}
	err := begin()
	sleep(ctx, x.lasts)
	in.f.j.note("end of %v", x)
	err = errors.Join(err, end(calm, place))
	in.mu.Lock()
	defer in.mu.Unlock()
	delete(in.holds, key)
	return err
}
