//go:build vm

package testvm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-storage/holdfast/daemon"
	"github.com/holdfast-storage/holdfast/internal/vmtest"
)

// takeOvers is how often the daemon is killed.
const takeOvers = 4

// takeOverScript has a daemon under its keeper killed again and again while a
// database commits and others write: no error, the filesystems sound, and nothing
// that was acknowledged missing. One kill follows another only when all goes on.
const takeOverScript = `
export HOLDFAST_ENDPOINT=unix:///run/n1.sock
failed() { echo "$@"; tail -n 40 /tmp/n1.log; dmesg | tail -n 20; exit 1; }
patiently() {
	for i in $(seq 90); do "$@" >/tmp/out 2>&1 && { cat /tmp/out; return 0; }; sleep 2; done
	cat /tmp/out; failed "$@"
}
mkdir -p /state && mkfs.ext4 -q -F /dev/vdb && mount -t ext4 /dev/vdb /state || exit 1
holdfast node --config /etc/holdfast/n1.yaml >/tmp/n1.log 2>&1 &
keeper=$!
for fs in xfs ext4; do
	patiently holdfast volume create $fs --size 400MiB --fs $fs --replicas 1
	patiently holdfast volume attach $fs --node n1
	d=$(sed -n 's/.* as //p' /tmp/out)
	case $d in DEVICES) ;; *) failed "the device is $d" ;; esac
	mkdir -p /mnt/$fs && mkfs.$fs -q $d && mount -t $fs $d /mnt/$fs || failed mount
done
litmus write /mnt/ext4 ext4 >/tmp/acks || echo "litmus write failed" >>/tmp/wrong &
litmus waits /mnt/xfs || echo "litmus waits failed" >>/tmp/wrong &
acks() { wc -l </tmp/acks; }
more() {
	want=$(($(acks) + 6))
	for i in $(seq 300); do [ $(acks) -ge $want ] && return; [ -e /tmp/wrong ] && failed "$(cat /tmp/wrong)"; sleep 1; done
	failed "nothing goes on"
}
serving() { for p in $(pidof holdfast); do [ $p = $keeper ] || echo $p; done; }
for n in $(seq KILLS); do
	more
	old=$(serving)
	[ -n "$old" ] || failed "no daemon"
	kill -9 $old
	more
	[ "$(serving)" != "$old" ] || failed "nobody was killed"
	echo "take-over $n: it goes on"
done
grep -E 'level=(WARN|ERROR)' /tmp/n1.log
[ -e /tmp/wrong ] && failed "$(cat /tmp/wrong)"
killall -9 litmus
while pidof litmus >/dev/null; do sleep 1; done
litmus check /mnt/ext4 $(grep -c db /tmp/acks) $(grep -c log /tmp/acks) || failed check
patiently umount /mnt/ext4
patiently umount /mnt/xfs
fsck.ext4 -fn $d || failed fsck
`

// TestTakeOver: whatever the front end, the daemon can be killed. With which one
// depends on the kernel, when nobody chooses.
func TestTakeOver(t *testing.T) {
	for _, c := range []struct {
		kernel, frontEnd string
		modules          []string
		devices          string // as the shell's case has it
	}{
		{"bookworm", "auto", []string{"nbd"}, "/dev/nbd*"},
		{"bookworm-backports", "auto", nil, "/dev/loop*"},
		{"bookworm-backports", "nbd", []string{"nbd"}, "/dev/nbd*"},
		{"bookworm-backports", "ublk", []string{"ublk_drv"}, "/dev/ublkb*"},
	} {
		t.Run(c.kernel+"/"+c.frontEnd, func(t *testing.T) {
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
			cfg := loneNode()
			cfg.FrontEnd = c.frontEnd
			script := strings.NewReplacer("DEVICES", c.devices, "KILLS", fmt.Sprint(takeOvers)).Replace(takeOverScript)
			ctx, cancel := context.WithTimeout(t.Context(), cutLimit)
			defer cancel()
			m, err := vmtest.Boot(ctx, vmtest.Config{Dir: t.TempDir(), MemoryMB: 2048, Disks: disks, Guest: vmtest.Guest{
				Kernel: kernel(t, c.kernel), Modules: append(daemonModules(), c.modules...), Programs: daemonPrograms(),
				Files: daemonFiles(t, []daemon.Config{cfg}), Script: script,
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
		})
	}
}
