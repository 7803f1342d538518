package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
)

// Status is what a keeper tells in its status file, as JSON.
type Status struct {
	Keeper int  `json:"keeper"` // process ids
	Daemon int  `json:"daemon"`
	Ready  bool `json:"ready"` // the daemon works
}

// ReadStatus reads a keeper's status file and checks that the keeper lives.
// Errors: NotFound when none runs.
func ReadStatus(path string) (Status, error) {
	op := "look for a keeper in " + path
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Status{}, holdfast.E(op, holdfast.NotFound, "no daemon runs under a keeper with this run directory")
	}
	var s Status
	if err == nil {
		err = json.Unmarshal(raw, &s)
	}
	switch {
	case err != nil:
		return Status{}, holdfast.WrapKind(op, holdfast.Other, err)
	case s.Keeper <= 0 || unix.Kill(s.Keeper, 0) != nil:
		return Status{}, holdfast.E(op, holdfast.NotFound, fmt.Sprintf("the keeper, process %d, is gone", s.Keeper))
	}
	return s, nil
}

// tell changes the status and writes it down.
func (k *keeper) tell(f func(*Status)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(&k.status)
	k.writeStatus()
}

// writeStatus is for people and their commands: failing is no reason to stop.
func (k *keeper) writeStatus() {
	if k.cfg.StatusFile == "" {
		return
	}
	raw, err := json.Marshal(k.status)
	if err == nil {
		err = os.WriteFile(k.cfg.StatusFile+".new", append(raw, '\n'), 0o600)
	}
	if err == nil {
		err = os.Rename(k.cfg.StatusFile+".new", k.cfg.StatusFile)
	}
	if err != nil {
		k.cfg.Log.Warn("the keeper's status cannot be written: the daemon cannot be upgraded by command", "err", err)
	}
}

func (k *keeper) forgetStatus() {
	if k.cfg.StatusFile != "" {
		_ = os.Remove(k.cfg.StatusFile)
	}
}
