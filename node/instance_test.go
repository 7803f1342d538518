package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/holdfast-storage/holdfast"
)

func TestAnInstanceIsTakenOverInTheSameBootOnly(t *testing.T) {
	dir := t.TempDir()
	take := func(boot string) string {
		t.Helper()
		f, instance, err := takeInstance(t.Context(), dir, boot)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		return instance
	}
	first := take("boot-1")
	if again := take("boot-1"); again != first {
		t.Errorf("the successor is %s, not %s", again, first)
	}
	second := take("boot-2")
	if second == first {
		t.Error("an instance outlived its boot")
	}
	if again := take("boot-2"); again != second {
		t.Errorf("the successor is %s, not %s", again, second)
	}
}

func TestAnInstanceThatLivesIsRespected(t *testing.T) {
	dir := t.TempDir()
	f, _, err := takeInstance(t.Context(), dir, "boot")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, _, err := takeInstance(ctx, dir, "boot"); !errors.Is(err, holdfast.Unavailable) {
		t.Errorf("got %v while the holder lives", err)
	}
}
