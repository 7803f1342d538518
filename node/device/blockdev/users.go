package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Users describes who uses the device, for the person who has to make it free:
// mount points, devices stacked on it, and processes that have it open. It can
// be incomplete (other mount and process namespaces are not seen).
func (n Node) Users() string {
	var who []string
	on, _ := n.Mounts()
	for _, e := range on {
		who = append(who, "mounted at "+e.Point)
	}
	holders, _ := os.ReadDir(n.Sys("holders"))
	for _, h := range holders {
		who = append(who, "used by the block device "+h.Name())
	}
	if len(who) == 0 {
		who = n.openers()
	}
	if len(who) == 0 {
		return "somebody unknown has it open"
	}
	const most = 5
	if len(who) > most {
		who = append(who[:most], fmt.Sprintf("and %d more", len(who)-most))
	}
	return strings.Join(who, ", ")
}

// Opened says whether a process that this one can see has the device open, or
// another block device is stacked on it.
func (n Node) Opened() bool {
	holders, _ := os.ReadDir(n.Sys("holders"))
	return len(holders) > 0 || len(n.openers()) > 0
}

// openers lists the processes with an open descriptor of the device.
func (n Node) openers() []string {
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	var who []string
	seen := map[string]bool{}
	for _, fd := range fds {
		// Only links to device nodes are followed: following one into a
		// filesystem could block.
		to, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(to, "/dev/") {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || devOf(st.Rdev) != n.Dev {
			continue
		}
		proc := filepath.Dir(filepath.Dir(fd))
		if !seen[proc] {
			seen[proc] = true
			name, _ := os.ReadFile(filepath.Join(proc, "comm"))
			who = append(who, fmt.Sprintf("open in process %s (%s)", filepath.Base(proc), strings.TrimSpace(string(name))))
		}
	}
	return who
}

func devOf(rdev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
}
