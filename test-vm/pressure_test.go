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

// pressureScript runs the service and a writer in one cgroup with little memory,
// which the writer fills with dirty pages of a volume: when the daemon wants
// memory, the kernel frees it by writing to that very volume, and must not have the
// daemon wait for that. Then it grows the mounted ext4.
//
// PF_MEMALLOC_NOIO is the flag 0x80000 among a thread's in /proc/PID/stat
// (linux/sched.h); PR_SET_IO_FLUSHER sets it.
const pressureScript = `
export HOLDFAST_ENDPOINT=unix:///run/n1.sock
group=/sys/fs/cgroup/small
mkdir -p /state && mkfs.ext4 -q -F /dev/vdb && mount -t ext4 /dev/vdb /state || exit 1
mount -t cgroup2 none /sys/fs/cgroup && echo +memory >/sys/fs/cgroup/cgroup.subtree_control && mkdir $group || exit 1
echo 128M >$group/memory.max
sh -c "echo \$\$ >$group/cgroup.procs; exec holdfast node --config /etc/holdfast/n1.yaml" >/tmp/n1.log 2>&1 &
patiently() {
	for i in $(seq 60); do "$@" >/tmp/out 2>&1 && { cat /tmp/out; return 0; }; sleep 2; done
	cat /tmp/out; tail -n 20 /tmp/n1.log; return 1
}
for fs in xfs ext4; do
	patiently holdfast volume create $fs --size 400MiB --fs $fs --replicas 1 || exit 1
	patiently holdfast volume attach $fs --node n1 || exit 1
	d=$(sed -n 's/.* as //p' /tmp/out)
	mkdir -p /mnt/$fs && mkfs.$fs -q $d && mount -t $fs $d /mnt/$fs || exit 1
done
pids=$(pidof holdfast)
for s in $(for p in $pids; do echo /proc/$p/task/*/stat; done); do
	[ $(($(cut -d' ' -f9 $s) & 0x80000)) != 0 ] || { echo "$s: no I/O flusher"; cat /tmp/n1.log; exit 1; }
done
[ $(echo $pids | wc -w) = 2 ] || { echo "keeper and daemon are $pids"; exit 1; }
sh -c "echo \$\$ >$group/cgroup.procs
for i in 1 2; do for fs in xfs ext4; do timeout 600 dd if=/dev/zero of=/mnt/\$fs/file bs=1M count=300 conv=notrunc,fsync || exit 1; done; done" || { cat /tmp/n1.log; exit 1; }
cat $group/memory.events
grep -q '^oom_kill 0$' $group/memory.events && [ "$(pidof holdfast)" = "$pids" ] || { cat /tmp/n1.log; exit 1; }

holdfast volume expand ext4 --size 800MiB && resize2fs $d || exit 1
[ $(df -m /mnt/ext4 | awk 'END { print $2 }') -gt 700 ] || { df -m; exit 1; }
timeout 600 dd if=/dev/zero of=/mnt/ext4/more bs=1M count=400 conv=fsync || exit 1
umount /mnt/ext4 /mnt/xfs && fsck.ext4 -fn $d
`

// TestMemoryPressure: a daemon that shares a small memory cgroup with a writer
// through its volumes goes on, as an I/O flusher; an ext4 grows while mounted.
// Both need CAP_SYS_RESOURCE.
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
	m, err := vmtest.Boot(ctx, vmtest.Config{Dir: t.TempDir(), MemoryMB: 2048, Disks: disks, Guest: vmtest.Guest{
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
