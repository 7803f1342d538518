package rpc_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/rpc"
)

// congestionOf is the congestion control of a connection.
func congestionOf(t *testing.T, conn net.Conn) (name string) {
	t.Helper()
	rc, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var serr error
	if err := rc.Control(func(fd uintptr) { name, serr = unix.GetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION) }); err != nil || serr != nil {
		t.Fatal(err, serr)
	}
	return name
}

// bothEnds connects to itself for the data plane.
func bothEnds(t *testing.T, cfg rpc.Config) (dialled, accepted net.Conn) {
	t.Helper()
	l, err := cfg.ListenData(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if dialled, err = cfg.DialData(t.Context(), l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dialled.Close() })
	if accepted, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = accepted.Close() })
	return dialled, accepted
}

func TestCongestionControl(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	machine := congestionOf(t, conn)
	if strings.HasPrefix(machine, "bbr") {
		machine = "cubic"
	}
	for chosen, want := range map[string]string{"": machine, "reno": "reno"} {
		a, b := bothEnds(t, rpc.Config{Congestion: chosen})
		if got := congestionOf(t, a); got != want {
			t.Errorf("%q, dialled: %s, want %s", chosen, got, want)
		}
		if got := congestionOf(t, b); got != want {
			t.Errorf("%q, accepted: %s, want %s", chosen, got, want)
		}
	}
	_, err = (rpc.Config{Congestion: "wishful"}).ListenData(t.Context(), "127.0.0.1:0")
	if !errors.Is(err, holdfast.Invalid) || !strings.Contains(err.Error(), "choose one of") || !strings.Contains(err.Error(), "reno") {
		t.Errorf("a name that the kernel does not know: %v", err)
	}
}
