package dataplane

import (
	"context"

	"github.com/holdfast-storage/holdfast"
)

// records is one volume's key in the metadata store. It implements
// replication.Records; calls are made within a step.
type records struct{ h *Volume }

// Swap replaces the record; the outcome arrives as OnSwap. It is tried once.
func (r records) Swap(want holdfast.Record) {
	vols := r.h.v.plane.cfg.Volumes
	r.call(func(ctx context.Context) (holdfast.Record, error) { return vols.SwapVolume(ctx, want) }, r.h.machine.OnSwap)
}

// Read reads the record; the outcome arrives as OnRead.
func (r records) Read() {
	vols := r.h.v.plane.cfg.Volumes
	r.call(func(ctx context.Context) (holdfast.Record, error) { return vols.Volume(ctx, string(r.h.v.id)) }, r.h.machine.OnRead)
}

func (r records) call(f func(context.Context) (holdfast.Record, error), done func(holdfast.Record, error)) {
	v := r.h.v
	ok := v.plane.spawn(func() {
		ctx, cancel := context.WithTimeout(v.plane.life, v.plane.cfg.RecordTimeout)
		defer cancel()
		rec, err := f(ctx)
		v.step(func() { done(rec, err) })
	})
	if !ok {
		v.later(func() { done(holdfast.Record{}, v.plane.stopping("use the record of volume "+string(v.id))) })
	}
}
