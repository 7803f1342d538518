package etcd_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/etcd"
	"github.com/holdfast-storage/holdfast/metadata/metadatatest"
)

func TestContractEmbeddedOne(t *testing.T) {
	metadatatest.Run(t, newCluster(t, 1, nil).harness())
}

func TestContractEmbeddedThree(t *testing.T) {
	metadatatest.Run(t, newCluster(t, 3, nil).harness())
}

// External members with TLS, client certificates, and users with passwords.
func TestContractExternalSecured(t *testing.T) {
	metadatatest.Run(t, newSecured(t).harness())
}

func newSecured(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t, 1, newCerts(t))
	cl := c.raw(t)
	for _, user := range []string{"root", "holdfast"} {
		if _, err := cl.UserAdd(t.Context(), user, "secret-"+user); err != nil {
			t.Fatal(err)
		}
		if _, err := cl.RoleAdd(t.Context(), user); err != nil {
			t.Fatal(err)
		}
		if _, err := cl.UserGrantRole(t.Context(), user, user); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cl.RoleGrantPermission(t.Context(), "holdfast", "/", "0", 2); err != nil { // readwrite on all of /
		t.Fatal(err)
	}
	if _, err := cl.AuthEnable(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Compaction, in the suite, is for root; Holdfast needs only its keys.
	c.client.Username, c.client.Password = "root", "secret-root"
	return c
}

func TestSecuredRefusals(t *testing.T) {
	c := newSecured(t)
	s := c.open(t, func(cfg *etcd.Config) { cfg.Username, cfg.Password = "holdfast", "secret-holdfast" })
	if _, err := s.CreateVolume(t.Context(), metadatatest.Record("db-1")); err != nil {
		t.Fatalf("the user of the key space: %v", err)
	}
	l, err := s.Join(t.Context(), "n1", "i1", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		change func(*etcd.Config)
		want   holdfast.Kind
	}{
		"wrong password": {func(cfg *etcd.Config) { cfg.Password = "guess" }, holdfast.Denied},
		"unknown user":   {func(cfg *etcd.Config) { cfg.Username = "nobody" }, holdfast.Denied},
		"no user":        {func(cfg *etcd.Config) { cfg.Username, cfg.Password = "", "" }, holdfast.Denied},
		"keys not allowed": {func(cfg *etcd.Config) {
			cfg.Username, cfg.Password, cfg.Prefix = "holdfast", "secret-holdfast", "elsewhere/"
		}, holdfast.Denied},
		"no certificate": {func(cfg *etcd.Config) { cfg.TLS = c.tls.without }, holdfast.Unavailable},
		"password alone": {func(cfg *etcd.Config) { cfg.Username = "" }, holdfast.Invalid},
		"no endpoint":    {func(cfg *etcd.Config) { cfg.Endpoints = nil }, holdfast.Invalid},
		"plain text to https": {func(cfg *etcd.Config) {
			cfg.Endpoints = []string{strings.Replace(cfg.Endpoints[0], "https", "http", 1)}
		}, holdfast.Unavailable},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := c.client
			cfg.CallTimeout = time.Second
			test.change(&cfg)
			s, err := etcd.Open(t.Context(), cfg)
			if err == nil {
				_ = s.Close()
				t.Fatal("it was let in")
			}
			if holdfast.KindOf(err) != test.want {
				t.Fatalf("got %v of kind %v, want %v", err, holdfast.KindOf(err), test.want)
			}
		})
	}
}

// With three members, one may restart and one may be lost while everything goes
// on: every change that was accepted is there, leases and watches hold.
func TestThreeMembersOneDown(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.client.CallTimeout = 5 * time.Second
	s := c.open(t, nil)
	lease, err := s.Join(t.Context(), "n1", "i1", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan holdfast.Epoch, 1024)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		_ = s.WatchVolumes(ctx, func(e metadata.VolumeEvent) {
			if e.ID != "" {
				seen <- e.Record.Epoch
			}
		})
	}()
	r, err := s.CreateVolume(t.Context(), metadatatest.Record("db-1"))
	if err != nil {
		t.Fatal(err)
	}
	change := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; {
			next := r.Clone()
			next.Epoch++
			got, err := s.SwapVolume(t.Context(), next)
			switch {
			case err == nil:
				r = got
			case holdfast.KindOf(err) == holdfast.Busy && got.Epoch == next.Epoch:
				r = got // the answer to the first try was lost
			case time.Now().After(deadline):
				t.Fatalf("%s: %v", what, err)
			default:
				continue
			}
			break
		}
		for timeout := time.After(20 * time.Second); ; {
			select {
			case epoch := <-seen:
				if epoch >= r.Epoch {
					return
				}
			case <-timeout:
				t.Fatalf("%s: the watch did not see epoch %d", what, r.Epoch)
			}
		}
	}
	for i := range 3 {
		change("all are there")
		c.stopMembers(i)
		change(fmt.Sprintf("member %d is down", i))
		change(fmt.Sprintf("member %d is still down", i))
		c.start()
		change(fmt.Sprintf("member %d is back", i))
	}
	c.stopMembers(2)
	if err := os.RemoveAll(c.configs[2].Dir); err != nil { // lost for good
		t.Fatal(err)
	}
	change("one member is lost")
	select {
	case <-lease.Lost():
		t.Fatal("the lease was lost although a majority was there all the time")
	default:
	}
	if alive, err := s.Alive(t.Context(), "n1"); err != nil || !alive {
		t.Fatalf("alive %v, %v", alive, err)
	}
}

func TestBackup(t *testing.T) {
	c := newCluster(t, 1, nil)
	s := c.open(t, nil)
	if _, err := s.CreateVolume(t.Context(), metadatatest.Record("in-the-backup")); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "backup.db")
	if err := s.Backup(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(data), "in-the-backup") {
		t.Fatalf("%d bytes, %v: the record is not in it", len(data), err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("mode %v, %v", info.Mode(), err)
	}
	if err := s.Backup(t.Context(), filepath.Join(path, "not-a-folder")); err == nil {
		t.Fatal("a backup to nowhere succeeded")
	}
}

func TestServerRefuses(t *testing.T) {
	good := func() etcd.ServerConfig {
		p := freePorts(t, 2)
		return etcd.ServerConfig{Name: "m", Dir: t.TempDir(), StartTimeout: 3 * time.Second,
			ClientURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", p[0])}, PeerURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", p[1])}}
	}
	tests := map[string]struct {
		change func(*etcd.ServerConfig)
		want   holdfast.Kind
	}{
		"no name":        {func(c *etcd.ServerConfig) { c.Name = "" }, holdfast.Invalid},
		"no folder":      {func(c *etcd.ServerConfig) { c.Dir = "" }, holdfast.Invalid},
		"no client URL":  {func(c *etcd.ServerConfig) { c.ClientURLs = nil }, holdfast.Invalid},
		"no URL":         {func(c *etcd.ServerConfig) { c.PeerURLs = []string{"127.0.0.1"} }, holdfast.Invalid},
		"scheme":         {func(c *etcd.ServerConfig) { c.PeerURLs = []string{"tcp://127.0.0.1:1"} }, holdfast.Invalid},
		"https, no cert": {func(c *etcd.ServerConfig) { c.ClientURLs = []string{"https://127.0.0.1:1"} }, holdfast.Invalid},
		"cert, no https": {func(c *etcd.ServerConfig) { c.ClientTLS = &etcd.ServerTLS{} }, holdfast.Invalid},
		"not a member":   {func(c *etcd.ServerConfig) { c.Members = map[string]string{"x": c.PeerURLs[0]} }, holdfast.Unavailable},
		"alone of three": {func(c *etcd.ServerConfig) {
			c.Members = map[string]string{"m": c.PeerURLs[0], "x": "http://127.0.0.1:1", "y": "http://127.0.0.1:2"}
		}, holdfast.Unavailable},
		"not our address": {func(c *etcd.ServerConfig) { c.ClientURLs = []string{"http://192.0.2.1:4001"} }, holdfast.Unavailable},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := good()
			test.change(&cfg)
			s, err := etcd.StartServer(t.Context(), cfg)
			if err == nil {
				_ = s.Close()
				t.Fatal("it started")
			}
			if holdfast.KindOf(err) != test.want {
				t.Fatalf("got %v of kind %v, want %v", err, holdfast.KindOf(err), test.want)
			}
		})
	}
	cfg := good()
	first, err := etcd.StartServer(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second := good()
	second.Dir = cfg.Dir
	if s, err := etcd.StartServer(t.Context(), second); err == nil {
		_ = s.Close()
		t.Fatal("two servers use one folder")
	} else if holdfast.KindOf(err) != holdfast.Unavailable {
		t.Fatal(err)
	}
}
