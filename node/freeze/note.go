package freeze

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// noteVersion is the version of notes. History: 1, the first.
const noteVersion = 1

// note says that a filesystem may be frozen: VOLUME.json in Config.Dir. It is
// durable before the filesystem is frozen and goes when it is thawed.
type note struct {
	Version int               `json:"version"`
	Volume  holdfast.VolumeID `json:"volume"`
	Token   string            `json:"token"`
	Mount   string            `json:"mount"`  // where it is mounted
	Device  string            `json:"device"` // "major:minor"
	Boot    string            `json:"boot"`

	path string
	file *os.File // locked by who freezes; of a predecessor's: to be locked
}

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw)), holdfast.WrapKind("read the boot id", holdfast.Unsupported, err)
}

// writeNote makes a note durable and locks it.
func (f *Freezer) writeNote(n note) (note, error) {
	const op = "write a note of it"
	var err error
	if n.Boot, err = bootID(); err != nil {
		return n, err
	}
	text, err := json.Marshal(n)
	if err != nil {
		return n, holdfast.WrapKind(op, holdfast.Other, err)
	}
	n.path = filepath.Join(f.cfg.Dir, string(n.Volume)+".json")
	n.file, err = os.OpenFile(n.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return n, holdfast.WrapKind(op, holdfast.Other, err)
	}
	if err = n.lock(); err == nil {
		_, err = n.file.Write(append(text, '\n'))
	}
	if err == nil {
		err = n.file.Sync()
	}
	if err == nil {
		err = syncDir(f.cfg.Dir)
	}
	if err != nil {
		return n, errors.Join(holdfast.WrapKind(op, holdfast.Other, err), n.remove())
	}
	return n, nil
}

// lock fails while another process, which freezes by this note, has it.
func (n note) lock() error { return unix.Flock(int(n.file.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

// remove takes the note away, and gives up its lock.
func (n note) remove() error {
	err := os.Remove(n.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, n.file.Close())
}

// notes lists what a predecessor left. One that cannot be read was never finished:
// nothing was frozen by it. One of an earlier boot means nothing any more.
func (f *Freezer) notes() ([]note, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	names, err := filepath.Glob(filepath.Join(f.cfg.Dir, "*.json"))
	if err != nil {
		return nil, holdfast.WrapKind("list notes", holdfast.Other, err)
	}
	var out []note
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			return nil, holdfast.WrapKind("read a note", holdfast.Other, err)
		}
		n := note{}
		if err := json.Unmarshal(raw, &n); err != nil || n.Version != noteVersion || n.Boot != boot || n.Volume == "" {
			if err := os.Remove(name); err != nil {
				return nil, holdfast.WrapKind("remove a note", holdfast.Other, err)
			}
			continue
		}
		n.path = name
		if n.file, err = os.OpenFile(name, os.O_RDWR, 0); err != nil {
			return nil, holdfast.WrapKind("open a note", holdfast.Other, err)
		}
		out = append(out, n)
	}
	return out, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
