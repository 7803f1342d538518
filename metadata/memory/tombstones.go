package memory

import (
	"context"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// AddTombstones allows replicas' data to be removed.
func (s *Store) AddTombstones(ctx context.Context, ts []holdfast.Tombstone) error {
	stones, err := layout.EncodeTombstones(ts, nil)
	if err != nil {
		return err
	}
	return s.do(ctx, Op{Name: "AddTombstones"}, func(d *db) error {
		for _, st := range stones {
			d.put(st.Key, st.Value)
		}
		return nil
	})
}

// Tombstones reads all.
func (s *Store) Tombstones(ctx context.Context) ([]holdfast.Tombstone, error) {
	var out []holdfast.Tombstone
	bad := skipped{}
	err := s.do(ctx, Op{Name: "Tombstones"}, func(d *db) error {
		for _, key := range d.list(layout.Tombstones) {
			if t, err := layout.DecodeTombstone(key, d.values[key].data); err != nil {
				bad[key] = err
			} else {
				out = append(out, t)
			}
		}
		return nil
	})
	s.report(bad)
	return out, err
}

// DropTombstone removes one that has been carried out.
func (s *Store) DropTombstone(ctx context.Context, id holdfast.ReplicaID) error {
	return s.do(ctx, Op{"DropTombstone", string(id)}, func(d *db) error {
		if key := layout.TombstoneKey(id); d.values[key].revision != 0 {
			d.drop(key)
		}
		return nil
	})
}
