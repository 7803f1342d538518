package demo

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

// What the scenario uses, and what it expects.
const (
	volumeName  = "shop-database"
	volumeBytes = 1 << 30
	grownBytes  = 2 << 30

	dbNode    = "n2" // where the database runs first: its power is cut
	cutNode   = "n3" // a replica that becomes unreachable before
	spareNode = "n4" // the storageless node, where it runs afterwards
	apiNode   = "n1" // stays

	createTarget   = time.Second
	attachTarget   = 500 * time.Millisecond
	stallTarget    = 3 * time.Second
	failoverTarget = 8 * time.Second
	// patience is how many times a target may be missed by before the run fails:
	// how fast this machine is, is not the product's promise.
	patience = 3
)

// run is one run of the demo.
type run struct {
	o      Options
	tl     *timeline
	c      *cluster
	k      *netcluster.Orchestrator
	claim  *netcluster.Claim
	pg     *netcluster.Postgres
	ledger *netcluster.Ledger
	db     *netcluster.Process
	w      *netcluster.Writer
	facts  []fact
	clone  rescued
}

// fact is a line of the result.
type fact struct {
	what, value, target string
	ok                  bool
}

// play is the whole scenario.
func (r *run) play(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		r.startCluster, r.createVolume, r.startDatabase, r.loseReplica, r.losePower, r.bringBack, r.grow, r.rescue, r.showAll, r.takeDown,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return r.result()
}

func (r *run) startCluster(ctx context.Context) error {
	r.tl.heading("Starting a cluster: three storage nodes and one without storage, each a daemon in its own network namespace")
	if err := r.c.net.Up(ctx, r.c.nodes); err != nil {
		return err
	}
	if err := r.c.prepare(); err != nil {
		return err
	}
	for _, id := range r.c.nodes {
		if err := r.c.start(ctx, id); err != nil {
			return err
		}
	}
	r.tl.watch(func() string { return "waiting for the daemons, the pools and a majority of etcd" })
	defer r.tl.watch(nil)
	if err := r.c.ready(ctx); err != nil {
		return err
	}
	r.tl.note("the cluster is up: %s have a pool each, %s has none", strings.Join(r.c.storage(), ", "), spareNode)
	return nil
}

func (r *run) createVolume(ctx context.Context) error {
	r.tl.heading("Over the CSI sockets, as an orchestrator would: create, attach, stage and publish a volume")
	begin := time.Now()
	if err := r.k.Create(ctx, apiNode, r.claim); err != nil {
		return err
	}
	r.timed("CreateVolume, 3 replicas", time.Since(begin), createTarget)
	r.tl.note("volume %s of %s with 3 replicas is created (%s)", volumeName, api.Bytes(volumeBytes), seconds(time.Since(begin)))
	begin = time.Now()
	published, err := r.k.Attach(ctx, dbNode, dbNode, r.claim)
	if err != nil {
		return err
	}
	r.timed("attach", time.Since(begin), attachTarget)
	r.tl.note("it is attached to %s (%s)", dbNode, seconds(time.Since(begin)))
	if err := r.k.Mount(ctx, dbNode, r.claim, published); err != nil {
		return err
	}
	r.tl.note("it is formatted with XFS and mounted on %s", dbNode)
	return nil
}

func (r *run) startDatabase(ctx context.Context) error {
	r.tl.heading("A real PostgreSQL on it, committing one numbered row after the other; each acknowledged commit is noted outside the volume")
	data := netcluster.DataOf(r.k.Target(dbNode, r.claim))
	if err := r.pg.Create(ctx, data); err != nil {
		return err
	}
	var err error
	if r.db, err = r.pg.Start(ctx, r.c.net, dbNode, data); err != nil {
		return err
	}
	if _, err := r.pg.Query(ctx, netcluster.Table); err != nil {
		return err
	}
	r.tl.note("PostgreSQL runs on %s", dbNode)
	// So that a whole copy would be much more than what is missed in a while.
	if _, err := r.pg.Query(ctx, netcluster.Bulk); err != nil {
		return err
	}
	r.tl.note("it has been given a table of half a million customers")
	if err := r.startWriting(ctx); err != nil {
		return err
	}
	return r.letWrite(ctx, 5*time.Second)
}

func (r *run) startWriting(ctx context.Context) error {
	var err error
	r.w, err = netcluster.StartWriter(ctx, r.pg, r.ledger)
	return err
}

// letWrite lets the writer go on for a while and shows how it does.
func (r *run) letWrite(ctx context.Context, d time.Duration) error {
	before, begin := r.ledger.Count(), time.Now()
	r.tl.watch(func() string {
		return fmt.Sprintf("%d rows committed, longest stall %s", r.ledger.Count(), seconds(r.ledger.Stall(time.Now())))
	})
	defer r.tl.watch(nil)
	if err := r.wait(ctx, d); err != nil {
		return err
	}
	n := r.ledger.Count() - before
	r.tl.note("%d rows committed in %s (%.0f a second), %d in all", n, seconds(time.Since(begin)), float64(n)/time.Since(begin).Seconds(), r.ledger.Count())
	return nil
}

// wait waits, and fails if the writer, the database or a daemon ends meanwhile.
func (r *run) wait(ctx context.Context, d time.Duration) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.w.Done():
			return holdfast.E("keep the database writing", holdfast.Unavailable, fmt.Sprintf("the writer ended: %v; see %s", r.w.Err(), r.pg.Log()))
		case <-tick.C:
			if err := r.c.alive(); err != nil {
				return err
			}
		case <-timer.C:
			return nil
		}
	}
}

// loseReplica makes a replica's node unreachable without a word, and measures
// how long commits stall.
func (r *run) loseReplica(ctx context.Context) error {
	r.tl.heading("A replica dies silently: the link of " + cutNode + " is cut, nobody is told")
	r.ledger.WatchStall(time.Now())
	if err := r.c.net.Cut(ctx, cutNode); err != nil {
		return err
	}
	r.tl.note("the link of %s is cut", cutNode)
	if err := r.letWrite(ctx, 8*time.Second); err != nil {
		return err
	}
	stall := r.ledger.Stall(time.Now())
	r.timed("commit stall when a replica's node dies", stall, stallTarget)
	r.tl.note("the longest that a commit waited was %s; no error", seconds(stall))
	if err := r.c.net.Mend(ctx, cutNode); err != nil {
		return err
	}
	r.tl.note("the link of %s is back", cutNode)
	r.tl.watch(func() string { return fmt.Sprintf("repairing %s, %d rows committed", cutNode, r.ledger.Count()) })
	defer r.tl.watch(nil)
	v, err := r.c.inSyncOn(ctx, apiNode, volumeName, cutNode, time.Minute)
	if err != nil {
		return err
	}
	r.tl.note("the replica on %s is in sync again, %s were copied", cutNode, api.Bytes(replica(v, cutNode).GetCopiedBytes()))
	if err := r.c.healthy(ctx, cutNode); err != nil {
		return err
	}
	r.tl.note("the whole cluster is healthy again, its etcd included")
	return r.letWrite(ctx, 2*time.Second)
}

// losePower cuts the power of the node where the database runs, and brings the
// database up on another.
func (r *run) losePower(ctx context.Context) error {
	r.tl.heading("The node with the database dies: the power of " + dbNode + " is cut")
	cut := time.Now()
	if err := r.c.powerOff(ctx, dbNode); err != nil {
		return err
	}
	r.db = nil
	_ = r.w.End() // it has lost its database
	r.tl.note("the power of %s is cut: daemon and database killed, link gone; %d rows were acknowledged", dbNode, r.ledger.Count())
	r.tl.watch(func() string { return "publishing the volume on " + spareNode + ", as an orchestrator would" })
	if err := r.k.Publish(ctx, spareNode, r.claim, time.Minute); err != nil {
		return err
	}
	r.tl.watch(nil)
	took := time.Since(cut)
	r.timed("power cut to mounted on another node", took, failoverTarget)
	r.tl.note("the volume is mounted on %s, %s after the cut", spareNode, seconds(took))
	var err error
	if r.db, err = r.pg.Start(ctx, r.c.net, spareNode, netcluster.DataOf(r.k.Target(spareNode, r.claim))); err != nil {
		return err
	}
	r.tl.note("PostgreSQL has recovered and runs on %s, %s after the cut", spareNode, seconds(time.Since(cut)))
	if err := r.verify(ctx, "rows found after the power cut"); err != nil {
		return err
	}
	if err := r.startWriting(ctx); err != nil {
		return err
	}
	return r.letWrite(ctx, 5*time.Second)
}

// verify checks every acknowledged row.
func (r *run) verify(ctx context.Context, what string) error {
	found, err := r.pg.Query(ctx, netcluster.VerifyRows)
	if err != nil {
		return err
	}
	missing, unacked, err := r.ledger.Compare(found)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return holdfast.E("verify rows", holdfast.Corrupt, fmt.Sprintf("%d acknowledged rows are lost, the first is %d", len(missing), missing[0]))
	}
	r.check("acknowledged "+what, fmt.Sprintf("all %d", r.ledger.Count()), "all", true)
	r.tl.note("every one of the %d acknowledged rows is there (and %d that nobody had been told of)", r.ledger.Count(), unacked)
	return nil
}

// bringBack starts the dead node again and shows that only what it missed is
// copied.
func (r *run) bringBack(ctx context.Context) error {
	r.tl.heading("The dead node comes back")
	begin := time.Now()
	if err := r.c.powerOn(ctx, dbNode); err != nil {
		return err
	}
	r.tl.watch(func() string { return fmt.Sprintf("repairing %s, %d rows committed", dbNode, r.ledger.Count()) })
	defer r.tl.watch(nil)
	v, err := r.c.inSyncOn(ctx, apiNode, volumeName, dbNode, time.Minute)
	if err != nil {
		return err
	}
	// The primary on the spare node began when this one died: what it has
	// written is what this one missed.
	back := replica(v, dbNode)
	written, whole := int64(v.GetLive().GetWriteBytes()), replica(v, apiNode).GetAllocatedBytes()
	took := time.Since(begin)
	r.tl.note("%s is in sync again %s after its start: %s copied; %s were written meanwhile, a whole replica holds %s",
		dbNode, seconds(took), api.Bytes(back.GetCopiedBytes()), api.Bytes(written), api.Bytes(whole))
	// Besides what was written, its own unconfirmed writes are copied: a queue's
	// worth, rounded up to regions.
	const slack = 64 << 20
	ok := back.GetCopiedBytes() > 0 && back.GetCopiedBytes() <= written+slack
	r.check("delta repair of the returned node", api.Bytes(back.GetCopiedBytes())+" copied", "about the "+api.Bytes(written)+" written meanwhile", ok)
	if !ok {
		return holdfast.E("repair the replica on node "+dbNode, holdfast.Corrupt, fmt.Sprintf("%d bytes were copied although %d were written", back.GetCopiedBytes(), written))
	}
	return r.c.healthy(ctx, dbNode)
}

// grow makes the mounted volume larger while the database writes.
func (r *run) grow(ctx context.Context) error {
	r.tl.heading("The volume grows while the database writes to it")
	before, err := filesystemBytes(r.k.Target(spareNode, r.claim))
	if err != nil {
		return err
	}
	r.ledger.WatchStall(time.Now())
	if err := r.k.Expand(ctx, spareNode, r.claim, grownBytes); err != nil {
		return err
	}
	after, err := filesystemBytes(r.k.Target(spareNode, r.claim))
	if err != nil {
		return err
	}
	ok := after >= grownBytes*9/10
	r.check("online growth", fmt.Sprintf("%s to %s", api.Bytes(volumeBytes), api.Bytes(grownBytes)), "the filesystem follows", ok)
	if !ok {
		return holdfast.E("grow the volume", holdfast.Other, fmt.Sprintf("its filesystem had %d bytes and has %d now", before, after))
	}
	r.tl.note("the mounted filesystem grew from %s to %s; the longest commit took %s", api.Bytes(before), api.Bytes(after), seconds(r.ledger.Stall(time.Now())))
	return r.letWrite(ctx, 2*time.Second)
}

func filesystemBytes(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, holdfast.Wrap("measure filesystem at "+path, err)
	}
	return int64(st.Blocks) * st.Bsize, nil
}

// showAll ends the writing, verifies once more, and shows what the command line
// says.
func (r *run) showAll(ctx context.Context) error {
	r.tl.heading("How it looks now")
	if err := r.w.End(); err != nil {
		return err
	}
	if err := r.verify(ctx, "rows found at the end"); err != nil {
		return err
	}
	if err := r.checkPools(ctx); err != nil {
		return err
	}
	for _, args := range [][]string{{"status"}, {"volume", "inspect", volumeName}, {"snapshot", "inspect", snapshotName}} {
		text, err := r.c.cli(ctx, apiNode, args...)
		if err != nil {
			return err
		}
		r.tl.say("\n$ holdfast %s\n%s", strings.Join(args, " "), text)
	}
	return nil
}

// checkPools has every pool verified.
func (r *run) checkPools(ctx context.Context) error {
	st, err := r.c.pools(ctx, apiNode)
	if err != nil {
		return err
	}
	for _, p := range st {
		if _, err := r.c.cli(ctx, apiNode, "pool", "check", p.GetId()); err != nil {
			return err
		}
	}
	r.check("pools checked while in use", fmt.Sprintf("%d sound", len(st)), "all sound", len(st) == len(r.c.storage()))
	r.tl.note("all %d pools are sound", len(st))
	return nil
}

// takeDown removes the volume as an orchestrator would; not with Keep.
func (r *run) takeDown(ctx context.Context) error {
	if r.o.Keep {
		return nil
	}
	r.tl.heading("Taking it down in good order")
	if err := r.endRescue(ctx); err != nil {
		return err
	}
	r.db.Stop(syscall.SIGINT, 20*time.Second)
	r.db = nil
	if err := r.k.Unmount(ctx, spareNode, r.claim); err != nil {
		return err
	}
	if err := r.k.Detach(ctx, spareNode, spareNode, r.claim); err != nil {
		return err
	}
	if err := r.k.Delete(ctx, apiNode, r.claim); err != nil {
		return err
	}
	err := netcluster.Until(ctx, 20*time.Second, "remove the replicas", func(ctx context.Context) (bool, error) {
		left, err := filepath.Glob(filepath.Join(r.o.Dir, "*", "run", "pools", "*", "replicas", "*"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("left: %v", left)
		}
		return err == nil, err
	})
	if err != nil {
		return err
	}
	r.tl.note("clone, snapshot and volume are deleted, their replicas are gone from the pools")
	return nil
}

func (r *run) timed(what string, took, target time.Duration) {
	r.facts = append(r.facts, fact{what, seconds(took), "at most " + seconds(target), took <= target})
	if took > patience*target {
		r.facts[len(r.facts)-1].value += " (far too long)"
	}
}

func (r *run) check(what, value, target string, ok bool) {
	r.facts = append(r.facts, fact{what, value, target, ok})
}

// result prints the time line and the figures; the error names what did not hold.
func (r *run) result() error {
	r.tl.say("\nTime line\n%s\nResult", r.tl.summary())
	var failed []string
	for _, f := range r.facts {
		mark := "ok"
		if !f.ok {
			mark = "MISSED"
		}
		if strings.HasSuffix(f.value, "(far too long)") {
			failed = append(failed, f.what+": "+f.value)
		}
		r.tl.say("  %-6s  %-46s %-28s wanted: %s", mark, f.what, f.value, f.target)
	}
	if len(failed) > 0 {
		return holdfast.E("demo", holdfast.Unavailable, strings.Join(failed, "; "))
	}
	return nil
}

// end takes the cluster down in good order, so that what cannot be taken down
// is noticed; what is left is removed by force afterwards.
func (r *run) end() {
	r.tl.watch(nil)
	if r.w != nil {
		r.w.Halt()
	}
	for _, db := range []*netcluster.Process{r.clone.db, r.db} {
		if db != nil {
			db.Stop(syscall.SIGINT, 10*time.Second)
		}
	}
	r.c.stop()
}

func (r *run) close() {
	r.tl.close()
	r.ledger.Close()
	_ = r.c.conns.Close()
}

// explain shows what the daemons had to say about a failure.
func (r *run) explain(err error) {
	r.tl.watch(nil)
	if errors.Is(err, context.Canceled) {
		return
	}
	r.tl.say("\nIt failed: %v\n\nThe last warnings and errors of the daemons and the database (all is in %s):", err, r.o.Logs)
	for _, name := range append(append([]string{}, r.c.nodes...), "postgres") {
		for _, line := range netcluster.LastLines(filepath.Join(r.o.Logs, name+".log"), 5) {
			r.tl.say("  %s: %s", name, line)
		}
	}
}

func (r *run) tellHowToTalk() {
	r.tl.say("\nThe cluster keeps running. To talk to it:\n  export HOLDFAST_ENDPOINT=unix://%s\n  %s status\nThe database: psql -h %s -U demo postgres\nLogs: %s\nTo remove it all: %s demo --clean",
		apiSocket(r.o.Dir, apiNode), r.o.Binary, r.pg.Sockets(), r.o.Logs, r.o.Binary)
}
