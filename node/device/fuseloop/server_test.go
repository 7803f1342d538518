package fuseloop

import (
	"bytes"
	"log/slog"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/buf"
	"github.com/holdfast-storage/holdfast/replication"
)

// backendFunc is a device.Backend.
type backendFunc func(*replication.Request)

func (f backendFunc) Submit(r *replication.Request) { f(r) }

func succeed(r *replication.Request) { r.Done(r, nil) }

// kernel is the other end of a connection: a socket that keeps messages apart
// as /dev/fuse does.
type kernel struct {
	*testing.T
	fd int
	s  *server
}

func newKernel(t *testing.T, cfg serverConfig) *kernel {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fds[1], false); err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 4<<20); err != nil {
			t.Fatal(err)
		}
	}
	tv := unix.Timeval{Sec: 10}
	if err := unix.SetsockoptTimeval(fds[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	cfg.Log = slog.New(slog.DiscardHandler)
	s, err := serve(os.NewFile(uintptr(fds[0]), "socket"), fds[0], cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.stop(); unix.Close(fds[1]) })
	return &kernel{T: t, fd: fds[1], s: s}
}

func request(op uint32, unique, node uint64, body []byte) []byte {
	p := make([]byte, inHeaderSize, inHeaderSize+len(body))
	order.PutUint32(p[0:], uint32(inHeaderSize+len(body)))
	order.PutUint32(p[4:], op)
	order.PutUint64(p[8:], unique)
	order.PutUint64(p[16:], node)
	return append(p, body...)
}

func (k *kernel) send(p []byte) {
	k.Helper()
	if err := unix.Sendto(k.fd, p, 0, nil); err != nil {
		k.Fatal(err)
	}
}

// answer reads the next answer: whose it is, its error and its data.
func (k *kernel) answer() (unique uint64, errno unix.Errno, data []byte) {
	k.Helper()
	p := make([]byte, maxWrite+4096)
	n, err := unix.Read(k.fd, p)
	if err != nil || n < outHeaderSize || int(order.Uint32(p)) != n {
		k.Fatalf("no proper answer: %d bytes, %v, length field %d", n, err, order.Uint32(p))
	}
	return order.Uint64(p[8:]), unix.Errno(-int32(order.Uint32(p[4:]))), p[outHeaderSize:n]
}

// ask sends a request and reads its answer.
func (k *kernel) ask(op uint32, node uint64, body []byte) (unix.Errno, []byte) {
	k.Helper()
	unique := uint64(op)<<32 | 7
	k.send(request(op, unique, node, body))
	got, errno, data := k.answer()
	if got != unique {
		k.Fatalf("the answer is for %x, not %x", got, unique)
	}
	return errno, data
}

func words(size int, at map[int]uint64) []byte {
	p := make([]byte, size)
	for off, v := range at {
		order.PutUint64(p[off:], v)
	}
	return p
}

func fileConfig(submit backendFunc) serverConfig {
	return serverConfig{Name: "file", SizeBytes: 8 << 20, Backend: submit}
}

func initBody(major, minor uint32, flags uint64) []byte {
	p := make([]byte, 64)
	order.PutUint32(p[0:], major)
	order.PutUint32(p[4:], minor)
	order.PutUint32(p[8:], 131072)
	order.PutUint32(p[12:], uint32(flags))
	order.PutUint32(p[16:], uint32(flags>>32))
	return p
}

func TestInitAsksForWhatMakesItFast(t *testing.T) {
	k := newKernel(t, fileConfig(succeed))
	errno, o := k.ask(opInit, 0, initBody(7, 45, ^uint64(0)))
	if errno != 0 || len(o) != initOutSize {
		t.Fatalf("INIT: %v, %d bytes", errno, len(o))
	}
	flags := uint64(order.Uint32(o[12:])) | uint64(order.Uint32(o[32:]))<<32
	for name, bit := range map[string]uint64{"asynchronous direct I/O": 1 << 15, "big writes": 1 << 5, "max pages": 1 << 22, "resend": 1 << 39} {
		if flags&bit == 0 {
			t.Errorf("%s was not asked for", name)
		}
	}
	if flags&(1<<12) != 0 || flags&(1<<16) != 0 {
		t.Error("automatic invalidation or the write-back cache was asked for")
	}
	if bg, cg := order.Uint16(o[16:]), order.Uint16(o[18:]); bg < 128 || cg < 128 {
		t.Errorf("max_background %d, congestion threshold %d", bg, cg)
	}
	if w, p := order.Uint32(o[20:]), order.Uint16(o[28:]); w != 1<<20 || p != 256 {
		t.Errorf("max_write %d, max_pages %d", w, p)
	}
	if minor := order.Uint32(o[4:]); minor != protoMinor {
		t.Errorf("minor version %d of a newer kernel's 45", minor)
	}
}

func TestInitTakesOnlyWhatIsOffered(t *testing.T) {
	k := newKernel(t, fileConfig(succeed))
	errno, o := k.ask(opInit, 0, initBody(7, 31, initAsyncDIO|initBigWrites))
	if flags := order.Uint32(o[12:]); errno != 0 || flags != initAsyncDIO|initBigWrites || order.Uint32(o[32:]) != 0 {
		t.Errorf("INIT: %v, flags %x and %x", errno, flags, order.Uint32(o[32:]))
	}
	if errno, _ := k.ask(opInit, 0, initBody(7, 12, 0)); errno != unix.EPROTO {
		t.Errorf("a kernel that is too old was told %v", errno)
	}
	if errno, o := k.ask(opInit, 0, initBody(8, 0, 0)); errno != 0 || order.Uint32(o) != 7 {
		t.Errorf("a kernel with a newer major version was told %v", errno)
	}
}

func TestMetadata(t *testing.T) {
	k := newKernel(t, fileConfig(succeed))
	if errno, o := k.ask(opLookup, nodeRoot, []byte("file\x00")); errno != 0 || order.Uint64(o) != nodeFile || order.Uint64(o[48:]) != 8<<20 {
		t.Errorf("lookup of the file: %v", errno)
	}
	if errno, _ := k.ask(opLookup, nodeRoot, []byte("other\x00")); errno != unix.ENOENT {
		t.Errorf("lookup of another name: %v", errno)
	}
	if errno, o := k.ask(opGetattr, nodeFile, make([]byte, 16)); errno != 0 || order.Uint64(o) < 1000000 || order.Uint64(o[24:]) != 8<<20 {
		t.Errorf("attributes: %v", errno)
	}
	setattr := func(valid uint32, size uint64) []byte { return words(88, map[int]uint64{0: uint64(valid), 16: size}) }
	for _, c := range []struct {
		valid uint32
		size  uint64
		want  unix.Errno
	}{{setattrSize, 4 << 20, unix.EPERM}, {setattrSize, 9 << 20, unix.EPERM}, {setattrSize, 8 << 20, 0}, {1 << 0, 0, unix.EPERM}, {1 << 1, 0, unix.EPERM}, {1 << 5, 0, 0}} {
		if errno, _ := k.ask(opSetattr, nodeFile, setattr(c.valid, c.size)); errno != c.want {
			t.Errorf("setattr %x to %d: %v, wanted %v", c.valid, c.size, errno, c.want)
		}
	}
	for _, op := range []uint32{21, 22, 23, 24, 25, 40, 46} { // xattrs, FLUSH, POLL, LSEEK
		if errno, _ := k.ask(op, nodeFile, make([]byte, 64)); errno != unix.ENOSYS {
			t.Errorf("operation %d: %v", op, errno)
		}
	}
}

func TestDataGoesBothWays(t *testing.T) {
	mem := make([]byte, 8<<20)
	k := newKernel(t, fileConfig(func(r *replication.Request) {
		switch r.Op {
		case replication.OpRead:
			copy(r.Buf.B, mem[r.Offset:])
		case replication.OpWrite:
			copy(mem[r.Offset:], r.Buf.B)
		}
		r.Done(r, nil)
	}))
	for _, n := range []int{512, 4096, copyBelow, copyBelow + 4096, maxWrite} {
		data := bytes.Repeat([]byte{byte(n >> 9), 3, 5, 7}, n/4)
		errno, o := k.ask(opWrite, nodeFile, append(words(writeInSize, map[int]uint64{8: 4096, 16: uint64(n)}), data...))
		if errno != 0 || len(o) != writeOutSize || order.Uint32(o) != uint32(n) {
			t.Fatalf("write of %d: %v %x", n, errno, o)
		}
		errno, o = k.ask(opRead, nodeFile, words(40, map[int]uint64{8: 4096, 16: uint64(n)}))
		if errno != 0 || !bytes.Equal(o, data) {
			t.Fatalf("read of %d: %v, %d bytes", n, errno, len(o))
		}
	}
	// Short at the end of the file, empty behind it.
	if errno, o := k.ask(opRead, nodeFile, words(40, map[int]uint64{8: 8<<20 - 512, 16: 4096})); errno != 0 || len(o) != 512 {
		t.Errorf("read across the end: %v, %d bytes", errno, len(o))
	}
	if errno, o := k.ask(opRead, nodeFile, words(40, map[int]uint64{8: 9 << 20, 16: 4096})); errno != 0 || len(o) != 0 {
		t.Errorf("read behind the end: %v, %d bytes", errno, len(o))
	}
}

func TestFUAFollowsTheOpenFlags(t *testing.T) {
	got := make(chan bool, 1)
	k := newKernel(t, fileConfig(func(r *replication.Request) { got <- r.FUA; r.Done(r, nil) }))
	for flags, want := range map[uint64]bool{0: false, unix.O_DIRECT: false, unix.O_DSYNC: true, unix.O_SYNC: true, unix.O_DSYNC | unix.O_DIRECT: true} {
		k.ask(opWrite, nodeFile, append(words(writeInSize, map[int]uint64{16: 512, 32: flags}), make([]byte, 512)...))
		if fua := <-got; fua != want {
			t.Errorf("flags %o: FUA %v", flags, fua)
		}
	}
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	k := newKernel(t, fileConfig(func(r *replication.Request) { t.Errorf("submitted: %+v", r); r.Done(r, nil) }))
	big := uint64(1) << 63
	for name, c := range map[string]struct {
		op   uint32
		node uint64
		body []byte
	}{
		"write without arguments":      {opWrite, nodeFile, make([]byte, 8)},
		"write longer than its data":   {opWrite, nodeFile, append(words(writeInSize, map[int]uint64{16: 8192}), make([]byte, 4096)...)},
		"write at a negative offset":   {opWrite, nodeFile, append(words(writeInSize, map[int]uint64{8: big, 16: 512}), make([]byte, 512)...)},
		"write behind the end":         {opWrite, nodeFile, append(words(writeInSize, map[int]uint64{8: 8 << 20, 16: 512}), make([]byte, 512)...)},
		"write to the directory":       {opWrite, nodeRoot, append(words(writeInSize, map[int]uint64{16: 512}), make([]byte, 512)...)},
		"read of too much":             {opRead, nodeFile, words(40, map[int]uint64{16: 2 << 20})},
		"read at a negative offset":    {opRead, nodeFile, words(40, map[int]uint64{8: big, 16: 512})},
		"discard that changes size":    {opFallocate, nodeFile, words(32, map[int]uint64{16: 4096, 24: unix.FALLOC_FL_ZERO_RANGE})},
		"allocation":                   {opFallocate, nodeFile, words(32, map[int]uint64{16: 4096})},
		"discard of a negative length": {opFallocate, nodeFile, words(32, map[int]uint64{16: big, 24: 3})},
		"discard without arguments":    {opFallocate, nodeFile, make([]byte, 8)},
		"INIT without arguments":       {opInit, 0, make([]byte, 4)},
	} {
		if errno, _ := k.ask(c.op, c.node, c.body); errno == 0 || errno == unix.ENOSYS {
			t.Errorf("%s: %v", name, errno)
		}
	}
	k.send(make([]byte, 10)) // not even a header: nothing to answer to
	if errno, _ := k.ask(opGetattr, nodeFile, make([]byte, 16)); errno != 0 {
		t.Errorf("the server does not go on: %v", errno)
	}
}

func TestLongTrimIsSplitAndAnsweredOnce(t *testing.T) {
	var reqs []*replication.Request
	all := make(chan struct{})
	const size = 4*trimPiece + 8192
	cfg := fileConfig(func(r *replication.Request) {
		if reqs = append(reqs, r); len(reqs) == 5 {
			close(all)
		}
	})
	cfg.SizeBytes = size
	k := newKernel(t, cfg)
	k.send(request(opFallocate, 5, nodeFile, words(32, map[int]uint64{8: 4096, 16: 1 << 35, 24: 3})))
	select {
	case <-all:
	case <-time.After(10 * time.Second):
		t.Fatal("not everything was submitted")
	}
	next := int64(4096)
	for _, r := range reqs {
		if r.Op != replication.OpTrim || r.Offset != next || r.Length > trimPiece {
			t.Fatalf("piece %d+%d, wanted one at %d", r.Offset, r.Length, next)
		}
		next += r.Length
	}
	if next != size {
		t.Errorf("the pieces end at %d of %d", next, int64(size))
	}
	for i, r := range reqs {
		var err error
		if i == 2 {
			err = holdfast.E("trim", holdfast.NoSpace, "told to fail")
		}
		r.Done(r, err)
	}
	if unique, errno, _ := k.answer(); unique != 5 || errno != unix.ENOSPC {
		t.Errorf("answered %d with %v", unique, errno)
	}
	if errno, _ := k.ask(opGetattr, nodeFile, make([]byte, 16)); errno != 0 { // no second answer is in between
		t.Errorf("then: %v", errno)
	}
}

func TestReadOnlyRefusesChanges(t *testing.T) {
	cfg := fileConfig(func(r *replication.Request) { t.Errorf("submitted: %+v", r); r.Done(r, nil) })
	cfg.ReadOnly = true
	k := newKernel(t, cfg)
	if errno, _ := k.ask(opWrite, nodeFile, append(words(writeInSize, map[int]uint64{16: 512}), make([]byte, 512)...)); errno != unix.EROFS {
		t.Errorf("write: %v", errno)
	}
	if errno, _ := k.ask(opFallocate, nodeFile, words(32, map[int]uint64{16: 4096, 24: 3})); errno != unix.EROFS {
		t.Errorf("discard: %v", errno)
	}
}

func TestAnswersAfterStopAreDropped(t *testing.T) {
	submitted := make(chan *replication.Request, 1)
	k := newKernel(t, fileConfig(func(r *replication.Request) { submitted <- r }))
	k.send(request(opRead, 9, nodeFile, words(40, map[int]uint64{16: 4096})))
	r := <-submitted
	k.s.stop()
	k.s.stop() // twice is fine
	r.Done(r, nil)
	if n, err := unix.Read(k.fd, make([]byte, 100)); n != 0 || err != nil {
		t.Errorf("after stop came %d bytes, %v", n, err)
	}
}

// TestNoAllocationPerRequest answers to /dev/null.
func TestNoAllocationPerRequest(t *testing.T) {
	null, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	s := newServer(fileConfig(succeed))
	s.fd = null
	r := &reader{s: s, b: buf.Get(buf.Max)}
	for name, p := range map[string][]byte{
		"write": request(opWrite, 1, nodeFile, append(words(writeInSize, map[int]uint64{16: 4096}), make([]byte, 4096)...)),
		"read":  request(opRead, 1, nodeFile, words(40, map[int]uint64{16: 4096})),
		"flush": request(opFsync, 1, nodeFile, make([]byte, 16)),
	} {
		limit := 1.0 // a pool may be emptied by a garbage collection meanwhile
		if poolsDrop {
			limit = 5
		}
		if n := testing.AllocsPerRun(2000, func() { r.handle(p) }); n >= limit {
			t.Errorf("a %s allocates %v times", name, n)
		}
	}
}

// TestRequestsAreReadWithoutPageFaults: see receiver. There are so many buffers
// that some are of memory that nobody has used before.
func TestRequestsAreReadWithoutPageFaults(t *testing.T) {
	page := os.Getpagesize()
	for range 64 {
		r := &reader{}
		p := r.receiver()
		from := -int(uintptr(unsafe.Pointer(&p[0]))) & (page - 1)
		vec := make([]byte, (len(p)-from)/page)
		if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&p[from])), uintptr(len(vec)*page), uintptr(unsafe.Pointer(&vec[0]))); errno != 0 {
			t.Fatal(errno)
		}
		for i, v := range vec {
			if v&1 == 0 {
				t.Fatalf("page %d of %d is not there", i, len(vec))
			}
		}
		if again := r.receiver(); &again[0] != &p[0] {
			t.Fatal("a reader that has a buffer takes another one")
		}
	}
}

// TestAnIdleDeviceHoldsNoBuffer: a thousand of them would hold a gigabyte.
func TestAnIdleDeviceHoldsNoBuffer(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fds[0]); _ = unix.Close(fds[1]) }()
	r := &reader{}
	if _, errno := r.receive(uintptr(fds[0])); errno != unix.EAGAIN || r.b != nil {
		t.Errorf("nothing to be read: %v, a buffer is held: %v", errno, r.b != nil)
	}
	if _, err := unix.Write(fds[1], []byte("request")); err != nil {
		t.Fatal(err)
	}
	if in, errno := r.receive(uintptr(fds[0])); errno != 0 || string(in) != "request" || r.b == nil {
		t.Errorf("a request: %v %q", errno, in)
	}
}

func FuzzHandle(f *testing.F) {
	f.Add(request(opWrite, 1, nodeFile, append(words(writeInSize, map[int]uint64{16: 4096}), make([]byte, 4096)...)))
	f.Add(request(opRead, 1, nodeFile, words(40, map[int]uint64{16: 4096})))
	f.Add(request(opFallocate, 1, nodeFile, words(32, map[int]uint64{16: 4096, 24: 3})))
	f.Add(request(opInit, 1, 0, initBody(7, 41, ^uint64(0))))
	f.Add(request(opLookup, 1, nodeRoot, []byte("file\x00")))
	f.Add(request(opSetattr, 1, nodeFile, words(88, nil)))
	null, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		cfg := fileConfig(func(r *replication.Request) {
			end := r.Offset + r.Length
			if r.Offset < 0 || r.Length < 0 || end < r.Offset || end > 8<<20 || r.Buf != nil && int64(len(r.Buf.B)) != r.Length {
				t.Errorf("submitted %d+%d", r.Offset, r.Length)
			}
			r.Done(r, nil)
		})
		cfg.Log = slog.New(slog.DiscardHandler)
		s := newServer(cfg)
		s.fd = null
		r := &reader{s: s, b: buf.Get(buf.Max)}
		defer func() { r.b.Release() }()
		in := r.b.WithHead(writeHead, maxWrite)
		r.handle(in[:copy(in, p)])
	})
}

// batches is a device.Batcher that tells how many requests came together.
type batches struct {
	backendFunc
	sizes chan int
}

func (b batches) SubmitAll(rs []*replication.Request) {
	b.sizes <- len(rs)
	for _, r := range rs {
		b.Submit(r)
	}
}

// TestWaitingRequestsAreTakenTogether: a single request goes to the backend at once.
// While it is open all that the kernel has is read before the backend gets any of it,
// up to a bound, and each is answered.
func TestWaitingRequestsAreTakenTogether(t *testing.T) {
	const n = heldMost + 5
	hold := make(chan struct{})
	var first *replication.Request
	b := batches{sizes: make(chan int, n), backendFunc: func(r *replication.Request) {
		if r.Offset == 4096 {
			first = r
			return
		}
		succeed(r)
	}}
	cfg := fileConfig(nil)
	cfg.Backend = batcherFunc(func(rs []*replication.Request) {
		<-hold // the first one keeps the reader until the rest is there
		b.SubmitAll(rs)
	})
	k := newKernel(t, cfg)
	read := func(i int) []byte {
		return request(opRead, uint64(i), nodeFile, words(writeInSize, map[int]uint64{8: uint64(i) * 4096, 16: 4096}))
	}
	k.send(read(1))
	hold <- struct{}{}
	if got := <-b.sizes; got != 1 {
		t.Fatalf("the first request came with %d others", got-1)
	}
	for i := 2; i <= 2+n; i++ {
		k.send(read(i))
	}
	close(hold)
	answered := map[uint64]bool{}
	for range n + 1 {
		unique, errno, data := k.answer()
		if errno != 0 || len(data) != 4096 || answered[unique] {
			t.Fatalf("request %d: %v, %d bytes, answered before: %v", unique, errno, len(data), answered[unique])
		}
		answered[unique] = true
	}
	most, sum := 0, 0
	for sum < n+1 {
		size := <-b.sizes
		most, sum = max(most, size), sum+size
	}
	if most < 2 || most > heldMost {
		t.Errorf("at most %d requests came together, want several and at most %d", most, heldMost)
	}
	succeed(first)
	if unique, errno, _ := k.answer(); unique != 1 || errno != 0 {
		t.Errorf("the first request: request %d, %v", unique, errno)
	}
}

// batcherFunc is a device.Batcher that is given nothing alone.
type batcherFunc func([]*replication.Request)

func (f batcherFunc) Submit(r *replication.Request)       { f([]*replication.Request{r}) }
func (f batcherFunc) SubmitAll(rs []*replication.Request) { f(rs) }
