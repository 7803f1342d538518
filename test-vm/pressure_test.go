//go:build vm

package testvm

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/holdfast-storage/holdfast/daemon"
	"github.com/holdfast-storage/holdfast/internal/vmtest"
	"github.com/holdfast-storage/holdfast/node/agent"
)

// pressureScript runs the service in a cgroup with little memory and writes through
// volumes: first from a cgroup with even less, then with hardly any memory left in
// the whole machine, so that the kernel frees memory by writing to the daemon's own
// devices, and must not have the daemon wait for that. Then it grows the mounted
// ext4.
//
// PF_MEMALLOC_NOIO is the flag 0x80000 among a thread's in /proc/PID/stat
// (linux/sched.h); PR_SET_IO_FLUSHER sets it.
const pressureScript = `
export HOLDFAST_ENDPOINT=unix:///run/n1.sock
groups=/sys/fs/cgroup
mkdir -p /state && mkfs.ext4 -q -F /dev/vdb && mount -t ext4 /dev/vdb /state || exit 1
mount -t cgroup2 none $groups && echo +memory >$groups/cgroup.subtree_control && mkdir $groups/daemon $groups/writer || exit 1
echo 192M >$groups/daemon/memory.max
# memory.high slows a writer down where memory.max would end it: Linux does not wait
# long for dirty pages.
echo 32M >$groups/writer/memory.high
in_group() { sh -c 'echo $$ >/sys/fs/cgroup/$0/cgroup.procs && exec "$@"' "$@"; }
failed() { echo "$@"; cat $groups/*/memory.events; tail -n 30 /tmp/n1.log; exit 1; }
patiently() {
	for i in $(seq 60); do "$@" >/tmp/out 2>&1 && { cat /tmp/out; return 0; }; sleep 2; done
	cat /tmp/out; failed "$@"
}
in_group daemon holdfast node --config /etc/holdfast/n1.yaml >/tmp/n1.log 2>&1 &
for fs in xfs ext4; do
	patiently holdfast volume create $fs --size 400MiB --fs $fs --replicas 1
	patiently holdfast volume attach $fs --node n1
	d=$(sed -n 's/.* as //p' /tmp/out)
	mkdir -p /mnt/$fs && mkfs.$fs -q $d && mount -t $fs $d /mnt/$fs || failed mount
done
# A third process, for what waits for loop devices, comes and goes.
daemons() { for p in $(pidof holdfast); do case "$(tr '\0' ' ' </proc/$p/cmdline)" in *" node "*) echo $p;; esac; done; }
pids=$(daemons)
[ $(echo $pids | wc -w) = 2 ] || failed "keeper and daemon are $pids"
for s in $(for p in $(pidof holdfast); do echo /proc/$p/task/*/stat; done); do
	flags=$(cut -d' ' -f9 $s) || continue # it has ended
	[ $((flags & 0x80000)) != 0 ] || failed "$s: no I/O flusher"
done
for fs in xfs ext4; do
	in_group writer timeout 900 dd if=/dev/zero of=/mnt/$fs/file bs=64k count=4800 conv=fsync || failed "write in a small group"
done
mkdir -p /full && mount -t tmpfs -o size=100% full /full
available() { awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo; }
n=0
while [ $(available) -gt 120 ]; do n=$((n + 1)); dd if=/dev/urandom of=/full/$n bs=1M count=16 2>/dev/null || failed fill; done
echo "$(available) MiB are available"
for fs in xfs ext4; do
	timeout 900 dd if=/dev/zero of=/mnt/$fs/file bs=64k count=4800 conv=notrunc,fsync || failed "write in a full machine"
done
umount /full
grep -q '^oom_kill 0$' $groups/daemon/memory.events && [ "$(daemons)" = "$pids" ] || failed "the daemon was killed: $pids, $(daemons)"

holdfast volume expand ext4 800MiB && resize2fs $d || failed grow
[ $(df -m /mnt/ext4 | awk 'END { print $2 }') -gt 700 ] || failed "$(df -m)"
timeout 900 dd if=/dev/zero of=/mnt/ext4/more bs=1M count=400 conv=fsync || failed "write behind the old end"
umount /mnt/ext4 /mnt/xfs && fsck.ext4 -fn $d
`

// TestMemoryPressure: a daemon with little memory goes on, as an I/O flusher, while
// writers dirty all there is through its volumes; an ext4 grows while mounted. Both
// need CAP_SYS_RESOURCE.
func TestMemoryPressure(t *testing.T) {
	var disks []string // a pool, and the daemon's folder
	for _, name := range []string{"pool", "state"} {
		at := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(at, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(at, 4<<30); err != nil {
			t.Fatal(err)
		}
		disks = append(disks, "format=raw,file="+at)
	}
	ctx, cancel := context.WithTimeout(t.Context(), cutLimit)
	defer cancel()
	m, err := vmtest.Boot(ctx, vmtest.Config{Dir: t.TempDir(), MemoryMB: 1024, Disks: disks, Guest: vmtest.Guest{
		Kernel: kernel(t, "bookworm-backports"), Modules: daemonModules(), Programs: daemonPrograms(),
		Files: daemonFiles(t, []daemon.Config{loneNode()}), Script: pressureScript,
	}})
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

func loneNode() daemon.Config {
	cfg := daemon.DefaultConfig()
	cfg.Node, cfg.StateDir, cfg.RunDir, cfg.CSI = "n1", "/state", "/run/n1", ""
	cfg.API = []string{"unix:///run/n1.sock"}
	cfg.Pools = []agent.PoolConfig{{Path: "/dev/vda", Format: true}}
	cfg.Etcd.Embedded = &daemon.EmbeddedEtcd{ClientPort: 7100, PeerPort: 7101}
	return cfg
}
