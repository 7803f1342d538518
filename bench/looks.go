package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/holdfast-storage/holdfast"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// looks are how long one takes to see everything, in milliseconds, from the first
// node but for the metrics.
type looks struct {
	List     float64 `json:"listMs"`
	Status   float64 `json:"statusMs"`
	Problems int     `json:"problems"` // that the status shows
	Metrics  float64 `json:"metricsMs"`
	Bytes    int64   `json:"metricsBytes"`
}

func (l looks) String() string {
	return fmt.Sprintf("list all: %.0f ms; status: %.0f ms, %d problems; metrics of a node: %.0f ms, %d KiB", l.List, l.Status, l.Problems, l.Metrics, l.Bytes>>10)
}

// look lists at least n volumes, asks for the status, and scrapes a node's metrics.
func (b *bench) look(ctx context.Context, n, node int) (l looks, err error) {
	cl, err := b.cluster.volumes(0)
	if err != nil {
		return l, err
	}
	began := time.Now()
	all, err := cl.ListVolumes(ctx, &holdfastv1.ListVolumesRequest{})
	if err != nil {
		return l, holdfast.Wrap("list volumes", err)
	}
	if got := len(all.GetVolumes()); got < n {
		return l, holdfast.E("list volumes", holdfast.Other, fmt.Sprintf("%d of %d", got, n))
	}
	l.List, began = ms(time.Since(began)), time.Now()
	st, err := b.status(ctx, 0)
	if err != nil {
		return l, holdfast.Wrap("status", err)
	}
	l.Status, l.Problems, began = ms(time.Since(began)), len(st.GetProblems()), time.Now()
	l.Bytes, err = b.cluster.scrape(ctx, node)
	l.Metrics = ms(time.Since(began))
	return l, err
}

// scrape reads a node's metrics and says how long they are.
func (c *cluster) scrape(ctx context.Context, node int) (int64, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", c.path(node, "api.sock"))
	}}}
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/metrics", nil)
	if err != nil {
		return 0, holdfast.Wrap("metrics", err)
	}
	r, err := client.Do(q)
	if err != nil {
		return 0, holdfast.Wrap("metrics", err)
	}
	defer func() { _ = r.Body.Close() }()
	n, err := io.Copy(io.Discard, r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = holdfast.E("", holdfast.Other, r.Status)
	}
	return n, holdfast.Wrap("metrics", err)
}
