package engine

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// writerEnv tells this program to be the process that is killed: the pool's device
// and the folder that it is mounted in.
const writerEnv = "HF_TEST_WRITER"

// writeAndWait opens the pool, writes, says so, and waits to be killed.
func writeAndWait(device, root string) error {
	p, err := OpenPool(context.Background(), openOptions(device, root))
	if err != nil {
		return err
	}
	if err := p.Create(context.Background(), testVolume, testReplica, 64<<20); err != nil {
		return err
	}
	r, err := p.Open(testReplica)
	if err != nil {
		return err
	}
	for i := range int64(3) {
		if err := r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: uint64(i + 1)}, fill(make([]byte, 4096), 7), i<<22, false); err != nil {
			return err
		}
	}
	fmt.Println(r.State().Boot)
	<-time.After(time.Hour)
	return nil
}

// TestAKilledProcessLeavesItsMemory: with a real process, a real kill and a real
// pool; and when the memory is unmounted before the next one opens the pool.
func TestAKilledProcessLeavesItsMemory(t *testing.T) {
	for _, unmounted := range []bool{false, true} {
		t.Run(fmt.Sprint("unmounted ", unmounted), func(t *testing.T) {
			device, root, _ := formatted(t)
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), writerEnv+"="+device+"|"+root)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			boot, err := bufio.NewReader(out).ReadString('\n')
			must(t, err)
			must(t, cmd.Process.Kill())
			_ = cmd.Wait()
			if unmounted {
				dirs, _ := filepath.Glob(filepath.Join(memoryRoot(root), "*"))
				if len(dirs) != 1 {
					t.Fatalf("memory: %v", dirs)
				}
				must(t, unix.Unmount(dirs[0], 0))
			}
			p := mustOpenPool(t, device, root)
			r, err := p.Open(testReplica)
			must(t, err)
			st := r.State()
			if same := st.Boot == strings.TrimSpace(boot); same == unmounted {
				t.Errorf("boot %q, was %q", st.Boot, boot)
			}
			changed, err := r.Changed(1)
			must(t, err)
			for i := range int64(3) {
				x := holdfast.Extent{Offset: i << 22, Length: 4096}
				if in := within(x, st.Tail); in == unmounted || within(x, st.Suspects) != unmounted || !within(x, changed) {
					t.Errorf("write %d: tail %v, suspects %v, changed %v", i, st.Tail, st.Suspects, changed)
				}
			}
			wantSound(t, p)
			must(t, p.Close())
			if left, _ := filepath.Glob(filepath.Join(memoryRoot(root), "*")); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}
