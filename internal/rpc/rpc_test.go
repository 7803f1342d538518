package rpc_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/rpc"
)

// mutualTLS makes a configuration for both ends with a fresh certificate.
func mutualTLS(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "n1"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		RootCAs:      pool, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13,
	}
}

func serve(t *testing.T, c rpc.Config, target string) string {
	t.Helper()
	l, err := c.Listen(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	var srv *grpc.Server
	if strings.HasPrefix(target, "unix:") {
		srv = c.NewLocalServer()
	} else {
		srv = c.NewServer()
	}
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(srv.Stop)
	if strings.HasPrefix(target, "unix:") {
		return target
	}
	return l.Addr().String()
}

func check(t *testing.T, c rpc.Config, target, service string) error {
	t.Helper()
	conns := rpc.NewConns(c)
	defer func() { _ = conns.Close() }()
	cc, err := conns.Conn(target)
	if err != nil {
		t.Fatal(err)
	}
	_, err = grpc_health_v1.NewHealthClient(cc).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service})
	return err
}

func TestCallsOverTCPUnixAndTLS(t *testing.T) {
	plain := rpc.Config{CallTimeout: 5 * time.Second}
	secure := rpc.Config{CallTimeout: 5 * time.Second, TLS: mutualTLS(t)}
	sock := "unix://" + filepath.Join(t.TempDir(), "api.sock")
	for name, tc := range map[string]struct {
		cfg    rpc.Config
		target string
	}{
		"tcp": {plain, "127.0.0.1:0"}, "tls": {secure, "127.0.0.1:0"},
		"unix": {plain, sock}, "unix with tls set": {secure, sock + "2"},
	} {
		t.Run(name, func(t *testing.T) {
			at := serve(t, tc.cfg, tc.target)
			if err := check(t, tc.cfg, at, ""); err != nil {
				t.Errorf("call: %v", err)
			}
			if err := check(t, tc.cfg, at, "nobody"); !errors.Is(err, holdfast.NotFound) {
				t.Errorf("unknown service: got %v of kind %v, want not found", err, holdfast.KindOf(err))
			}
		})
	}
}

func TestWithoutCertificateNobodyGetsIn(t *testing.T) {
	secure := rpc.Config{TLS: mutualTLS(t)}
	at := serve(t, secure, "127.0.0.1:0")
	for name, cfg := range map[string]rpc.Config{
		"plain":             {CallTimeout: 3 * time.Second},
		"other certificate": {CallTimeout: 3 * time.Second, TLS: mutualTLS(t)},
		"no certificate":    {CallTimeout: 3 * time.Second, TLS: &tls.Config{RootCAs: secure.TLS.RootCAs, MinVersion: tls.VersionTLS13}},
	} {
		if err := check(t, cfg, at, ""); !errors.Is(err, holdfast.Unavailable) {
			t.Errorf("%s: got %v, want unavailable", name, err)
		}
	}
}

func TestDataConnections(t *testing.T) {
	for name, cfg := range map[string]rpc.Config{"plain": {}, "tls": {TLS: mutualTLS(t)}} {
		t.Run(name, func(t *testing.T) {
			l, err := cfg.ListenData(t.Context(), "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			go echo(l)
			conn, err := cfg.DialData(t.Context(), l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if _, err := conn.Write([]byte("hold fast")); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 9)
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hold fast" {
				t.Fatalf("echo: %q, %v", got, err)
			}
		})
	}
}

func echo(l net.Listener) {
	conn, err := l.Accept()
	if err != nil {
		return
	}
	_, _ = io.Copy(conn, conn)
	_ = conn.Close()
}

// A peer that never answers: accepted by the kernel's backlog, read by nobody.
func TestACallToASilentPeerEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	cfg := rpc.Config{CallTimeout: 300 * time.Millisecond}
	start := time.Now()
	err = check(t, cfg, l.Addr().String(), "")
	if !errors.Is(err, holdfast.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v of kind %v, want unavailable by deadline", err, holdfast.KindOf(err))
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestNobodyThereIsUnavailable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	if err := check(t, rpc.Config{}, addr, ""); !errors.Is(err, holdfast.Unavailable) {
		t.Errorf("gRPC: got %v", err)
	}
	if _, err := (rpc.Config{}).DialData(t.Context(), addr); !errors.Is(err, holdfast.Unavailable) {
		t.Errorf("data: got %v", err)
	}
}

func TestUnixSocketLeftBehindIsReplacedAServedOneIsNot(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = dead.Close()
	var cfg rpc.Config
	l, err := cfg.Listen(t.Context(), "unix://"+path)
	if err != nil {
		t.Fatalf("a dead process's socket: %v", err)
	}
	defer func() { _ = l.Close() }()
	if _, err := cfg.Listen(t.Context(), "unix://"+path); !errors.Is(err, holdfast.InUse) {
		t.Errorf("a served socket: got %v, want in use", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := cfg.Listen(t.Context(), "unix://"+file); !errors.Is(err, holdfast.Exists) {
		t.Errorf("an ordinary file: got %v, want exists", err)
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the ordinary file was changed: %q", b)
	}
}

func TestBadAddressesAreInvalid(t *testing.T) {
	var cfg rpc.Config
	for _, a := range []string{"", "host", "host:", "unix:relative.sock", "unix://" + "/" + strings.Repeat("x", 120), "127.0.0.1:99999"} {
		if l, err := cfg.Listen(t.Context(), a); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("listen on %q: got %v, want invalid", a, err)
			if l != nil {
				_ = l.Close()
			}
		}
	}
	if _, err := cfg.DialData(t.Context(), "nonsense"); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("dial: got %v, want invalid", err)
	}
}
