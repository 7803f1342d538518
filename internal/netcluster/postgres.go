package netcluster

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-storage/holdfast"
)

// Postgres is what is needed to run PostgreSQL: its programs, and a user that
// is not root, as it refuses to run as root.
type Postgres struct {
	bin      string
	uid, gid uint32
	sockets  string // folder for its sockets
	log      string
}

// FindPostgres looks where Debian and others put it. Errors: NotFound, with
// what to install.
func FindPostgres(sockets, log string) (*Postgres, error) {
	const op = "find PostgreSQL"
	bin := newestPostgres()
	if bin == "" {
		return nil, holdfast.E(op, holdfast.NotFound, "it is not installed; on Debian: apt-get install postgresql")
	}
	p := &Postgres{bin: bin, sockets: sockets, log: log}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			p.uid, p.gid = uint32(uid), uint32(gid)
			return p, nil
		}
	}
	return nil, holdfast.E(op, holdfast.NotFound, "there is neither a user postgres nor nobody to run it as")
}

// newestPostgres is the folder of the newest version's programs; "" if none.
func newestPostgres() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	version := func(path string) float64 {
		v, _ := strconv.ParseFloat(filepath.Base(filepath.Dir(filepath.Dir(path))), 64)
		return v
	}
	slices.SortFunc(found, func(a, b string) int { return cmp.Compare(version(a), version(b)) })
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1])
	}
	p, err := exec.LookPath("postgres")
	if err != nil {
		return ""
	}
	if real, err := filepath.EvalSymlinks(p); err == nil {
		p = real
	}
	return filepath.Dir(p)
}

// dbUser owns the database.
const dbUser = "demo"

// At is the same PostgreSQL with other sockets, so that two servers of one
// database can run on two nodes, as it happens when one of them was cut off. The
// folder is made.
func (p *Postgres) At(sockets string) (*Postgres, error) {
	const op = "make the folder of the database's sockets"
	if err := os.MkdirAll(sockets, 0o755); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	if err := os.Chown(sockets, int(p.uid), int(p.gid)); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	q := *p
	q.sockets = sockets
	return &q, nil
}

// Log is the file with what the servers say.
func (p *Postgres) Log() string { return p.log }

// Sockets is the folder of its sockets, for psql.
func (p *Postgres) Sockets() string { return p.sockets }

// Command is one of PostgreSQL's programs, as the database's user.
func (p *Postgres) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(p.bin, program), args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: p.uid, Gid: p.gid}}
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + p.bin + ":/usr/bin:/bin", "LC_ALL=C", "PGHOST=" + p.sockets, "PGUSER=" + dbUser, "PGDATABASE=postgres", "PGCONNECT_TIMEOUT=2", "PGOPTIONS=-c client_min_messages=warning"}
	return cmd
}

// Create makes a database in a folder of the volume, with checksums on its
// pages so that it notices a wrong block itself.
func (p *Postgres) Create(ctx context.Context, data string) error {
	if err := os.Mkdir(data, 0o700); err != nil {
		return holdfast.Wrap("make database folder", err)
	}
	if err := os.Chown(data, int(p.uid), int(p.gid)); err != nil {
		return holdfast.Wrap("make database folder", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	_, err := Output(p.Command(ctx, "initdb", "-D", data, "-U", dbUser, "-A", "trust", "-k", "-E", "UTF8", "--locale=C"))
	return holdfast.Wrap("create database", err)
}

// Start runs the database on a node and waits until it answers, which after a
// crash is when it has recovered.
func (p *Postgres) Start(ctx context.Context, n Network, node, data string) (*Process, error) {
	logFile, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, holdfast.Wrap("open database log", err)
	}
	defer func() { _ = logFile.Close() }()
	cmd := p.Command(context.WithoutCancel(ctx), "postgres", "-D", data, "-c", "listen_addresses=", "-c", "unix_socket_directories="+p.sockets,
		"-c", "shared_buffers=32MB", "-c", "max_connections=20", "-c", "autovacuum=off", "-c", "dynamic_shared_memory_type=sysv")
	// As in a container: when it is killed, all its processes go, also those that
	// wait for a lock of another one, and what they share goes with the last one.
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWIPC | syscall.CLONE_NEWPID
	cmd.Stdout, cmd.Stderr = logFile, logFile
	proc, err := n.StartIn(node, cmd)
	if err != nil {
		return nil, err
	}
	err = Until(ctx, time.Minute, "start the database on node "+node, func(ctx context.Context) (bool, error) {
		if proc.Ended() {
			return true, nil
		}
		_, err := p.Query(ctx, "SELECT 1")
		return err == nil, err
	})
	if err == nil && proc.Ended() {
		err = holdfast.E("start the database on node "+node, holdfast.Other, "it ended at once: "+strings.Join(LastLines(p.log, 5), " | "))
	}
	if err != nil {
		proc.Kill()
		return nil, err
	}
	return proc, nil
}

// Query runs one statement and gives its rows as lines.
func (p *Postgres) Query(ctx context.Context, sql string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return Output(p.Command(ctx, "psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-c", sql))
}

// DataOf is the database's folder on a published volume.
func DataOf(target string) string { return filepath.Join(target, "pgdata") }

// Table makes the place where the numbered rows go.
const Table = "CREATE TABLE rows (n bigint PRIMARY KEY, note text NOT NULL, at timestamptz NOT NULL DEFAULT now())"

// insert adds row n; the database answers with n when it is committed.
func insert(n int64) string {
	return fmt.Sprintf("INSERT INTO rows (n, note) VALUES (%d, repeat(md5('%d'), 16)) RETURNING n;\n", n, n)
}

// VerifyRows lists the rows whose content is what insert wrote.
const VerifyRows = "SELECT n FROM rows WHERE note = repeat(md5(n::text), 16) ORDER BY n"

// Bulk is older data, about 90 MB: Customers rows, of which CheckBulk counts those
// that are intact.
const (
	Customers = 500000
	Bulk      = "CREATE TABLE customers AS SELECT id, 'Customer ' || id AS name, repeat(md5(id::text), 4) AS note FROM generate_series(1, 500000) AS id"
	CheckBulk = "SELECT count(*) FROM customers WHERE name = 'Customer ' || id AND note = repeat(md5(id::text), 4)"
)

// Disown removes what a server that runs elsewhere has left in a copy of its data
// to keep others away: whose process it names is not known here.
func (p *Postgres) Disown(data string) error {
	err := os.Remove(filepath.Join(data, "postmaster.pid"))
	if os.IsNotExist(err) {
		return nil
	}
	return holdfast.Wrap("make a copied database startable", err)
}
