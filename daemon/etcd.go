package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/etcd"
)

// records is the metadata store with, if it is embedded, its server.
type records struct {
	metadata.Store
	server *etcd.Server
}

// Close closes the store, then the embedded server.
func (r records) Close() error {
	err := r.Store.Close()
	if r.server != nil {
		err = errors.Join(err, r.server.Close())
	}
	return err
}

// memberLimit is what the embedded etcd gets to stop in order when the next daemon
// waits: in order it takes one to nine seconds, in which I/O waits.
const memberLimit = 300 * time.Millisecond

// leave is Close for a process that ends now as the next one waits.
func (r records) leave() error {
	err := r.Store.Close()
	if r.server != nil {
		err = errors.Join(err, r.server.CloseWithin(memberLimit))
	}
	return err
}

// failed delivers the error with which an embedded server stopped; nil, which
// blocks for ever, without one.
func (r records) failed() <-chan error {
	if r.server == nil {
		return nil
	}
	return r.server.Failed()
}

// openRecords starts the embedded etcd, if that is configured, and connects.
// An etcd that does not answer yet is waited for until ctx ends: after a power
// cut everything starts at once, in any order.
func openRecords(ctx context.Context, cfg Config, log *slog.Logger) (records, error) {
	var r records
	ec := etcd.Config{
		Endpoints: cfg.Etcd.Endpoints, Username: cfg.Etcd.Username, Prefix: cfg.Etcd.Prefix,
		LeaderTTL: time.Duration(cfg.Times.Lease), Logger: log.With("part", "etcd client"),
	}
	if cfg.Etcd.Embedded != nil {
		srv, err := etcd.StartServer(ctx, embedded(cfg, log))
		if err != nil {
			return r, err
		}
		r.server = srv
		ec.Endpoints = []string{ownURL(cfg)}
	}
	err := credentials(&ec, cfg.Etcd)
	for err == nil {
		if r.Store, err = etcd.Open(ctx, ec); err == nil {
			return r, nil
		}
		if !errors.Is(err, holdfast.Unavailable) || ctx.Err() != nil {
			break
		}
		log.Warn("waiting for etcd", "endpoints", ec.Endpoints, "err", err)
		err = pause(ctx, time.Second)
	}
	if r.server != nil {
		_ = r.server.Close()
	}
	return r, err
}

// pause waits for d; the error is the context's, of kind Unavailable.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return holdfast.WrapKind("start", holdfast.Unavailable, ctx.Err())
	}
}

func embedded(cfg Config, log *slog.Logger) etcd.ServerConfig {
	m := cfg.Etcd.Embedded
	sc := etcd.ServerConfig{
		Name: cfg.Node, Dir: m.dir(cfg.StateDir),
		ClientURLs: []string{ownURL(cfg)},
		PeerURLs:   []string{"http://" + cfg.hostPort(m.peerPort())},
		Logger:     log.With("part", "etcd"), StartTimeout: 10 * time.Minute,
	}
	if len(m.Members) > 0 {
		sc.Members = map[string]string{}
		for id, addr := range m.Members {
			sc.Members[id] = "http://" + net.JoinHostPort(addr, fmt.Sprint(m.peerPort()))
		}
	}
	return sc
}

// ownURL is the embedded member's. It alone is used: it lives as long as this
// process does, passes everything on to whoever leads, and unlike another one it
// cannot vanish without a word while calls wait for its answer.
func ownURL(cfg Config) string {
	return "http://" + cfg.hostPort(cfg.Etcd.Embedded.clientPort())
}

func (m *EmbeddedEtcd) dir(state string) string {
	if m.Dir != "" {
		return m.Dir
	}
	return filepath.Join(state, "etcd")
}

func (m *EmbeddedEtcd) clientPort() int { return orDefault(m.ClientPort, DefaultEtcdClientPort) }
func (m *EmbeddedEtcd) peerPort() int   { return orDefault(m.PeerPort, DefaultEtcdPeerPort) }

func orDefault(v, d int) int {
	if v == 0 {
		return d
	}
	return v
}

// credentials reads the password and the certificates that are configured.
func credentials(ec *etcd.Config, e Etcd) error {
	const op = "read etcd credentials"
	if e.PasswordFile != "" {
		raw, err := os.ReadFile(e.PasswordFile)
		if err != nil {
			return holdfast.WrapKind(op, holdfast.Invalid, err)
		}
		ec.Password = strings.TrimRight(string(raw), "\r\n")
	}
	if e.CAFile == "" && e.CertFile == "" {
		return nil
	}
	ec.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if e.CAFile != "" {
		pem, err := os.ReadFile(e.CAFile)
		if err != nil {
			return holdfast.WrapKind(op, holdfast.Invalid, err)
		}
		ec.TLS.RootCAs = x509.NewCertPool()
		if !ec.TLS.RootCAs.AppendCertsFromPEM(pem) {
			return holdfast.E(op, holdfast.Invalid, "the file "+e.CAFile+" holds no certificate in PEM form")
		}
	}
	if e.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile)
		if err != nil {
			return holdfast.WrapKind(op, holdfast.Invalid, err)
		}
		ec.TLS.Certificates = []tls.Certificate{cert}
	}
	return nil
}
