package vmtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/holdfast-storage/holdfast"
)

// Config is a machine.
type Config struct {
	Guest Guest
	// Dir is a directory of the machine's own, for its files.
	Dir      string
	MemoryMB int // default 2048
	// Disks become /dev/vda, /dev/vdb and so on: as qemu's -drive has it, after
	// "if=virtio,".
	Disks []string
}

// Machine is one that runs, or ran.
type Machine struct {
	cmd     *exec.Cmd
	console string // what the kernel wrote
	qemu    string // what qemu complained of
	lines   chan string
	began   chan struct{} // the script has
	ended   chan struct{}
	status  int // of the script; -1 if it did not end
}

// boots is how often a machine is started whose kernel dies before the script
// begins. Emulated, one does now and then while it patches its own code; nothing
// of what is tested has run by then, and nothing was written to a disk.
const boots = 3

// Boot starts a machine, and returns when its script begins, or when it has ended
// without. It is killed when ctx ends.
func Boot(ctx context.Context, c Config) (*Machine, error) {
	for n := 1; ; n++ {
		m, err := start(ctx, c)
		if err != nil {
			return nil, err
		}
		select {
		case <-m.began:
			return m, nil
		case <-m.ended:
		}
		if n == boots || ctx.Err() != nil || m.hasBegun() {
			return m, nil
		}
	}
}

func (m *Machine) hasBegun() bool {
	select {
	case <-m.began:
		return true
	default:
		return false
	}
}

func start(ctx context.Context, c Config) (*Machine, error) {
	const op = "boot a virtual machine"
	root := filepath.Join(c.Dir, "root.cpio")
	f, err := os.Create(root)
	if err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Other, err)
	}
	if err := errors.Join(c.Guest.writeTo(f), f.Close()); err != nil {
		return nil, holdfast.Wrap(op, err)
	}
	m := &Machine{console: filepath.Join(c.Dir, "console.log"), qemu: filepath.Join(c.Dir, "qemu.log"),
		lines: make(chan string, 1024), began: make(chan struct{}), ended: make(chan struct{}), status: -1}
	m.cmd = exec.CommandContext(ctx, "qemu-system-x86_64", c.arguments(root, m.console)...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	errs, err := os.Create(m.qemu)
	if err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Other, err)
	}
	defer errs.Close()
	m.cmd.Stderr = errs
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Other, err)
	}
	if err := m.cmd.Start(); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	go m.run(out)
	return m, nil
}

// arguments are qemu's. Its first serial port is the kernel's console, the
// second one the script's output: messages of the kernel never stand in it. KVM
// is not used where there is one: inside another machine it may not work, and
// hang without a word. The processor has no cmpxchg16b: qemu 7.2 leaves rubbish in
// the flags after it now and then, from which the guest's kernel dies.
func (c Config) arguments(root, console string) []string {
	memory := c.MemoryMB
	if memory == 0 {
		memory = 2048
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-nic", "none",
		"-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-smp", "2", "-m", strconv.Itoa(memory),
		"-kernel", c.Guest.Kernel.image(), "-initrd", root,
		"-append", "console=ttyS0 loglevel=5 panic=-1 mitigations=off tsc=reliable no_timer_check",
		"-serial", "file:" + console, "-serial", "stdio",
	}
	for _, d := range c.Disks {
		args = append(args, "-drive", "if=virtio,"+d)
	}
	return args
}

// run reads the output until the machine ends.
func (m *Machine) run(out io.Reader) {
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := strings.TrimRight(sc.Text(), "\r")
		if line == beginMark {
			close(m.began)
			continue
		}
		if status, ok := strings.CutPrefix(line, endMark); ok {
			m.status, _ = strconv.Atoi(status)
			continue
		}
		m.lines <- line
	}
	_ = m.cmd.Wait() // how it ended is told by the status of the script
	close(m.ended)
	close(m.lines)
}

// Lines are what the script writes; closed when the machine has ended. They
// must be read, or the machine stands still.
func (m *Machine) Lines() <-chan string { return m.lines }

// Kill is pulling the plug. It returns when the machine has ended; lines that
// nobody read by then are dropped.
func (m *Machine) Kill() {
	_ = m.cmd.Process.Kill() // ended already is fine
	for range m.lines {
	}
	<-m.ended
}

// Wait waits for the end and fails unless the script ended with status 0. All
// Lines must have been read.
func (m *Machine) Wait() error {
	<-m.ended
	switch m.status {
	case 0:
		return nil
	case -1:
		return holdfast.E("run in a virtual machine", holdfast.Unavailable, "it ended before its script did; the console's last words:\n"+m.Console(40))
	}
	return holdfast.E("run in a virtual machine", holdfast.Other, fmt.Sprintf("the script ended with status %d; the console's last words:\n%s", m.status, m.Console(40)))
}

// Console is the last n lines that the kernel wrote, and what qemu complained of.
func (m *Machine) Console(n int) string {
	raw, err := os.ReadFile(m.console)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	qemu, _ := os.ReadFile(m.qemu) // absent if it never started
	return strings.Join(lines[max(0, len(lines)-n):], "\n") + "\n" + string(qemu)
}
