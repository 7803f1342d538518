package nodecsi

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/holdfast-storage/holdfast"
)

// stateVersion is the version of the state files. History: 1, the first.
const stateVersion = 1

// volumeState is what is remembered of a volume on this node.
type volumeState struct {
	Version      int               `json:"version"`
	Volume       holdfast.VolumeID `json:"volume"`
	Names        []string          `json:"names,omitempty"` // what callers called it
	FSType       string            `json:"fsType,omitempty"`
	BootID       string            `json:"bootId"`
	Orchestrated bool              `json:"orchestrated,omitempty"` // a controller published it, and will unpublish it
	Formatting   bool              `json:"formatting,omitempty"`   // mkfs was begun on an empty device
	Entries      []entry           `json:"entries,omitempty"`

	dropped []entry // whose dead mounts the call under way has taken away
}

// role is what a path is to the orchestrator.
type role string

const (
	staged    role = "stage"
	published role = "publish"
)

// entry is one path of the volume.
type entry struct {
	Path     string `json:"path"`
	Role     role   `json:"role"`
	Block    bool   `json:"block,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	Exclude  bool   `json:"exclude,omitempty"` // SINGLE_NODE_SINGLE_WRITER: no second target
	Device   string `json:"device,omitempty"`  // "major:minor" it was mounted from
}

// entry finds the entry of a path; nil if there is none.
func (v *volumeState) entry(path string) *entry {
	for i := range v.Entries {
		if v.Entries[i].Path == path {
			return &v.Entries[i]
		}
	}
	return nil
}

// put adds an entry or replaces the one of its path.
func (v *volumeState) put(e entry) {
	if old := v.entry(e.Path); old != nil {
		*old = e
		return
	}
	v.Entries = append(v.Entries, e)
}

// drop forgets a path.
func (v *volumeState) drop(path string) {
	v.Entries = slices.DeleteFunc(v.Entries, func(e entry) bool { return e.Path == path })
}

// states keeps the files of Config.StateDir. A volume's file is only touched
// under the volume's lock; finding one reads files of others, which are replaced
// atomically.
type states struct {
	dir  string
	boot string
}

func openStates(dir string) (*states, error) {
	op := "open state directory " + dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Other, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Other, err)
	}
	return &states{dir: dir, boot: strings.TrimSpace(string(boot))}, nil
}

func (s *states) file(id holdfast.VolumeID) string {
	return filepath.Join(s.dir, string(id)+".json")
}

// load reads a volume's state; ok is false when there is none, and the state is
// then an empty one to begin with. What an earlier boot had mounted is gone.
func (s *states) load(id holdfast.VolumeID) (v *volumeState, ok bool, err error) {
	fresh := &volumeState{Version: stateVersion, Volume: id, BootID: s.boot}
	op := "read state of volume " + string(id)
	b, err := os.ReadFile(s.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return fresh, false, nil
	}
	if err != nil {
		return nil, false, holdfast.WrapKind(op, holdfast.Other, err)
	}
	v = &volumeState{}
	if err := json.Unmarshal(b, v); err != nil {
		return nil, false, holdfast.WrapKind(op+" in "+s.file(id), holdfast.Corrupt, err)
	}
	if v.Version != stateVersion || v.Volume != id {
		return nil, false, holdfast.E(op+" in "+s.file(id), holdfast.Corrupt,
			"it is not of this volume, or of another release; if nothing of the volume is mounted here, remove the file")
	}
	if v.BootID != s.boot {
		fresh.Names, fresh.FSType = v.Names, v.FSType
		return fresh, true, nil
	}
	return v, true, nil
}

// save makes v durable: on return it survives a crash.
func (s *states) save(v *volumeState) error {
	op := "write state of volume " + string(v.Volume)
	b, err := json.Marshal(v)
	if err != nil {
		return holdfast.WrapKind(op, holdfast.Other, err)
	}
	tmp := s.file(v.Volume) + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return holdfast.WrapKind(op, holdfast.Other, err)
	}
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp, s.file(v.Volume))
	}
	if err == nil {
		err = s.syncDir()
	}
	return holdfast.WrapKind(op, holdfast.Other, err)
}

// remove forgets a volume; one that is not known is fine.
func (s *states) remove(id holdfast.VolumeID) error {
	err := os.Remove(s.file(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = s.syncDir()
	}
	return holdfast.WrapKind("remove state of volume "+string(id), holdfast.Other, err)
}

func (s *states) syncDir() error {
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}

// find looks for the volume that a caller calls by this name or id, among those
// that have a state here; nil if there is none. Names are used again after a
// volume is gone, so the one that has the path comes first.
func (s *states) find(called, path string) (*volumeState, error) {
	if called == filepath.Base(called) {
		if v, ok, err := s.load(holdfast.VolumeID(called)); err != nil || ok {
			return v, err
		}
	}
	named := func(v *volumeState) bool { return slices.Contains(v.Names, called) }
	v, err := s.search(func(v *volumeState) bool { return named(v) && v.entry(path) != nil })
	if err != nil || v != nil {
		return v, err
	}
	return s.search(named)
}

// owner looks for the volume that has this path.
func (s *states) owner(path string) (*volumeState, error) {
	return s.search(func(v *volumeState) bool { return v.entry(path) != nil })
}

// search reads every file; nil if none is what want looks for. A file that
// cannot be read is not skipped: it might be the one.
func (s *states) search(want func(*volumeState) bool) (*volumeState, error) {
	names, err := filepath.Glob(filepath.Join(s.dir, "*.json"))
	if err != nil {
		return nil, holdfast.WrapKind("search state directory "+s.dir, holdfast.Other, err)
	}
	for _, name := range names {
		id := holdfast.VolumeID(strings.TrimSuffix(filepath.Base(name), ".json"))
		v, ok, err := s.load(id)
		if err != nil {
			return nil, err
		}
		if ok && want(v) {
			return v, nil
		}
	}
	return nil, nil
}
