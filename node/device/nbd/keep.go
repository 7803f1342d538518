package nbd

import (
	"errors"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
	"github.com/holdfast-storage/holdfast/node/keeper"
)

// Keeper keeps descriptors for the next process: keeper.Client.
type Keeper interface {
	Put(key string, note []byte, fd int) error
	Drop(key string) error
	List() ([]keeper.Held, error)
}

// The keeper's keys of a device's socket, whose note is the name of its page, and
// of that page; the device's mark follows.
const (
	socketKey = "nbd/"
	pageKey   = "nbd-page/"
)

// kept is what the keeper holds of a device, as descriptors of our own; -1 for
// none.
type kept struct {
	socket, page int
	name         string
}

// end closes them, and ends the connection for the kernel, too.
func (k kept) end() {
	if k.socket >= 0 {
		_ = unix.Shutdown(k.socket, unix.SHUT_RDWR) // it may be dead already
	}
	k.close()
}

func (k kept) close() {
	for _, fd := range []int{k.socket, k.page} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// load asks the keeper what a predecessor has left with it.
func (f *FrontEnd) load() {
	f.kept = map[holdfast.VolumeID]kept{}
	if f.keep == nil {
		return
	}
	held, err := f.keep.List()
	if err != nil {
		f.log.Warn("what was in flight when the predecessor ended waits for the kernel to look at it: the keeper does not answer", "err", err)
	}
	for _, h := range held {
		mark, isSocket := strings.CutPrefix(h.Key, socketKey)
		if !isSocket {
			mark, _ = strings.CutPrefix(h.Key, pageKey)
		}
		vol, ours := f.root.VolumeOf(mark)
		if !ours {
			_ = unix.Close(h.FD)
			continue
		}
		k, ok := f.kept[vol]
		if !ok {
			k = kept{socket: -1, page: -1}
		}
		if isSocket {
			k.socket, k.name = h.FD, string(h.Note)
		} else {
			k.page = h.FD
		}
		f.kept[vol] = k
	}
}

func (f *FrontEnd) takeKept(vol holdfast.VolumeID) (kept, bool) {
	f.keptMu.Lock()
	defer f.keptMu.Unlock()
	k, ok := f.kept[vol]
	delete(f.kept, vol)
	return k, ok
}

// keptVolumes are those of which the keeper holds something that is not in use
// here.
func (f *FrontEnd) keptVolumes() []holdfast.VolumeID {
	f.keptMu.Lock()
	defer f.keptMu.Unlock()
	var vols []holdfast.VolumeID
	for vol := range f.kept {
		vols = append(vols, vol)
	}
	return vols
}

// letGo ends the connection that a predecessor left, if any: the kernel finds it
// dead, and nothing in it waits for room in the socket any more.
func (f *FrontEnd) letGo(vol holdfast.VolumeID) {
	if k, ok := f.takeKept(vol); ok {
		k.end()
	}
	f.drop(vol)
}

// drop has the keeper forget a connection.
func (f *FrontEnd) drop(vol holdfast.VolumeID) {
	if f.keep == nil {
		return
	}
	if err := errors.Join(f.keep.Drop(socketKey+f.root.Mark(vol)), f.keep.Drop(pageKey+f.root.Mark(vol))); err != nil {
		f.log.Warn("the keeper still holds a connection that is gone; the next start drops it", "volume", vol, "err", err)
	}
}

// put has the keeper hold a connection. A device that it cannot take works as
// well: its requests in flight only wait longer when this process dies.
func (d *Device) put(conn *net.UnixConn, p *page, file *os.File) {
	if d.fe.keep == nil {
		return
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		rawErr := raw.Control(func(fd uintptr) { err = d.fe.keep.Put(socketKey+d.mark, []byte(p.name()), int(fd)) })
		err = errors.Join(err, rawErr)
	}
	if err == nil {
		err = d.fe.keep.Put(pageKey+d.mark, nil, int(file.Fd()))
	}
	if err != nil {
		d.fe.log.Warn("the keeper does not take the connection of a device", "volume", d.opts.Volume, "err", err)
		d.fe.drop(d.opts.Volume)
	}
}

// goOn serves the predecessor's own connection, in which the kernel has seen
// nothing of the change. False if that cannot be; it is ended then.
func (d *Device) goOn(b device.Backend) bool {
	k, ok := d.fe.takeKept(d.opts.Volume)
	if !ok {
		return false
	}
	srv, err := d.serveKept(k, b)
	if err != nil {
		d.fe.log.Warn("the connection of a predecessor cannot be gone on with; what was in flight waits for the kernel to look at it", "device", d.Node.Path, "why", err)
		d.fe.drop(d.opts.Volume)
		return false
	}
	d.srv = srv
	return true
}

// serveKept takes k over, also when it fails: then the connection is ended.
func (d *Device) serveKept(k kept, b device.Backend) (*server, error) {
	if k.socket < 0 || k.page < 0 {
		k.end()
		return nil, holdfast.E("", holdfast.NotFound, "the keeper has a part of it only")
	}
	file := os.NewFile(uintptr(k.page), "answers")
	defer file.Close()
	fail := func(err error) (*server, error) {
		kept{socket: k.socket, page: -1}.end()
		return nil, err
	}
	p, err := openPage(file)
	if err != nil {
		return fail(err)
	}
	if dead(k.socket) || !p.settle(k.name) {
		p.close()
		return fail(holdfast.E("", holdfast.Unavailable, "the kernel has ended it, or it was ended while an answer was sent in parts"))
	}
	conn, err := connOf(k.socket)
	if err != nil {
		p.close()
		return nil, err
	}
	return serve(conn, p, d.opts, b, d.fe.log.With("volume", d.opts.Volume))
}

// dead says whether nobody has the other end of a socket any more.
func dead(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd)}}
	n, err := unix.Poll(p, 0)
	return err != nil || n > 0 && p[0].Revents&unix.POLLHUP != 0
}
