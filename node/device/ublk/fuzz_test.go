package ublk

import (
	"encoding/binary"
	"log/slog"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast/node/device/blockdev"
	"github.com/holdfast-storage/holdfast/node/device/devicetest"
)

// fuzzSize is the device's, in bytes.
const fuzzSize = 8 << 20

// FuzzTake: whatever stands in a request's descriptor, it is answered once, and
// what is submitted is a request for this device, at the place that it names.
func FuzzTake(f *testing.F) {
	f.Add(uint32(opRead), uint32(8), uint64(8), uint16(0), false)
	f.Add(uint32(opWrite|flagFUA), uint32(8), uint64(0), uint16(127), false)
	f.Add(uint32(opFlush), uint32(0), uint64(0), uint16(1), true)
	f.Add(uint32(opDiscard), uint32(fuzzSize/512), uint64(0), uint16(2), false)
	f.Add(uint32(opWriteZeroes), ^uint32(0), uint64(1), uint16(3), false)
	f.Add(uint32(opWrite), uint32(8), uint64(1)<<55, uint16(4), false) // times 512 it is 0
	f.Add(uint32(opRead), uint32(8), ^uint64(0), uint16(5), true)
	// Where the driver has the data of requests: a file of zeros.
	data, err := unix.MemfdCreate("hf-test-ublk", unix.MFD_CLOEXEC)
	if err == nil {
		err = unix.Ftruncate(data, dataOffset+queueDepth<<tagShift)
	}
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, opFlags, sectors uint32, start uint64, tag uint16, readOnly bool) {
		tag %= queueDepth
		mem := devicetest.NewMemory(fuzzSize)
		q := &queue{char: data, wake: -1, readOnly: readOnly, log: slog.New(slog.DiscardHandler), descs: make([]byte, queueDepth*24)}
		q.size.Store(fuzzSize)
		q.inflight = blockdev.NewInflight(mem, q.answer)
		d := q.descs[int(tag)*24:]
		binary.NativeEndian.PutUint32(d, opFlags)
		binary.NativeEndian.PutUint32(d[4:], sectors)
		binary.NativeEndian.PutUint64(d[8:], start)
		q.take(tag)
		if len(q.ready) != 1 || q.ready[0].Cookie != uint64(tag) {
			t.Fatalf("answers: %+v", q.ready)
		}
		outside := start > fuzzSize/512 || start+uint64(sectors) > fuzzSize/512
		if a := q.ready[0]; a.Errno == 0 && outside && opFlags&0xff != opFlush {
			t.Errorf("operation %#x of %d sectors at sector %d was done on a device of %d", opFlags, sectors, start, fuzzSize/512)
		}
		q.ready[0].Data.Release()
		for _, w := range mem.Wrong() {
			t.Error(w)
		}
	})
}
