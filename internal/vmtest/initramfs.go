package vmtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"

	"github.com/holdfast-storage/holdfast"
)

// Guest is what is inside a machine.
type Guest struct {
	Kernel   *Kernel
	Modules  []string          // loaded before the script runs, as the kernel names them: "dm_crypt"
	Programs []string          // of this machine, by name or path; their libraries come along
	Files    map[string]string // path in the guest: path here
	// Script is what the guest does, as a shell's text. Its output is the
	// machine's, its exit status the machine's result.
	Script string
}

// initScript is the guest's first process. It says that the script begins
// by beginMark and how it ended by endMark, and switches the machine off.
const initScript = `#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /run /tmp /root /sys/kernel/debug
mount -t tmpfs -o size=90% tmp /tmp
mount -t tmpfs run /run
mount -t debugfs debug /sys/kernel/debug
ip link set lo up
for m in $(cat /modules); do insmod "/$m" || echo "insmod $m failed"; done
stty -F /dev/ttyS1 raw -echo
echo "` + beginMark + `" >/dev/ttyS1
sh /script </dev/null >/dev/ttyS1 2>&1
echo "` + endMark + `$?" >/dev/ttyS1
sync
poweroff -f
`

// beginMark is the first line of a machine's output: its kernel works.
const beginMark = "vmtest: the script begins"

// endMark begins the last line of a machine's output.
const endMark = "vmtest: the script ended with status "

// writeTo writes the guest's root filesystem as the kernel unpacks it.
func (g Guest) writeTo(w io.Writer) error {
	a := newArchive(w)
	for _, dir := range []string{"proc", "sys", "dev", "etc", "usr", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "mnt"} {
		a.dir(dir)
	}
	for _, l := range []string{"bin", "sbin", "lib", "lib64"} {
		a.link(l, "usr/"+l)
	}
	a.link("etc/mtab", "/proc/self/mounts")
	a.text("init", 0o755, initScript)
	a.text("script", 0o755, g.Script)
	a.text("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n")
	a.text("etc/group", 0o644, "root:x:0:\n")
	a.text("etc/hosts", 0o644, "127.0.0.1 localhost\n")
	files, err := g.Kernel.order(g.Modules)
	if err != nil {
		return err
	}
	var list strings.Builder
	for _, f := range files {
		data, err := g.Kernel.module(f)
		if err != nil {
			return err
		}
		name := "modules.d/" + moduleName(f) + ".ko"
		a.text(name, 0o644, string(data))
		fmt.Fprintln(&list, name)
	}
	a.text("modules", 0o644, list.String())
	for _, p := range append([]string{"busybox"}, g.Programs...) {
		if err := a.program(p); err != nil {
			return err
		}
	}
	for to, from := range g.Files {
		a.file(strings.TrimPrefix(to, "/"), from)
	}
	return a.close()
}

// archive writes a cpio archive of the format that the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst calls "newc". The
// first error stays and is told by close.
type archive struct {
	w    *bufio.Writer
	at   int64
	ino  int
	have map[string]bool
	err  error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), have: map[string]bool{}}
}

const (
	modeDir  = 0o040755
	modeLink = 0o120777
	modeFile = 0o100000
)

func (a *archive) put(p []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(p)
		a.at += int64(len(p))
	}
}

func (a *archive) pad() { a.put(make([]byte, -a.at&3)) }

// entry writes one file with the directories above it; a second one of that
// name is left out.
func (a *archive) entry(name string, mode int, data []byte) {
	if a.have[name] {
		return
	}
	a.have[name] = true
	if up := path.Dir(name); up != "." && name != trailer {
		a.entry(up, modeDir, nil)
	}
	a.ino++
	// Fields: ino mode uid gid nlink mtime filesize, device and rdevice numbers,
	// namesize with the zero, checksum.
	a.put(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0))
	a.put(append([]byte(name), 0))
	a.pad()
	a.put(data)
	a.pad()
}

func (a *archive) dir(name string)      { a.entry(name, modeDir, nil) }
func (a *archive) link(name, to string) { a.entry(name, modeLink, []byte(to)) }
func (a *archive) text(name string, perm int, text string) {
	a.entry(name, modeFile|perm, []byte(text))
}

// merged is where a path of this machine goes in the guest, whose /bin, /sbin
// and /lib are links to those in /usr.
func merged(name string) string {
	name = strings.TrimPrefix(path.Clean(name), "/")
	if first, _, _ := strings.Cut(name, "/"); slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, first) {
		return "usr/" + name
	}
	return name
}

func (a *archive) file(name, from string) {
	name = merged(name)
	if a.have[name] || a.err != nil {
		return
	}
	data, err := os.ReadFile(from)
	if err != nil {
		a.err = err
		return
	}
	a.entry(name, modeFile|0o755, data)
}

// program adds one with the libraries that it is linked with.
func (a *archive) program(name string) error {
	at, err := exec.LookPath(name)
	if err != nil {
		return holdfast.WrapKind("take a program along (scripts/prerequisites.sh vm installs them)", holdfast.NotFound, err)
	}
	a.file(at, at)
	out, err := exec.Command("ldd", at).Output()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return nil // linked statically
	}
	if err != nil {
		return holdfast.WrapKind("list the libraries of "+at, holdfast.Other, err)
	}
	for line := range strings.Lines(string(out)) {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				a.file(word, word)
			}
		}
	}
	return nil
}

// trailer ends an archive.
const trailer = "TRAILER!!!"

func (a *archive) close() error {
	a.entry(trailer, 0, nil)
	if a.err == nil {
		a.err = a.w.Flush()
	}
	return holdfast.WrapKind("write the guest's root filesystem", holdfast.Other, a.err)
}
