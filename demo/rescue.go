package demo

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/api"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
)

const (
	snapshotName = "before-the-mistake"
	cloneName    = "shop-database-as-it-was"

	snapshotTarget = time.Second     // a snapshot is ready; at most so long commits wait
	cloneTarget    = 3 * time.Second // created, attached and mounted
	// rescueLimit bounds copying the table back.
	rescueLimit = time.Minute
)

// rescued is the clone in which a dropped table is found again.
type rescued struct {
	snapshot string // its id; "" when there is none
	claim    *netcluster.Claim
	pg       *netcluster.Postgres
	db       *netcluster.Process
}

// rescue takes a snapshot of the running database, drops a table of it, and finds
// that again in a clone beside the original.
func (r *run) rescue(ctx context.Context) error {
	r.tl.heading("Somebody drops a table; luckily there is a snapshot of the running database")
	acked, err := r.takeSnapshot(ctx)
	if err != nil {
		return err
	}
	if _, err := r.pg.Query(ctx, "DROP TABLE customers"); err != nil {
		return err
	}
	if _, err := r.pg.Query(ctx, netcluster.CheckBulk); err == nil {
		return holdfast.E("drop a table", holdfast.Other, "it is still there")
	}
	r.tl.note("DROP TABLE customers: the half a million rows are gone; the database goes on with others")
	if err := r.mountClone(ctx); err != nil {
		return err
	}
	if err := r.findRows(ctx, acked); err != nil {
		return err
	}
	if err := r.copyBack(ctx); err != nil {
		return err
	}
	return r.letWrite(ctx, time.Second)
}

// takeSnapshot takes it while rows are being committed; acked says how many had
// been acknowledged before.
func (r *run) takeSnapshot(ctx context.Context) (acked int, err error) {
	acked = r.ledger.Count()
	begin := time.Now()
	r.ledger.WatchStall(begin)
	if r.clone.snapshot, err = r.k.Snapshot(ctx, apiNode, r.claim, snapshotName); err != nil {
		return acked, err
	}
	took := time.Since(begin)
	r.tl.note("snapshot %s is ready (%s); nothing was stopped for it", snapshotName, seconds(took))
	if err := r.letWrite(ctx, time.Second); err != nil {
		return acked, err
	}
	stall := r.ledger.Stall(time.Now())
	r.timed("snapshot of the running database", took, snapshotTarget)
	r.timed("longest commit around the snapshot", stall, snapshotTarget)
	r.tl.note("the longest that a commit waited around it was %s", seconds(stall))
	return acked, nil
}

// mountClone makes a volume of the snapshot and mounts it on the same node as the
// original.
func (r *run) mountClone(ctx context.Context) error {
	begin := time.Now()
	x := &r.clone
	x.claim = &netcluster.Claim{Name: cloneName, Bytes: grownBytes, Replicas: "3", FSType: "xfs", Snapshot: x.snapshot}
	if err := r.k.Create(ctx, apiNode, x.claim); err != nil {
		return err
	}
	made := time.Since(begin)
	if err := r.k.Publish(ctx, spareNode, x.claim, time.Minute); err != nil {
		return err
	}
	r.timed("clone of the snapshot, mounted", time.Since(begin), cloneTarget)
	r.tl.note("a clone of the snapshot, a volume of its own of %s, is created (%s) and mounted beside the original on %s (%s)",
		api.Bytes(grownBytes), seconds(made), spareNode, seconds(time.Since(begin)))
	var err error
	if x.pg, err = r.pg.At(filepath.Join(r.o.Dir, "db-clone")); err != nil {
		return err
	}
	data := netcluster.DataOf(r.k.Target(spareNode, x.claim))
	if err := x.pg.Disown(data); err != nil {
		return err
	}
	if x.db, err = x.pg.Start(ctx, r.c.net, spareNode, data); err != nil {
		return err
	}
	r.tl.note("a second PostgreSQL runs on the clone, recovered as after a power loss; the first one goes on")
	return nil
}

// findRows checks the clone: the table, and all that was acknowledged before the
// snapshot was asked for.
func (r *run) findRows(ctx context.Context, acked int) error {
	const op = "find the dropped table in the clone"
	n, err := r.clone.pg.Query(ctx, netcluster.CheckBulk)
	if err != nil {
		return err
	}
	if strings.TrimSpace(n) != fmt.Sprint(netcluster.Customers) {
		return holdfast.E(op, holdfast.Corrupt, fmt.Sprintf("%s rows of %d are there and intact", strings.TrimSpace(n), netcluster.Customers))
	}
	found, err := r.clone.pg.Query(ctx, netcluster.VerifyRows)
	if err != nil {
		return err
	}
	missing, _, err := r.ledger.CompareFirst(acked, found)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return holdfast.E(op, holdfast.Corrupt, fmt.Sprintf("%d rows that were acknowledged before the snapshot are not in it, the first is %d", len(missing), missing[0]))
	}
	const show = "SELECT id, name, left(note, 16) AS note FROM customers ORDER BY id LIMIT 3"
	rows, err := netcluster.Output(r.clone.pg.Command(ctx, "psql", "-X", "-c", show))
	if err != nil {
		return err
	}
	r.tl.note("in the clone the table is there, all %d rows intact, and all %d rows committed before the snapshot", netcluster.Customers, acked)
	r.tl.say("\n$ psql -c '%s'   # in the clone\n%s", show, strings.TrimRight(rows, "\n")+"\n")
	r.check("rows of the dropped table found in the clone", fmt.Sprintf("all %d", netcluster.Customers), "all", true)
	return nil
}

// copyBack copies the table from the clone into the running database.
func (r *run) copyBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, rescueLimit)
	defer cancel()
	if _, err := r.pg.Query(ctx, "CREATE TABLE customers (id integer, name text, note text)"); err != nil {
		return err
	}
	out := r.clone.pg.Command(ctx, "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-c", "COPY customers TO STDOUT")
	pipe, err := out.StdoutPipe()
	if err != nil {
		return holdfast.Wrap("copy the table back", err)
	}
	in := r.pg.Command(ctx, "psql", "-qX", "-v", "ON_ERROR_STOP=1", "-c", "COPY customers FROM STDIN")
	in.Stdin = pipe
	if err := out.Start(); err != nil {
		return holdfast.Wrap("copy the table back", err)
	}
	_, err = netcluster.Output(in)
	if err2 := out.Wait(); err == nil {
		err = holdfast.Wrap("copy the table back", err2)
	}
	if err != nil {
		return err
	}
	n, err := r.pg.Query(ctx, netcluster.CheckBulk)
	if err == nil && strings.TrimSpace(n) != fmt.Sprint(netcluster.Customers) {
		err = holdfast.E("copy the table back", holdfast.Corrupt, "only "+strings.TrimSpace(n)+" rows of it are there")
	}
	if err == nil {
		r.tl.note("the table is copied back into the running database")
	}
	return err
}

// endRescue removes the clone and the snapshot.
func (r *run) endRescue(ctx context.Context) error {
	x := &r.clone
	x.db.Stop(syscall.SIGINT, 20*time.Second)
	x.db = nil
	if err := r.k.Unmount(ctx, spareNode, x.claim); err != nil {
		return err
	}
	if err := r.k.Detach(ctx, spareNode, spareNode, x.claim); err != nil {
		return err
	}
	if err := r.k.Delete(ctx, apiNode, x.claim); err != nil {
		return err
	}
	return r.k.DeleteSnapshot(ctx, apiNode, x.snapshot)
}
