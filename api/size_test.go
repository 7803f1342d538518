package api

import (
	"errors"
	"testing"

	"github.com/holdfast-storage/holdfast"
)

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "512": 512, "1k": 1 << 10, "1KiB": 1 << 10, "1Ki": 1 << 10, "1kb": 1000, "10GiB": 10 << 30, "10 G": 10 << 30, "1.5T": 3 << 39, "2TB": 2e12,
		"9007199254740993": 9007199254740993, "1P": 1 << 50,
	} {
		if got, err := ParseBytes(in); err != nil || got != want {
			t.Errorf("%q: got %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "G", "-1", "1X", "1GG", "1e9", "99999999P", "..", "1.2.3"} {
		if got, err := ParseBytes(in); !errors.Is(err, holdfast.Invalid) {
			t.Errorf("%q: got %d, %v, want invalid", in, got, err)
		}
	}
}
