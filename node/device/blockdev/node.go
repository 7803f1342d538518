package blockdev

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Node is a block device of this kernel.
type Node struct {
	Path string // /dev/NAME
	Dev  string // "major:minor", once Ensure was called
}

// Ensure finds the device's number, and makes its node where /dev is not the
// kernel's own.
func (n *Node) Ensure() error {
	raw, err := os.ReadFile(n.Sys("dev"))
	if err != nil {
		return err
	}
	n.Dev = strings.TrimSpace(string(raw))
	var major, minor uint32
	if _, err := fmt.Sscanf(n.Dev, "%d:%d", &major, &minor); err != nil {
		return fmt.Errorf("%s says %q: %w", n.Sys("dev"), n.Dev, err)
	}
	dev := unix.Mkdev(major, minor)
	var st unix.Stat_t
	err = unix.Stat(n.Path, &st)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == dev:
		return nil
	case err == nil:
		return fmt.Errorf("%s is not the block device %s; remove it", n.Path, n.Dev)
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	err = unix.Mknod(n.Path, unix.S_IFBLK|0o660, int(dev))
	if errors.Is(err, unix.EEXIST) { // the kernel or udev was faster
		return nil
	}
	return err
}

// Sys is a file of the device's directory in /sys.
func (n Node) Sys(name string) string {
	return filepath.Join("/sys/block", filepath.Base(n.Path), name)
}

// Number reads a number from a file of the device's directory in /sys.
func (n Node) Number(name string) (int64, error) {
	raw, err := os.ReadFile(n.Sys(name))
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
}

// SizeBytes is the device's size as the kernel has it.
func (n Node) SizeBytes() (int64, error) {
	sectors, err := n.Number("size")
	return sectors * 512, err
}

// Set writes to a file of the device's directory in /sys.
func (n Node) Set(name string, value int64) error {
	return n.SetText(name, strconv.FormatInt(value, 10))
}

// SetText writes to a file of the device's directory in /sys.
func (n Node) SetText(name, value string) error {
	return os.WriteFile(n.Sys(name), []byte(value), 0)
}

// Text is the trimmed content of a file of the device's directory in /sys; empty
// if there is none.
func (n Node) Text(name string) string {
	raw, _ := os.ReadFile(n.Sys(name)) // absent is empty
	return strings.TrimSpace(string(raw))
}
