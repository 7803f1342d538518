package daemon_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/daemon"
)

func load(t *testing.T, text string) (daemon.Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "node.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return daemon.Load(path)
}

func TestAWholeConfigurationIsRead(t *testing.T) {
	c, err := load(t, `
node: n1
address: 10.0.0.1
dataPort: 1000
domain: {rack: r1, zone: a, region: eu}
pools:
- {path: /dev/sdb, format: true}
- {path: /var/pool.img, imageBytes: 1073741824}
autoPools: true
api: ["127.0.0.1:1", "unix:///run/x/api.sock"]
csi: unix:///run/x/csi.sock
etcd:
  endpoints: [https://e1:2379]
  caFile: /etc/ca.pem
  username: u
  passwordFile: /etc/pw
times: {lease: 3s, replaceAfter: 1m30s, retryPools: 7s}
log: {level: debug, format: json}
`)
	if err != nil {
		t.Fatal(err)
	}
	if c.Node != "n1" || c.DataPort != 1000 || c.Domain.Zone != "a" || len(c.Pools) != 2 || !c.Pools[0].Format || c.Pools[1].ImageBytes != 1<<30 ||
		time.Duration(c.Times.Lease) != 3*time.Second || time.Duration(c.Times.ReplaceAfter) != 90*time.Second || c.NodePort != daemon.DefaultNodePort || !c.AutoPools {
		t.Errorf("read: %+v", c)
	}
}

func TestTheSmallestConfigurationWorks(t *testing.T) {
	c, err := load(t, "node: n1\netcd: {embedded: {}}\n")
	if err != nil {
		t.Fatal(err)
	}
	if time.Duration(c.Times.Lease) != 5*time.Second || len(c.API) != 2 || c.CSI != daemon.DefaultCSI {
		t.Errorf("defaults: %+v", c)
	}
}

func TestMistakesAreNamed(t *testing.T) {
	for name, tc := range map[string]struct{ text, says string }{
		"spelling":          {"nod: n1\netcd: {embedded: {}}", "nod"},
		"no etcd":           {"node: n1", "exactly one of embedded and endpoints"},
		"two etcds":         {"node: n1\netcd: {embedded: {}, endpoints: [http://x:1]}", "exactly one"},
		"node id":           {"node: 'a b'\netcd: {embedded: {}}", "node id"},
		"address with port": {"node: n1\naddress: 10.0.0.1:99\netcd: {embedded: {}}", "without a port"},
		"any address":       {"node: n1\naddress: 0.0.0.0\netcd: {embedded: {}}", "own address"},
		"port":              {"node: n1\ndataPort: 70000\netcd: {embedded: {}}", "dataPort"},
		"relative pool":     {"node: n1\npools: [{path: sdb}]\netcd: {embedded: {}}", "not absolute"},
		"api":               {"node: n1\napi: [nonsense]\netcd: {embedded: {}}", "host:port"},
		"state":             {"node: n1\nstateDir: x\netcd: {embedded: {}}", "stateDir"},
		"lease":             {"node: n1\ntimes: {lease: 10ms}\netcd: {embedded: {}}", "times.lease"},
		"duration":          {"node: n1\ntimes: {lease: fast}\netcd: {embedded: {}}", "fast"},
		"retryPools":        {"node: n1\ntimes: {retryPools: 10ms}\netcd: {embedded: {}}", "retryPools"},
		"replaceAfter":      {"node: n1\ntimes: {replaceAfter: 1s}\netcd: {embedded: {}}", "replaceAfter"},
		"not a member":      {"node: n1\netcd: {embedded: {members: {n2: a}}}", "does not name this node"},
		"even members":      {"node: n1\netcd: {embedded: {members: {n1: a, n2: b}}}", "odd number"},
		"half a key":        {"node: n1\netcd: {endpoints: [http://x:1], certFile: /c}", "keyFile"},
		"half a login":      {"node: n1\netcd: {endpoints: [http://x:1], username: u}", "passwordFile"},
		"log level":         {"node: n1\nlog: {level: loud}\netcd: {embedded: {}}", "log.level"},
		"log format":        {"node: n1\nlog: {format: xml}\netcd: {embedded: {}}", "log.format"},
		"no YAML":           {"{", "node.yaml"},
	} {
		_, err := load(t, tc.text)
		if !errors.Is(err, holdfast.Invalid) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: got %v of kind %v, want kind invalid with %q", name, err, holdfast.KindOf(err), tc.says)
		}
	}
	if _, err := daemon.Load("/nonexistent"); !errors.Is(err, holdfast.Invalid) {
		t.Errorf("no file: %v", err)
	}
}
