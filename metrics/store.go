package metrics

import (
	"context"
	"time"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
)

// Store is a metadata store whose calls are measured.
func (e *Exporter) Store(s metadata.Store) metadata.Store { return measured{s, e} }

// measured measures the calls that everything else waits for.
type measured struct {
	metadata.Store
	e *Exporter
}

func (m measured) done(call string, began time.Time, err error) {
	m.e.calls.WithLabelValues(call).Observe(time.Since(began).Seconds())
	if err != nil {
		m.e.fails.WithLabelValues(call, holdfast.KindOf(err).String()).Inc()
	}
}

// Volume implements metadata.Volumes.
func (m measured) Volume(ctx context.Context, idOrName string) (r holdfast.Record, err error) {
	defer func(t time.Time) { m.done("volume", t, err) }(time.Now())
	return m.Store.Volume(ctx, idOrName)
}

// Volumes implements metadata.Volumes.
func (m measured) Volumes(ctx context.Context) (rs []holdfast.Record, err error) {
	defer func(t time.Time) { m.done("volumes", t, err) }(time.Now())
	return m.Store.Volumes(ctx)
}

// SwapVolume implements metadata.Volumes.
func (m measured) SwapVolume(ctx context.Context, r holdfast.Record) (out holdfast.Record, err error) {
	defer func(t time.Time) { m.done("swap_volume", t, err) }(time.Now())
	return m.Store.SwapVolume(ctx, r)
}

// Alive implements metadata.Nodes.
func (m measured) Alive(ctx context.Context, id holdfast.NodeID) (ok bool, err error) {
	defer func(t time.Time) { m.done("alive", t, err) }(time.Now())
	return m.Store.Alive(ctx, id)
}

// Nodes implements metadata.Nodes.
func (m measured) Nodes(ctx context.Context) (ns []holdfast.Node, err error) {
	defer func(t time.Time) { m.done("nodes", t, err) }(time.Now())
	return m.Store.Nodes(ctx)
}

// PutNode implements metadata.Nodes.
func (m measured) PutNode(ctx context.Context, n holdfast.Node) (out holdfast.Node, err error) {
	defer func(t time.Time) { m.done("put_node", t, err) }(time.Now())
	return m.Store.PutNode(ctx, n)
}
