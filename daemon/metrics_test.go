package daemon_test

import (
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/holdfast-storage/holdfast/daemon"
	"github.com/holdfast-storage/holdfast/internal/rpc"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// scrape reads a daemon's metrics.
func scrape(t *testing.T, c daemon.Config) string {
	t.Helper()
	q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+c.API[0]+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	body, err := io.ReadAll(r.Body)
	if err != nil || r.StatusCode != http.StatusOK {
		t.Fatalf("%d %.300s, %v", r.StatusCode, body, err)
	}
	return string(body)
}

// TestScrape attaches a volume to a real daemon, writes to its device, and finds
// that in the metrics.
func TestScrape(t *testing.T) {
	c := oneNode(t, t.TempDir())
	start(t, c)
	conns := rpc.NewConns(rpc.Config{})
	defer func() { _ = conns.Close() }()
	create(t, conns, c)
	cc, err := conns.Conn(c.API[0])
	if err != nil {
		t.Fatal(err)
	}
	vols := holdfastv1.NewVolumeServiceClient(cc)
	a, err := vols.AttachVolume(t.Context(), &holdfastv1.AttachVolumeRequest{Volume: "v1"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(a.GetDevicePath(), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, werr := f.WriteAt(make([]byte, 1<<20), 0)
	if err := f.Sync(); err != nil || werr != nil {
		t.Error(werr, err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	text := scrape(t, c)
	for _, want := range []string{
		`holdfast_build_info{node="n1",release="test"} 1`,
		`holdfast_node_lease_held 1`,
		`holdfast_node_volumes{kind="client"} 1`,
		`holdfast_pool_state{device="[^"]+",pool="[^"]+",state="online"} 1`,
		`holdfast_volume_replicas_in_sync{volume="v1"} 1`,
		`holdfast_volume_io_bytes_total{op="write",volume="v1"} 1.048576e\+06`,
		`holdfast_volume_io_seconds_count{op="flush",volume="v1"} [1-9]`,
		`holdfast_metadata_call_seconds_count{call="swap_volume"} [1-9]`,
		`go_goroutines [1-9]`, `process_open_fds [1-9]`,
	} {
		if !regexp.MustCompile(`(?m)^` + want).MatchString(text) {
			t.Errorf("%s is missing in:\n%s", want, regexp.MustCompile(`(?m)^(#|go_|process_).*\n`).ReplaceAllString(text, ""))
		}
	}
	if strings.Contains(text, "holdfast_volume_waiting_seconds{") {
		t.Error("something waits")
	}
	if _, err := vols.DetachVolume(t.Context(), &holdfastv1.DetachVolumeRequest{Volume: "v1"}); err != nil {
		t.Error(err)
	}
	if strings.Contains(scrape(t, c), `volume="v1"`) {
		t.Error("a volume that is not served here any more is shown")
	}
}
