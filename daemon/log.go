package daemon

import (
	"io"
	"log/slog"

	"k8s.io/klog/v2"
)

// Handler writes log records to w as configured.
func (l Log) Handler(w io.Writer) slog.Handler {
	var level slog.Level
	if err := level.UnmarshalText([]byte(l.Level)); err != nil {
		level = slog.LevelInfo // empty: Validate has refused everything else
	}
	o := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.NewJSONHandler(w, o)
	}
	return slog.NewTextHandler(w, o)
}

// routeKlog has what k8s.io/mount-utils logs written as everything else is. It
// logs through a logger of its whole process, so the last daemon's counts.
func routeKlog(log *slog.Logger) { klog.SetSlogLogger(log.With("part", "mount")) }
