package etcd_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/metadata/etcd"
)

// certs are a CA of our own, a certificate for servers and one for clients.
type certs struct {
	server  *etcd.ServerTLS
	client  *tls.Config
	without *tls.Config // trusts the CA, shows nothing
}

func newCerts(t *testing.T) *certs {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		check(err)
		return k
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		check(os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	caKey := key()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour)}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	check(err)
	issue := func(name string, serial int64) (certFile, keyFile string) {
		k := key()
		c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
			NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		der, err := x509.CreateCertificate(rand.Reader, c, ca, &k.PublicKey, caKey)
		check(err)
		kder, err := x509.MarshalECPrivateKey(k)
		check(err)
		return write(name+".crt", "CERTIFICATE", der), write(name+".key", "EC PRIVATE KEY", kder)
	}
	out := &certs{server: &etcd.ServerTLS{CAFile: write("ca.crt", "CERTIFICATE", caDER)}}
	out.server.CertFile, out.server.KeyFile = issue("server", 2)
	certFile, keyFile := issue("client", 3)
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	check(err)
	pool := x509.NewCertPool()
	parsed, err := x509.ParseCertificate(caDER)
	check(err)
	pool.AddCert(parsed)
	out.without = &tls.Config{RootCAs: pool}
	out.client = &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}
	return out
}
