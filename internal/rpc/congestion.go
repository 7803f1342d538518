package rpc

import (
	"errors"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// dataControl is control for connections of the data plane.
func (c Config) dataControl(network, address string, rc syscall.RawConn) error {
	if err := c.control(network, address, rc); err != nil {
		return err
	}
	var cerr error
	if err := rc.Control(func(fd uintptr) { cerr = c.congestion(int(fd)) }); err != nil {
		return err
	}
	return cerr
}

// congestion chooses TCP's congestion control of a socket, which accepted connections
// inherit (tcp(7), TCP_CONGESTION). BBR is made for the Internet: between nodes of a
// cluster its pacing by timers costs a fifth of the CPU time of large writes, and a
// tenth of their throughput.
func (c Config) congestion(fd int) error {
	if c.Congestion == "" {
		now, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
		if err == nil && strings.HasPrefix(now, "bbr") {
			// A kernel without CUBIC keeps BBR.
			_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic")
		}
		return nil
	}
	op := "use congestion control " + c.Congestion
	err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, c.Congestion)
	switch {
	case errors.Is(err, unix.ENOENT):
		have, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
		return holdfast.E(op, holdfast.Invalid, "the kernel has none of this name; choose one of "+strings.Join(strings.Fields(string(have)), ", "))
	case errors.Is(err, unix.EPERM):
		return holdfast.E(op, holdfast.Denied, "it needs CAP_NET_ADMIN, or to be among net.ipv4.tcp_allowed_congestion_control")
	}
	return holdfast.Wrap(op, err)
}
