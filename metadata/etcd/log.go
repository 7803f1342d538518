package etcd

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/holdfast-storage/holdfast"
)

// zapTo makes the logger that etcd wants write warnings and worse to a slog.
// When stopping is set they are no news but information: etcd calls the end of its
// own listeners an error.
func zapTo(l *slog.Logger, stopping *atomic.Bool, opts ...zap.Option) *zap.Logger {
	return zap.New(slogCore{l, stopping}, opts...)
}

// fatal is what the etcd server does when it cannot go on, such as when its
// disk is full: by default it would end the process, and with it the I/O of
// volumes, which need no etcd. So only the goroutine ends that has the trouble
// (it acknowledges nothing any more), and the owner is told.
type fatal struct{ failed chan error }

func (f fatal) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := holdfast.E("run the etcd member", holdfast.Unavailable, fmt.Sprint(e.Message, " ", attrs(fields)))
	select {
	case f.failed <- err:
	default: // it has failed already
	}
	runtime.Goexit()
}

// slogCore is a zapcore.Core over a slog.Logger.
type slogCore struct {
	l        *slog.Logger
	stopping *atomic.Bool
}

func (c slogCore) Enabled(level zapcore.Level) bool { return level >= zapcore.WarnLevel }

func (c slogCore) With(fields []zapcore.Field) zapcore.Core {
	return slogCore{c.l.With(attrs(fields)...), c.stopping}
}

func (c slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slog.LevelWarn
	switch {
	case c.stopping.Load():
		level = slog.LevelInfo
	case e.Level > zapcore.WarnLevel:
		level = slog.LevelError
	}
	c.l.Log(context.Background(), level, "etcd: "+e.Message, attrs(fields)...)
	return nil
}

func (c slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []any {
	m := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(m)
	}
	var as []any
	for _, f := range fields { // in the order in which they came
		if v, ok := m.Fields[f.Key]; ok {
			as = append(as, slog.Any(f.Key, v))
			delete(m.Fields, f.Key)
		}
	}
	return as
}
