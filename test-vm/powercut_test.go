//go:build vm

package testvm

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast/daemon"
	"github.com/holdfast-storage/holdfast/internal/vmtest"
	"github.com/holdfast-storage/holdfast/node/agent"
)

// cutSeed chooses when the power goes, and what disks lose.
var cutSeed = flag.Uint64("vm.seed", 1, "seed of the power cuts")

const (
	cutNodes = 3
	cuts     = 3 // one after another, the last one is looked at as well
	// cutAcks is how much has to be acknowledged on each volume after a boot
	// before the power goes; up to twice that is waited for.
	cutAcks  = 40
	cutLimit = 20 * time.Minute
)

// acks are the last numbers that litmus has said, by "VOLUME KIND".
type acks map[string]int

// TestPowerCut: a machine runs a whole cluster, three daemons with a disk each and
// the metadata on a fourth one, and commits through volumes with three replicas,
// on XFS and ext4. Its power is cut at any moment, several times; each time
// everything that was acknowledged is there, whole, and the filesystems are sound.
// All replicas lose power at once, so what is there was flushed on them all.
func TestPowerCut(t *testing.T) {
	rng := rand.New(rand.NewPCG(*cutSeed, 0))
	var disks []*cutDisk
	for range cutNodes {
		disks = append(disks, newCutDisk(t, rng, 2<<30))
	}
	disks = append(disks, newCutDisk(t, rng, 1<<30)) // the daemons' folders
	files := daemonFiles(t, cutConfigs())
	said := acks{}
	for boot := range cuts + 1 {
		c := vmtest.Config{Dir: t.TempDir(), MemoryMB: 3072, Guest: vmtest.Guest{
			Kernel: kernel(t, "bookworm-backports"), Modules: daemonModules(),
			Programs: daemonPrograms(), Files: files, Script: cutScript(boot, said),
		}}
		for _, d := range disks {
			c.Disks = append(c.Disks, d.drive())
		}
		if boot == cuts {
			lookAtEnd(t, c)
			return
		}
		cutBoot(t, c, rng, said)
		for _, d := range disks {
			d.cut()
		}
		t.Logf("cut %d: acknowledged so far %v", boot+1, said)
	}
}

// cutConfigs are the daemons', the first one with the metadata.
func cutConfigs() []daemon.Config {
	var all []daemon.Config
	for i := range cutNodes {
		cfg := daemon.DefaultConfig()
		cfg.Node, cfg.DataPort, cfg.NodePort = fmt.Sprintf("n%d", i+1), 7001+10*i, 7002+10*i
		cfg.StateDir, cfg.RunDir, cfg.CSI = "/state/"+cfg.Node, "/run/"+cfg.Node, ""
		cfg.API = []string{"unix:///run/" + cfg.Node + ".sock"}
		cfg.Pools = []agent.PoolConfig{{Path: fmt.Sprintf("/dev/vd%c", 'a'+i), Format: true}}
		cfg.Etcd.Endpoints = []string{"http://127.0.0.1:7100"}
		if i == 0 {
			cfg.Etcd.Endpoints, cfg.Etcd.Embedded = nil, &daemon.EmbeddedEtcd{ClientPort: 7100, PeerPort: 7101}
		}
		all = append(all, cfg)
	}
	return all
}

// cutScript starts the cluster and mounts the volumes, makes them the first time,
// checks them any other time, and then writes until the power goes.
func cutScript(boot int, said acks) string {
	var s strings.Builder
	s.WriteString(`
export HOLDFAST_ENDPOINT=unix:///run/n1.sock
patiently() {
	for i in $(seq 60); do "$@" >/tmp/out 2>&1 && { cat /tmp/out; return 0; }; sleep 2; done
	cat /tmp/out; tail -n 20 /tmp/n*.log; return 1
}
mkdir -p /state /mnt/xfs /mnt/ext4
`)
	if boot == 0 {
		s.WriteString("mkfs.ext4 -q -F /dev/vdd || exit 1\n")
	}
	s.WriteString(`mount -t ext4 /dev/vdd /state || exit 1
for n in n1 n2 n3; do holdfast node --config /etc/holdfast/$n.yaml >/tmp/$n.log 2>&1 & done
echo "daemons started at $(cut -d' ' -f1 /proc/uptime)"
`)
	for _, fs := range []string{"xfs", "ext4"} {
		if boot == 0 {
			fmt.Fprintf(&s, "patiently holdfast volume create %s --size 400MiB --fs %s || exit 1\n", fs, fs)
		}
		fmt.Fprintf(&s, "patiently holdfast volume attach %s --node n1 || exit 1\nd=$(sed -n 's/.* as //p' /tmp/out)\n", fs)
		if boot == 0 {
			fmt.Fprintf(&s, "mkfs.%s -q $d || exit 1\n", fs)
		} else {
			check := map[string]string{"xfs": "xfs_repair -n", "ext4": "fsck.ext4 -fn"}[fs]
			// Mounting replays the filesystem's own journal first.
			fmt.Fprintf(&s, "mount -t %s $d /mnt/%s && umount /mnt/%s && %s $d || exit 1\n", fs, fs, fs, check)
		}
		fmt.Fprintf(&s, "mount -t %s $d /mnt/%s || exit 1\n", fs, fs)
		if boot > 0 {
			fmt.Fprintf(&s, "litmus check /mnt/%s %d %d || exit 1\n", fs, said[fs+" db"], said[fs+" log"])
		}
	}
	if boot < cuts {
		// Beside them, writes that nobody flushes or misses, of which disks lose some.
		s.WriteString(`for fs in xfs ext4; do
	litmus write /mnt/$fs $fs &
	while dd if=/dev/urandom of=/mnt/$fs/noise bs=16k count=512 oflag=direct conv=notrunc 2>/dev/null; do :; done &
done
wait
exit 1
`)
	}
	return s.String()
}

// cutBoot runs the machine until enough is acknowledged, and pulls the plug.
func cutBoot(t *testing.T, c vmtest.Config, rng *rand.Rand, said acks) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cutLimit)
	defer cancel()
	m, err := vmtest.Boot(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	enough := cutAcks + rng.IntN(cutAcks)
	fresh := map[string]int{}
	var now <-chan time.Time
	for {
		select {
		case line, on := <-m.Lines():
			if !on {
				t.Fatalf("the machine ended by itself: %v", m.Wait())
			}
			var name, kind string
			var n int
			if _, err := fmt.Sscanf(line, "acked %s %s %d", &name, &kind, &n); err != nil {
				t.Log(line)
				continue
			}
			said[name+" "+kind] = n
			fresh[name]++
			if now == nil && fresh["xfs"] >= enough && fresh["ext4"] >= enough {
				now = time.After(time.Duration(rng.IntN(500)) * time.Millisecond)
			}
		case <-now:
			// What has not been read by now is not counted as acknowledged.
			t.Logf("after %v acknowledgements the power goes", fresh)
			return
		}
	}
}

// lookAtEnd boots once more only to look.
func lookAtEnd(t *testing.T, c vmtest.Config) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), cutLimit)
	defer cancel()
	m, err := vmtest.Boot(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Kill()
	for line := range m.Lines() {
		t.Log(line)
	}
	if err := m.Wait(); err != nil {
		t.Fatal(err)
	}
}
