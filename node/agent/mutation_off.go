//go:build !mutations

package agent

import (
	"context"

	"github.com/holdfast-storage/holdfast"
)

// mutant says whether a deliberate fault is switched on: never in this build.
func mutant(Mutation) bool { return false }

// absent is what a deliberate fault removes besides: nothing in this build.
func (a *Agent) absent(context.Context) []holdfast.Tombstone { return nil }
