package etcd_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/holdfast-storage/holdfast/metadata/etcd"
)

// lockedBuffer is written by goroutines that may outlive Close.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// An orderly stop is no error, though etcd calls it so.
func TestAnOrderlyStopLogsNoError(t *testing.T) {
	var said lockedBuffer
	p := freePorts(t, 2)
	s, err := etcd.StartServer(t.Context(), etcd.ServerConfig{Name: "m", Dir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(&said, nil)),
		ClientURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", p[0])}, PeerURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", p[1])}})
	if err != nil {
		t.Fatal(err)
	}
	before := len(said.String())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	after := said.String()[before:]
	if strings.Contains(after, "level=ERROR") || strings.Contains(after, "level=WARN") {
		t.Errorf("an orderly stop says:\n%s", after)
	}
	if !strings.Contains(after, "level=INFO") {
		t.Error("etcd says nothing any more when it stops: the test shows nothing")
	}
}
