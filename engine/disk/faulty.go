package disk

import (
	"strings"
	"sync"
	"syscall"

	"github.com/holdfast-storage/holdfast"
)

// Op is an operation that a hook of Faulty sees.
type Op string

// The operations.
const (
	OpOpen     Op = "open"
	OpMkdir    Op = "mkdir"
	OpRemove   Op = "remove"
	OpRename   Op = "rename"
	OpSyncDir  Op = "sync directory"
	OpList     Op = "list"
	OpUsage    Op = "usage"
	OpRead     Op = "read"
	OpWrite    Op = "write"
	OpSync     Op = "sync"
	OpStat     Op = "stat"
	OpTruncate Op = "truncate"
	OpAllocate Op = "allocate"
	OpPunch    Op = "punch"
	OpExtents  Op = "extents"
	OpMap      Op = "map"
	OpMapSync  Op = "msync"
	OpClone    Op = "clone"
	OpMapped   Op = "list pieces"
)

// Call is one operation about to happen.
type Call struct {
	Op     Op
	Path   string
	Offset int64
	Length int64
	// Applied is how many bytes of a write are applied although the hook fails
	// it: a torn write. The hook sets it; 0 is none.
	Applied int64
	// After runs when a failed operation is over, Applied included; the hook sets
	// it.
	After func()
}

// Faulty is an FS whose hook runs before every operation but Close: an error
// it returns is the operation's, which then does not happen. It may block, to
// be slow. The hook must be safe for the goroutines that use the FS.
type Faulty struct {
	fs   FS
	hook func(*Call) error
}

// NewFaulty wraps fs.
func NewFaulty(fs FS, hook func(*Call) error) *Faulty { return &Faulty{fs: fs, hook: hook} }

// Volatile is that of a Mem, behind the same hook; nil when it is no Mem's.
func (y *Faulty) Volatile() FS {
	if m, ok := y.fs.(*Mem); ok {
		return NewFaulty(m.Volatile(), y.hook)
	}
	return nil
}

// call runs the hook for an operation of which nothing is applied when it fails.
func (y *Faulty) call(c *Call) error {
	err := y.hook(c)
	if err != nil && c.After != nil {
		c.After()
	}
	return err
}

// Open implements FS.
func (y *Faulty) Open(name string, flags Flag) (File, error) {
	if err := y.call(&Call{Op: OpOpen, Path: name}); err != nil {
		return nil, err
	}
	f, err := y.fs.Open(name, flags)
	if err != nil {
		return nil, err
	}
	return &faultyFile{f: f, y: y, name: name}, nil
}

// Mkdir implements FS.
func (y *Faulty) Mkdir(name string) error {
	if err := y.call(&Call{Op: OpMkdir, Path: name}); err != nil {
		return err
	}
	return y.fs.Mkdir(name)
}

// Remove implements FS.
func (y *Faulty) Remove(name string) error {
	if err := y.call(&Call{Op: OpRemove, Path: name}); err != nil {
		return err
	}
	return y.fs.Remove(name)
}

// Rename implements FS; the hook sees the path renamed to.
func (y *Faulty) Rename(from, to string) error {
	if err := y.call(&Call{Op: OpRename, Path: to}); err != nil {
		return err
	}
	return y.fs.Rename(from, to)
}

// SyncDir implements FS.
func (y *Faulty) SyncDir(name string) error {
	if err := y.call(&Call{Op: OpSyncDir, Path: name}); err != nil {
		return err
	}
	return y.fs.SyncDir(name)
}

// List implements FS.
func (y *Faulty) List(name string) ([]Entry, error) {
	if err := y.call(&Call{Op: OpList, Path: name}); err != nil {
		return nil, err
	}
	return y.fs.List(name)
}

// Usage implements FS.
func (y *Faulty) Usage() (Usage, error) {
	if err := y.call(&Call{Op: OpUsage}); err != nil {
		return Usage{}, err
	}
	return y.fs.Usage()
}

type faultyFile struct {
	f    File
	y    *Faulty
	name string
}

func (f *faultyFile) call(op Op, off, n int64) error {
	return f.y.call(&Call{Op: op, Path: f.name, Offset: off, Length: n})
}

func (f *faultyFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.call(OpRead, off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.f.ReadAt(p, off)
}

func (f *faultyFile) WriteAt(p []byte, off int64, dsync bool) (int, error) {
	c := &Call{Op: OpWrite, Path: f.name, Offset: off, Length: int64(len(p))}
	if err := f.y.hook(c); err != nil {
		n := 0
		if c.Applied > 0 {
			n, _ = f.f.WriteAt(p[:min(c.Applied, int64(len(p)))], off, false)
		}
		if c.After != nil {
			c.After()
		}
		return n, err
	}
	return f.f.WriteAt(p, off, dsync)
}

func (f *faultyFile) Sync() error {
	if err := f.call(OpSync, 0, 0); err != nil {
		return err
	}
	return f.f.Sync()
}

func (f *faultyFile) Close() error { return f.f.Close() }

func (f *faultyFile) Stat() (Info, error) {
	if err := f.call(OpStat, 0, 0); err != nil {
		return Info{}, err
	}
	return f.f.Stat()
}

func (f *faultyFile) Truncate(size int64) error {
	if err := f.call(OpTruncate, size, 0); err != nil {
		return err
	}
	return f.f.Truncate(size)
}

func (f *faultyFile) Allocate(off, n int64) error {
	if err := f.call(OpAllocate, off, n); err != nil {
		return err
	}
	return f.f.Allocate(off, n)
}

func (f *faultyFile) Punch(off, n int64) error {
	if err := f.call(OpPunch, off, n); err != nil {
		return err
	}
	return f.f.Punch(off, n)
}

func (f *faultyFile) Extents(off, n int64) ([]holdfast.Extent, error) {
	if err := f.call(OpExtents, off, n); err != nil {
		return nil, err
	}
	return f.f.Extents(off, n)
}

// CloneRange implements Sharing; the hook sees the file that is changed.
func (f *faultyFile) CloneRange(from File, off, n int64) error {
	if err := f.call(OpClone, off, n); err != nil {
		return err
	}
	if y, ok := from.(*faultyFile); ok {
		from = y.f
	}
	return f.f.CloneRange(from, off, n)
}

func (f *faultyFile) Mapped(off, n int64) ([]Piece, error) {
	if err := f.call(OpMapped, off, n); err != nil {
		return nil, err
	}
	return f.f.Mapped(off, n)
}

func (f *faultyFile) Map(n int64) (Mapping, error) {
	if err := f.call(OpMap, 0, n); err != nil {
		return nil, err
	}
	m, err := f.f.Map(n)
	if err != nil {
		return nil, err
	}
	return &faultyMapping{Mapping: m, f: f}, nil
}

type faultyMapping struct {
	Mapping
	f *faultyFile
}

func (m *faultyMapping) Sync() error {
	if err := m.f.call(OpMapSync, 0, 0); err != nil {
		return err
	}
	return m.Mapping.Sync()
}

// Rule says which operations fail and how.
type Rule struct {
	Op    Op     // "" for any
	Path  string // the path ends with it; "" for any
	Skip  int    // let so many matching operations pass first
	Count int    // then fail so many; 0 for all that follow
	Errno syscall.Errno
	// Applied is how many bytes of a failed write are applied.
	Applied int64
	// Before runs before the operation, failing or not: to be slow, or to note.
	Before func(Call)

	seen int
}

// Rules is a hook made of rules; the first that fails an operation decides.
type Rules struct {
	mu    sync.Mutex
	rules []*Rule
}

// Add adds a rule.
func (rs *Rules) Add(r Rule) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.rules = append(rs.rules, &r)
}

// Clear forgets all rules.
func (rs *Rules) Clear() {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.rules = nil
}

// Hook is the function for NewFaulty.
func (rs *Rules) Hook(c *Call) error {
	rs.mu.Lock()
	rules := rs.rules
	rs.mu.Unlock()
	for _, r := range rules {
		if r.Op != "" && r.Op != c.Op || !strings.HasSuffix(c.Path, r.Path) {
			continue
		}
		if r.Before != nil {
			r.Before(*c)
		}
		rs.mu.Lock()
		r.seen++
		fails := r.Errno != 0 && r.seen > r.Skip && (r.Count == 0 || r.seen <= r.Skip+r.Count)
		rs.mu.Unlock()
		if fails {
			c.Applied = r.Applied
			return Errno(string(c.Op), c.Path, r.Errno)
		}
	}
	return nil
}
