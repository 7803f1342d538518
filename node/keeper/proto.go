package keeper

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// The operations, one per packet: op u8, length of the key u16 (little-endian),
// key, note; a descriptor travels beside it. Every packet of the daemon is
// answered by one of the keeper, opList by one opHeld for each thing and opEnd.
const (
	opPut   = 'p' // key, note, descriptor: kept from now on, in place of an earlier one
	opDrop  = 'd' // key: closed; none is fine
	opList  = 'l'
	opReady = 'r' // the daemon works: if it ends from now on, it is started again
	opHeld  = 'h' // answer: key, note, descriptor
	opEnd   = 'e' // answer: done
	opError = 'x' // answer: the note says why
)

// Limits of a packet.
const (
	maxKey    = 256
	maxNote   = 16 << 10
	maxPacket = 3 + maxKey + maxNote
)

// packet is one message; fd is -1 when none travels with it.
type packet struct {
	op   byte
	key  string
	note []byte
	fd   int
}

// send writes one packet. The descriptor stays the caller's.
func send(c *net.UnixConn, p packet) error {
	b := make([]byte, 0, 3+len(p.key)+len(p.note))
	b = append(b, p.op)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(p.key)))
	b = append(append(b, p.key...), p.note...)
	var oob []byte
	if p.fd >= 0 {
		oob = unix.UnixRights(p.fd)
	}
	_, _, err := c.WriteMsgUnix(b, oob, nil)
	return err
}

// receive reads one packet; io.EOF when the peer is gone. The descriptor is the
// caller's.
func receive(c *net.UnixConn) (packet, error) {
	b, oob := make([]byte, maxPacket+1), make([]byte, unix.CmsgSpace(4*4))
	n, on, flags, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return packet{}, err
	}
	fds := descriptors(oob[:on])
	p := packet{fd: -1}
	if len(fds) == 1 {
		p.fd = fds[0]
	} else {
		closeAll(fds)
	}
	switch {
	case n == 0 && on == 0:
		return p, io.EOF
	case n < 3 || n > maxPacket || flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 || len(fds) > 1:
		closeAll(fds)
		return packet{}, holdfast.E("read from the keeper's socket", holdfast.Invalid, "a packet is malformed: the two ends are of different versions")
	}
	k := 3 + int(binary.LittleEndian.Uint16(b[1:]))
	if k > n {
		closeAll(fds)
		return packet{}, holdfast.E("read from the keeper's socket", holdfast.Invalid, "a packet is cut: the two ends are of different versions")
	}
	p.op, p.key, p.note = b[0], string(b[3:k]), append([]byte(nil), b[k:n]...)
	return p, nil
}

// descriptors are those of a control message; they are closed on exec.
func descriptors(oob []byte) []int {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var all []int
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			all = append(all, fds...)
		}
	}
	for _, fd := range all {
		unix.CloseOnExec(fd)
	}
	return all
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// pair makes the two ends of a socket: the keeper's, and a file for the daemon.
func pair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(fds[1]), "keeper")
	ours, err := connOf(fds[0])
	if err != nil {
		return nil, nil, errors.Join(err, theirs.Close())
	}
	return ours, theirs, nil
}

// connOf makes a connection of a socket's descriptor, which it takes over.
func connOf(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "keeper")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.ErrUnsupported, c.Close())
	}
	return u, nil
}
