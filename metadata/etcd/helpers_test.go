package etcd_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/etcd"
	"github.com/holdfast-storage/holdfast/metadata/metadatatest"
)

// freePorts finds ports that nobody listens on, below those that the kernel
// gives to outgoing connections: one of these could take the port of a member
// that is stopped for a moment.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range 1000 {
		port := 12000 + rand.IntN(18000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		defer l.Close() // all together, so that they differ
		if ports = append(ports, port); len(ports) == n {
			return ports
		}
	}
	t.Fatal("no free ports were found")
	return nil
}

// testLog sends warnings to the test's output, as long as the test runs.
func testLog(t *testing.T) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() { w.over.Store(true) })
	return slog.New(slog.NewTextHandler(w, nil))
}

type testWriter struct {
	t    *testing.T
	over atomic.Bool
}

func (w *testWriter) Write(p []byte) (int, error) {
	if !w.over.Load() {
		w.t.Log(strings.TrimRight(string(p), "\n"))
	}
	return len(p), nil
}

// cluster is a number of embedded members, each of which can stop and start.
type cluster struct {
	t       *testing.T
	tls     *certs
	configs []etcd.ServerConfig
	mu      sync.Mutex
	servers []*etcd.Server // nil when stopped
	client  etcd.Config    // how to reach it
}

func newCluster(t *testing.T, members int, tls *certs) *cluster {
	t.Helper()
	c := &cluster{t: t, tls: tls, servers: make([]*etcd.Server, members)}
	scheme, ports := "http", freePorts(t, 2*members)
	if tls != nil {
		scheme = "https"
	}
	names := map[string]string{}
	for i := range members {
		cfg := etcd.ServerConfig{
			Name: fmt.Sprintf("m%d", i), Dir: t.TempDir(), Members: names, Token: t.Name(),
			ClientURLs: []string{fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[2*i])},
			PeerURLs:   []string{fmt.Sprintf("%s://127.0.0.1:%d", scheme, ports[2*i+1])},
			Logger:     testLog(t),
		}
		cfg.CheapPasswords()
		if tls != nil {
			cfg.ClientTLS, cfg.PeerTLS = tls.server, tls.server
			c.client.TLS = tls.client
		}
		names[cfg.Name] = cfg.PeerURLs[0]
		c.configs = append(c.configs, cfg)
		c.client.Endpoints = append(c.client.Endpoints, cfg.ClientURLs...)
	}
	c.client.CallTimeout = 2 * time.Second
	c.client.Probe = 200 * time.Millisecond
	c.client.LeaderTTL = 2 * time.Second
	t.Cleanup(c.stop)
	c.start()
	return c
}

// start starts what does not run, at the same time, and waits until it serves.
func (c *cluster) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var g errgroup.Group
	for i, s := range c.servers {
		if s == nil {
			g.Go(func() (err error) {
				c.servers[i], err = etcd.StartServer(context.Background(), c.configs[i])
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		c.t.Fatal(err)
	}
}

// stop stops members: those given, or all.
func (c *cluster) stop() { c.stopMembers(0, 1, 2) }

func (c *cluster) stopMembers(which ...int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range which {
		if i < len(c.servers) && c.servers[i] != nil {
			_ = c.servers[i].Close()
			c.servers[i] = nil
		}
	}
}

func (c *cluster) open(t *testing.T, change func(*etcd.Config)) *etcd.Store {
	t.Helper()
	cfg := c.client
	cfg.Logger = testLog(t)
	if change != nil {
		change(&cfg)
	}
	s, err := etcd.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// raw is a plain etcd client.
func (c *cluster) raw(t *testing.T) *clientv3.Client {
	t.Helper()
	cl, err := clientv3.New(clientv3.Config{Endpoints: c.client.Endpoints, TLS: c.client.TLS,
		Username: c.client.Username, Password: c.client.Password, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

// harness gives each test a prefix of its own in one cluster.
func (c *cluster) harness() func(t *testing.T) *metadatatest.Harness {
	var tests atomic.Int64
	return func(t *testing.T) *metadatatest.Harness {
		prefix := fmt.Sprintf("/test/%d/", tests.Add(1))
		var mu sync.Mutex
		var skipped []string
		h := &metadatatest.Harness{TTL: 2 * time.Second, CallTimeout: c.client.CallTimeout}
		h.Open = func(t *testing.T) metadata.Store {
			return c.open(t, func(cfg *etcd.Config) {
				cfg.Prefix = prefix
				cfg.OnCorrupt = func(key string, _ error) {
					mu.Lock()
					defer mu.Unlock()
					skipped = append(skipped, strings.TrimPrefix(key, prefix))
				}
			})
		}
		h.Skipped = func() []string {
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(skipped)
		}
		h.Put = func(t *testing.T, key, value string) {
			t.Helper()
			if _, err := c.raw(t).Put(t.Context(), prefix+key, value); err != nil {
				t.Fatal(err)
			}
		}
		h.Outage = func(t *testing.T) func() {
			c.stopMembers(1, 2) // of three: no majority
			if len(c.servers) == 1 {
				c.stop()
			}
			t.Cleanup(c.start)
			return c.start
		}
		h.Compact = func(t *testing.T) {
			t.Helper()
			cl := c.raw(t)
			resp, err := cl.Get(t.Context(), "x")
			if err == nil {
				_, err = cl.Compact(t.Context(), resp.Header.Revision)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if len(c.configs) == 1 {
			h.Remember = c.remember
		}
		return h
	}
}

// remember copies the data of a cluster of one; back puts the copy in its place,
// as an administrator restores a folder: the same cluster, but older.
func (c *cluster) remember(t *testing.T) (back func()) {
	t.Helper()
	dir, copied := c.configs[0].Dir, t.TempDir()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c.stop()
	check(os.CopyFS(copied, os.DirFS(dir)))
	c.start()
	return func() {
		c.stop()
		check(os.RemoveAll(dir))
		check(os.CopyFS(dir, os.DirFS(copied)))
		c.start()
	}
}
