package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/device/devicetest"
)

// fuzzSize is the device's, in bytes.
const fuzzSize = 8 << 20

func requestOf(op, flags uint16, cookie, offset uint64, length uint32, data []byte) []byte {
	b := binary.BigEndian
	p := b.AppendUint32(nil, requestMagic)
	p = b.AppendUint16(p, flags)
	p = b.AppendUint16(p, op)
	p = b.AppendUint64(p, cookie)
	p = b.AppendUint64(p, offset)
	return append(b.AppendUint32(p, length), data...)
}

// FuzzServe: whatever comes over the socket, the server ends with it, submits
// nothing that is no request for this device, and answers only what was asked.
// Longer: go test ./node/device/nbd -fuzz FuzzServe -fuzzminimizetime 10x (what is
// covered differs from run to run, so that minimizing would not end).
func FuzzServe(f *testing.F) {
	read := requestOf(opRead, 0, 1, 4096, 8192, nil)
	write := requestOf(opWrite, flagFUA, 2, 0, 4096, make([]byte, 4096))
	f.Add(append(append(read, write...), requestOf(opFlush, 0, 3, 0, 0, nil)...), false)
	f.Add(append(requestOf(opTrim, 0, 4, 0, fuzzSize, nil), requestOf(opWriteZeroes, 0, 5, 512, 512, nil)...), false)
	f.Add(write, true)
	f.Add(requestOf(opWrite, 0, 6, 1<<63, 1<<31, []byte("short")), false)
	f.Add(requestOf(opRead, 0, 7, fuzzSize-1, ^uint32(0), nil), false)
	f.Add(append(requestOf(5, 0, 8, 0, 0, nil), requestOf(opDisconnect, 0, 9, 0, 0, nil)...), false)
	f.Add([]byte("no request at all, and not of twenty-eight bytes"), false)
	f.Fuzz(func(t *testing.T, sent []byte, readOnly bool) {
		if len(sent) > 64<<10 {
			return // the socket's buffer takes that much at once
		}
		mem := devicetest.NewMemory(fuzzSize)
		conn, fd, err := socketPair()
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), "kernel")
		kernel, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer kernel.Close()
		p, answers, err := newPage()
		if err != nil {
			t.Fatal(err)
		}
		answers.Close()
		s, err := serve(conn, p, device.Options{SizeBytes: fuzzSize, ReadOnly: readOnly}, mem, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		defer s.stop()
		if _, err := kernel.Write(sent); err != nil && !errors.Is(err, unix.EPIPE) {
			t.Fatal(err)
		}
		if err := kernel.(*net.UnixConn).CloseWrite(); err != nil && !errors.Is(err, unix.ENOTCONN) {
			t.Fatal(err)
		}
		checkReplies(t, sent, kernel)
		for _, w := range mem.Wrong() {
			t.Error(w)
		}
	})
}

// checkReplies reads until the server's end. What it had not sent when the input
// ended may be missing.
func checkReplies(t *testing.T, sent []byte, from io.Reader) {
	t.Helper()
	asked, reads := map[uint64]int{}, map[uint64]int64{} // by cookie, wherever one may stand
	for i := 0; i+requestSize <= len(sent); i++ {
		if h, ok := parseHeader(sent[i : i+requestSize]); ok {
			if asked[h.cookie]++; h.op == opRead {
				reads[h.cookie] = h.length
			}
		}
	}
	head := make([]byte, replySize)
	for {
		if _, err := io.ReadFull(from, head); err != nil {
			return
		}
		cookie := binary.BigEndian.Uint64(head[8:])
		if binary.BigEndian.Uint32(head) != replyMagic || asked[cookie] == 0 {
			t.Fatalf("the answer %x was not asked for", head)
		}
		if asked[cookie] > 1 {
			return // which of them it answers cannot be told
		}
		if n, ok := reads[cookie]; ok && binary.BigEndian.Uint32(head[4:]) == 0 {
			if n > buf.Max || n > fuzzSize {
				t.Fatalf("a read of %d bytes was answered", n)
			}
			if _, err := io.CopyN(io.Discard, from, n); err != nil {
				return
			}
		}
	}
}

// FuzzNetlink: whatever the kernel's answer is, reading it ends.
func FuzzNetlink(f *testing.F) {
	message := func(kind uint16, body []byte) []byte {
		p := order.AppendUint32(nil, uint32(messageHead+len(body)))
		p = order.AppendUint16(p, kind)
		p = append(p, make([]byte, messageHead-6)...)
		return append(p, body...)
	}
	inner := attrs(nil).u32(attrIndex, 3).nest(attrSockets, attrs(nil).nest(sockItem, attrs(nil).u32(sockFD, 5)))
	f.Add(append(message(unix.NLMSG_MIN_TYPE, append(make([]byte, genericHead), inner...)), message(unix.NLMSG_ERROR, make([]byte, 4))...))
	f.Add(message(unix.NLMSG_ERROR, order.AppendUint32(nil, ^uint32(unix.EBUSY)+1)))
	f.Add(message(unix.NLMSG_MIN_TYPE, []byte{1, 1, 0, 0, 3, 0, 1, 0}))
	f.Add([]byte{255, 255, 255, 255, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		answer, done, err := parse(p)
		if err != nil && !done {
			t.Errorf("more is waited for after %v", err)
		}
		for kind := range 16 {
			if v := answer.find(kind); len(v) > len(answer) {
				t.Errorf("attribute %d has %d bytes of %d", kind, len(v), len(answer))
			}
		}
	})
}
