package main

import "testing"

func TestAges(t *testing.T) {
	for text, want := range map[string]int64{"": 0, "36h": 36 * 3600, "14d": 14 * 86400, "8w": 56 * 86400, "90s": 90, "1h30m": 5400} {
		if got, err := parseAge(text); err != nil || got != want {
			t.Errorf("%q is %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"d", "-1d", "0d", "3", "1.5d", "10ms", "long", "-2h"} {
		if got, err := parseAge(text); err == nil {
			t.Errorf("%q is %d", text, got)
		}
	}
	for seconds, want := range map[int64]string{86400: "1d", 129600: "36h", 90: "1m30s"} {
		if got := age(seconds); got != want {
			t.Errorf("%d is %q, want %q", seconds, got, want)
		}
	}
}
