package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/memory"
)

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	store := memory.New()
	defer func() { _ = store.Close() }()
	good := func() Config {
		c := DefaultConfig()
		c.Agent.ID, c.Store, c.Log, c.Advertise = "a", store, slog.New(slog.DiscardHandler), "10.0.0.1"
		return c
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"no node id":           func(c *Config) { c.Agent.ID = "" },
		"no store":             func(c *Config) { c.Store = nil },
		"relative state":       func(c *Config) { c.StateDir = "state" },
		"no port":              func(c *Config) { c.DataListen = "10.0.0.1" },
		"nowhere to be found":  func(c *Config) { c.Advertise = "" },
		"any address":          func(c *Config) { c.Advertise, c.DataListen, c.APIListen = "", "0.0.0.0:1", "10.0.0.1:2" },
		"CSI without identity": func(c *Config) { c.CSIEndpoint = "unix:///run/csi.sock" },
		"CSI over TCP":         func(c *Config) { c.CSIEndpoint = "10.0.0.1:3" },
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			spoil(&c)
			if _, err := New(c); !errors.Is(err, holdfast.Invalid) {
				t.Errorf("got %v, want invalid", err)
			}
		})
	}
}

func TestTheAdvertisedAddressHasTheRealPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if got := (Config{Advertise: "fd00::1"}).advertised(l); got != "[fd00::1]:"+port {
		t.Errorf("advertised %q", got)
	}
	if got := (Config{}).advertised(l); got != "127.0.0.1:"+port {
		t.Errorf("advertised %q", got)
	}
}

func TestDisksThatCanBePools(t *testing.T) {
	sys := t.TempDir()
	device := func(name, size string, holders ...string) {
		for _, h := range append([]string{""}, holders...) {
			if err := os.MkdirAll(filepath.Join(sys, name, "holders", h), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(sys, name, "size"), []byte(size+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	device("sdb", "2048")
	device("sda", "2048")
	device("sda1", "1024")
	device("nvme0n1", "2048")
	device("cciss!c0d0", "2048")
	device("sdc", "2048", "md0") // a part of something else
	device("sdd", "0")           // an empty card reader
	device("loop0", "2048")      // may be a volume of ours: reading it here could hang
	device("ram0", "2048")
	got, err := blockDevices(sys)
	want := []string{"/dev/cciss/c0d0", "/dev/nvme0n1", "/dev/sda", "/dev/sda1", "/dev/sdb"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

// Chaos, seed 503: a connection to etcd broke while a daemon started.
func TestANodeStartsWhenTheMetadataStoreAnswersAgain(t *testing.T) {
	store := memory.New()
	defer func() { _ = store.Close() }()
	c := DefaultConfig()
	c.Agent.ID, c.Store, c.Log, c.Advertise = "a", store, slog.New(slog.DiscardHandler), "10.0.0.1"
	n, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	store.Inject(func(memory.Op) memory.Fault {
		if asked++; asked < 3 {
			return memory.Fault{Refuse: holdfast.E("", holdfast.Unavailable, "connection timed out")}
		}
		return memory.Fault{}
	})
	if id, err := n.identity(t.Context()); err != nil || id == "" || asked != 3 {
		t.Errorf("got %q, %v after %d questions", id, err, asked)
	}
	store.Inject(func(memory.Op) memory.Fault {
		return memory.Fault{Refuse: holdfast.E("", holdfast.Denied, "wrong password")}
	})
	if _, err := n.identity(t.Context()); !errors.Is(err, holdfast.Denied) {
		t.Errorf("an error that stays gives %v", err)
	}
	store.SetOutage(true)
	store.Inject(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := n.identity(ctx); !errors.Is(err, holdfast.Unavailable) {
		t.Errorf("a start that is given up gives %v", err)
	}
}
