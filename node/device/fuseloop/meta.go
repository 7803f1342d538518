package fuseloop

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// handleMeta answers what needs no backend.
func (r *reader) handleMeta(h inHeader, body []byte) {
	switch h.op {
	case opInit:
		r.init(h, body)
	case opLookup:
		r.lookup(h, body)
	case opGetattr:
		r.reply(h, r.attrOut(h.node))
	case opSetattr:
		r.setattr(h, body)
	case opOpen:
		r.open(h)
	case opOpendir:
		r.reply(h, r.zeroed(openOutSize))
	case opStatfs:
		r.statfs(h)
	case opReaddir:
		// Empty on purpose: the file is reached by its name only.
		r.reply(h, 0)
	case opRelease, opReleasedir, opAccess, opDestroy:
		r.reply(h, 0)
	default:
		// FLUSH is among these: the kernel then knows that closing needs no
		// round trip, and a killed server's exit cannot wait for itself.
		r.s.sendError(h.unique, unix.ENOSYS)
	}
}

// reply sends the first n bytes of the answer that stands in r.out behind the
// header.
func (r *reader) reply(h inHeader, n int) {
	putOutHeader(r.out[:], outHeaderSize+n, h.unique, 0)
	r.s.send(r.out[:outHeaderSize+n])
}

// zeroed clears the first n bytes of the answer and returns n.
func (r *reader) zeroed(n int) int {
	clear(r.out[outHeaderSize : outHeaderSize+n])
	return n
}

func (r *reader) init(h inHeader, body []byte) {
	major, minor := order.Uint32(body[0:]), order.Uint32(body[4:])
	if major < protoMajor || major == protoMajor && minor < protoMinMinor {
		r.s.cfg.Log.Error("this kernel's FUSE is too old", "version", major, "minor", minor, "needed", protoMinMinor)
		r.s.sendError(h.unique, unix.EPROTO)
		return
	}
	offered := uint64(order.Uint32(body[12:]))
	if offered&initExt != 0 && len(body) >= 20 {
		offered |= uint64(order.Uint32(body[16:])) << 32
	}
	flags := offered & (initAsyncRead | initBigWrites | initAsyncDIO | initAbortError | initMaxPages | initExt | initHasResend)
	n := r.zeroed(initOutSize)
	o := r.out[outHeaderSize:]
	order.PutUint32(o[0:], protoMajor)
	if major == protoMajor {
		order.PutUint32(o[4:], min(minor, protoMinor))
		order.PutUint32(o[8:], order.Uint32(body[8:])) // readahead as offered
		order.PutUint32(o[12:], uint32(flags))
		order.PutUint16(o[16:], maxBackground)
		order.PutUint16(o[18:], maxBackground) // congestion threshold
		order.PutUint32(o[20:], maxWrite)
		order.PutUint32(o[24:], 1) // time granularity in nanoseconds
		order.PutUint16(o[28:], maxPages)
		order.PutUint32(o[32:], uint32(flags>>32))
	} // a newer major is told ours and asks again
	r.reply(h, n)
}

func (r *reader) attrOf(node uint64) attr {
	if node == nodeRoot {
		return attr{node: nodeRoot, mode: unix.S_IFDIR | 0o700}
	}
	mode := uint32(unix.S_IFREG | 0o600)
	if r.s.cfg.ReadOnly {
		mode = unix.S_IFREG | 0o400
	}
	return attr{node: nodeFile, sizeBytes: r.s.size.Load(), mode: mode}
}

// attrOut puts an attribute answer into r.out and returns its length.
func (r *reader) attrOut(node uint64) int {
	n := r.zeroed(attrOutSize)
	o := r.out[outHeaderSize:]
	order.PutUint64(o[0:], validSeconds)
	r.attrOf(node).put(o[16:])
	return n
}

func (r *reader) lookup(h inHeader, body []byte) {
	name, _, _ := bytes.Cut(body, []byte{0})
	if h.node != nodeRoot || string(name) != r.s.cfg.Name {
		r.s.sendError(h.unique, unix.ENOENT)
		return
	}
	n := r.zeroed(entryOutSize)
	o := r.out[outHeaderSize:]
	order.PutUint64(o[0:], nodeFile)
	order.PutUint64(o[16:], validSeconds)
	order.PutUint64(o[24:], validSeconds)
	r.attrOf(nodeFile).put(o[40:])
	r.reply(h, n)
}

// setattr lets Grow's truncate through, which tells the kernel the size that the
// server has already; whoever else wants another size, mode or owner is refused.
func (r *reader) setattr(h inHeader, body []byte) {
	valid, size := order.Uint32(body[0:]), order.Uint64(body[16:])
	if h.node != nodeFile || valid&^uint32(setattrSize|setattrHarmless) != 0 ||
		valid&setattrSize != 0 && size != uint64(r.s.size.Load()) {
		r.s.sendError(h.unique, unix.EPERM)
		return
	}
	r.reply(h, r.attrOut(h.node))
}

func (r *reader) open(h inHeader) {
	n := r.zeroed(openOutSize)
	order.PutUint32(r.out[outHeaderSize+8:], fopenDirectIO|fopenNoFlush|fopenParallelWrites)
	r.reply(h, n)
}

// statfs gives the block size, from which the loop driver takes its discard
// granularity; the counts mean nothing.
func (r *reader) statfs(h inHeader) {
	n := r.zeroed(statfsOutSize)
	o := r.out[outHeaderSize:]
	order.PutUint64(o[0:], uint64(r.s.size.Load()/4096))
	order.PutUint32(o[40:], 4096)
	order.PutUint32(o[44:], 255)
	order.PutUint32(o[48:], 4096)
	r.reply(h, n)
}
