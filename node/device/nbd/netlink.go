package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// The generic netlink family "nbd": include/uapi/linux/nbd-netlink.h.
const (
	familyName    = "nbd"
	familyVersion = 1

	cmdConnect     = 1
	cmdDisconnect  = 2
	cmdReconfigure = 3

	attrIndex       = 1 // u32
	attrSizeBytes   = 2 // u64
	attrBlockBytes  = 3 // u64
	attrServerFlags = 5 // u64
	attrClientFlags = 6 // u64
	attrSockets     = 7 // a list of sockItem, each with sockFD
	attrDeadTimeout = 8 // u64, seconds
	attrBackend     = 10

	sockItem = 1
	sockFD   = 1 // u32

	// clientDisconnectOnClose removes the device when its last user closes it.
	clientDisconnectOnClose = 1 << 1
)

// order is that of netlink's own fields: the machine's.
var order = binary.NativeEndian

const (
	messageHead = unix.SizeofNlMsghdr
	genericHead = 4 // command, version, two reserved bytes
	attrHead    = unix.SizeofNlAttr
)

// attrs are attributes as they stand in a message.
type attrs []byte

func (a attrs) put(kind int, value []byte) attrs {
	a = order.AppendUint16(a, uint16(attrHead+len(value)))
	a = order.AppendUint16(a, uint16(kind))
	a = append(a, value...)
	return append(a, make([]byte, -len(value)&3)...)
}

func (a attrs) u32(kind int, v uint32) attrs { return a.put(kind, order.AppendUint32(nil, v)) }
func (a attrs) u64(kind int, v uint64) attrs { return a.put(kind, order.AppendUint64(nil, v)) }

func (a attrs) nest(kind int, inner attrs) attrs { return a.put(kind|unix.NLA_F_NESTED, inner) }

// find is the value of an attribute; nil if there is none.
func (a attrs) find(kind int) []byte {
	for len(a) >= attrHead {
		n := int(order.Uint16(a))
		if n < attrHead || n > len(a) {
			return nil
		}
		if int(order.Uint16(a[2:]))&^unix.NLA_F_NESTED == kind {
			return a[attrHead:n]
		}
		a = a[min((n+3)&^3, len(a)):]
	}
	return nil
}

// request is one call of a generic netlink family.
type request struct {
	family uint16
	cmd    uint8
	attrs  attrs
}

// call sends a request and waits for the kernel's acknowledgement. It gives the
// attributes of the answer, if there is one. The error is a unix.Errno when the
// kernel refused.
func call(r request) (attrs, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	m := make([]byte, messageHead, messageHead+genericHead+len(r.attrs))
	m = append(m, r.cmd, familyVersion, 0, 0)
	m = append(m, r.attrs...)
	order.PutUint32(m, uint32(len(m)))
	order.PutUint16(m[4:], r.family)
	order.PutUint16(m[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	order.PutUint32(m[8:], 1) // sequence number
	if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("send", err)
	}
	var answer attrs
	p := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, p, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("receive", err)
		}
		got, done, err := parse(p[:n])
		if got != nil {
			answer = got
		}
		if done || err != nil {
			return answer, err
		}
	}
}

// parse reads what one datagram holds: the attributes of an answer, and whether
// the acknowledgement is there.
func parse(p []byte) (answer attrs, done bool, err error) {
	for len(p) >= messageHead {
		n, kind := int(order.Uint32(p)), order.Uint16(p[4:])
		if n < messageHead || n > len(p) {
			return nil, true, fmt.Errorf("a netlink message of %d bytes in %d: %w", n, len(p), unix.EPROTO)
		}
		body := p[messageHead:n]
		switch {
		case kind == unix.NLMSG_ERROR && len(body) >= 4:
			if e := int32(order.Uint32(body)); e != 0 {
				return answer, true, unix.Errno(-e)
			}
			return answer, true, nil
		case kind >= unix.NLMSG_MIN_TYPE && len(body) >= genericHead:
			answer = attrs(bytes.Clone(body[genericHead:]))
		}
		p = p[min((n+3)&^3, len(p)):]
	}
	return answer, false, nil
}

// findFamily asks for the number of the family; NotFound while the module is not
// loaded.
func findFamily() (uint16, error) {
	a, err := call(request{family: unix.GENL_ID_CTRL, cmd: unix.CTRL_CMD_GETFAMILY,
		attrs: attrs(nil).put(unix.CTRL_ATTR_FAMILY_NAME, append([]byte(familyName), 0))})
	if errors.Is(err, unix.ENOENT) {
		return 0, holdfast.E("find the nbd module", holdfast.NotFound, "it is not loaded")
	}
	if err != nil {
		return 0, holdfast.WrapKind("find the nbd module", holdfast.Unavailable, err)
	}
	id := a.find(unix.CTRL_ATTR_FAMILY_ID)
	if len(id) < 2 {
		return 0, holdfast.E("find the nbd module", holdfast.Unavailable, "the kernel did not say the family's number")
	}
	return order.Uint16(id), nil
}

// connection is what the kernel is told about a device.
type connection struct {
	mark        string // the backend's identifier
	sizeBytes   int64
	blockBytes  int
	serverFlags uint64
	socket      int // -1 for none
}

func (c connection) attrs() attrs {
	a := attrs(nil).put(attrBackend, append([]byte(c.mark), 0))
	if c.sizeBytes > 0 {
		a = a.u64(attrSizeBytes, uint64(c.sizeBytes)).u64(attrBlockBytes, uint64(c.blockBytes))
	}
	if c.socket >= 0 {
		a = a.nest(attrSockets, attrs(nil).nest(sockItem, attrs(nil).u32(sockFD, uint32(c.socket))))
	}
	return a
}

// kernel calls the family.
type kernel struct{ family uint16 }

// connect makes a device and says its index.
func (k kernel) connect(c connection) (int, error) {
	a := c.attrs().u64(attrServerFlags, c.serverFlags).u64(attrDeadTimeout, deadTimeoutSeconds)
	got, err := call(request{family: k.family, cmd: cmdConnect, attrs: a})
	if err != nil {
		return 0, err
	}
	index := got.find(attrIndex)
	if len(index) < 4 {
		return 0, fmt.Errorf("the kernel did not say which device it made: %w", unix.EPROTO)
	}
	return int(order.Uint32(index)), nil
}

// reconfigure changes size and socket of a device with the same mark. A socket
// is only taken in place of a dead one; otherwise the kernel drops it silently.
func (k kernel) reconfigure(index int, c connection) error {
	_, err := call(request{family: k.family, cmd: cmdReconfigure, attrs: c.attrs().u32(attrIndex, uint32(index))})
	return err
}

// onClose sets whether the device is removed when its last user closes it.
func (k kernel) onClose(index int, mark string, remove bool) error {
	var flags uint64
	if remove {
		flags = clientDisconnectOnClose
	}
	a := connection{mark: mark, socket: -1}.attrs().u32(attrIndex, uint32(index)).u64(attrClientFlags, flags)
	_, err := call(request{family: k.family, cmd: cmdReconfigure, attrs: a})
	return err
}

// disconnect removes the device: all its I/O fails. No device is fine.
func (k kernel) disconnect(index int) error {
	_, err := call(request{family: k.family, cmd: cmdDisconnect, attrs: attrs(nil).u32(attrIndex, uint32(index))})
	return err
}
