package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/holdfast-storage/holdfast"
)

// quietGrants is dataplane.QuietGrants in files, one per volume, each with the
// grant as a decimal number. They stand in the run directory: the next process of
// this node reads them, and a reboot may take them away.
type quietGrants struct {
	dir string
	log *slog.Logger
}

// newQuietGrants makes the folder.
func newQuietGrants(runDir string, log *slog.Logger) (quietGrants, error) {
	q := quietGrants{dir: filepath.Join(runDir, "grants"), log: log}
	return q, holdfast.WrapKind("make "+q.dir, holdfast.Other, os.MkdirAll(q.dir, 0o700))
}

func (q quietGrants) path(vol holdfast.VolumeID) string { return filepath.Join(q.dir, string(vol)) }

// Quiet implements dataplane.QuietGrants.
func (q quietGrants) Quiet(vol holdfast.VolumeID) holdfast.Epoch {
	raw, err := os.ReadFile(q.path(vol))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(string(raw), "\n"), 10, 64)
	if err != nil || !strings.HasSuffix(string(raw), "\n") { // cut short by the end of a process
		return 0
	}
	return holdfast.Epoch(n)
}

// SetQuiet implements dataplane.QuietGrants. What cannot be written costs the
// next process a wait, nothing else; an old number stays true.
func (q quietGrants) SetQuiet(vol holdfast.VolumeID, grant holdfast.Epoch) {
	if grant == 0 {
		_ = os.Remove(q.path(vol))
		return
	}
	if err := os.WriteFile(q.path(vol), []byte(strconv.FormatUint(uint64(grant), 10)+"\n"), 0o600); err != nil {
		q.log.Warn("a grant could not be noted: the next start of this daemon waits for older reads", "volume", string(vol), "err", err)
	}
}
