package memory

import (
	"context"
	"fmt"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// CreateVolume stores a new record under its id and name.
func (s *Store) CreateVolume(ctx context.Context, r holdfast.Record) (holdfast.Record, error) {
	data, err := layout.EncodeRecord(r)
	if err != nil {
		return holdfast.Record{}, err
	}
	var out holdfast.Record
	err = s.do(ctx, Op{"CreateVolume", string(r.ID)}, func(d *db) error {
		key, nameKey := layout.VolumeKey(r.ID), layout.NameKey(r.Name)
		owner, named := d.values[nameKey]
		if _, ok := d.values[key]; ok {
			out, _ = d.volume(key)
			return holdfast.E("", holdfast.Exists, "a volume with this id exists")
		}
		if named {
			out, _ = d.volume(layout.VolumeKey(holdfast.VolumeID(owner.data)))
			return holdfast.E("", holdfast.Exists, fmt.Sprintf("volume %s has the name %q", owner.data, r.Name))
		}
		d.put(nameKey, []byte(r.ID))
		d.put(key, data)
		out, err = d.volume(key)
		return err
	})
	return out, err
}

// volume reads and decodes one record.
func (d *db) volume(key string) (holdfast.Record, error) {
	v, ok := d.values[key]
	if !ok {
		return holdfast.Record{}, holdfast.E("", holdfast.NotFound, "there is no such volume")
	}
	return layout.DecodeRecord(key, v.data, v.revision)
}

// Volume reads one record by id or by name.
func (s *Store) Volume(ctx context.Context, idOrName string) (holdfast.Record, error) {
	if err := layout.CheckID("Volume", "volume's id or name", idOrName); err != nil {
		return holdfast.Record{}, err
	}
	var out holdfast.Record
	err := s.do(ctx, Op{"Volume", idOrName}, func(d *db) (err error) {
		key := layout.VolumeKey(holdfast.VolumeID(idOrName))
		if _, ok := d.values[key]; !ok {
			if owner, ok := d.values[layout.NameKey(idOrName)]; ok {
				key = layout.VolumeKey(holdfast.VolumeID(owner.data))
			}
		}
		out, err = d.volume(key)
		return err
	})
	return out, err
}

// Volumes reads all records.
func (s *Store) Volumes(ctx context.Context) ([]holdfast.Record, error) {
	var out []holdfast.Record
	var bad skipped
	err := s.do(ctx, Op{Name: "Volumes"}, func(d *db) error {
		out, bad = d.volumes()
		return nil
	})
	s.report(bad)
	return out, err
}

func (d *db) volumes() ([]holdfast.Record, skipped) {
	var out []holdfast.Record
	bad := skipped{}
	for _, key := range d.list(layout.Volumes) {
		if r, err := d.volume(key); err != nil {
			bad[key] = err
		} else {
			out = append(out, r)
		}
	}
	return out, bad
}

// skipped are the values that a list left out, by key.
type skipped map[string]error

func (s *Store) report(bad skipped) {
	s.mu.Lock()
	f := s.onCorrupt
	s.mu.Unlock()
	if f == nil {
		return
	}
	for key, err := range bad {
		f(key, err)
	}
}

// SwapVolume replaces a record that nobody changed meanwhile.
func (s *Store) SwapVolume(ctx context.Context, r holdfast.Record) (holdfast.Record, error) {
	return s.swap(ctx, "SwapVolume", r, nil)
}

// RetireReplicas replaces a record and adds tombstones, all at once.
func (s *Store) RetireReplicas(ctx context.Context, r holdfast.Record, ts []holdfast.Tombstone) (holdfast.Record, error) {
	return s.swap(ctx, "RetireReplicas", r, ts)
}

func (s *Store) swap(ctx context.Context, op string, r holdfast.Record, ts []holdfast.Tombstone) (holdfast.Record, error) {
	data, err := layout.EncodeRecord(r)
	if err != nil {
		return holdfast.Record{}, err
	}
	stones, err := layout.EncodeTombstones(ts, &r)
	if err != nil {
		return holdfast.Record{}, err
	}
	var out holdfast.Record
	err = s.do(ctx, Op{op, string(r.ID)}, func(d *db) error {
		key := layout.VolumeKey(r.ID)
		if out, err = d.current(r); err != nil {
			return err
		}
		if out.Name != r.Name {
			return holdfast.E("", holdfast.Invalid, fmt.Sprintf("a volume's name never changes; it is %q", out.Name))
		}
		for _, st := range stones {
			d.put(st.Key, st.Value)
		}
		d.put(key, data)
		out, err = d.volume(key)
		return err
	})
	return out, err
}

// current is the stored record if it has r's revision; else kind Busy and the
// stored record as it is.
func (d *db) current(r holdfast.Record) (holdfast.Record, error) {
	out, err := d.volume(layout.VolumeKey(r.ID))
	if err == nil && out.Revision != r.Revision {
		err = holdfast.E("", holdfast.Busy, fmt.Sprintf("the record changed meanwhile: it is at revision %d, not %d; read it again", out.Revision, r.Revision))
	}
	return out, err
}

// DropVolume removes a record and its name and adds tombstones, all at once.
func (s *Store) DropVolume(ctx context.Context, r holdfast.Record, ts []holdfast.Tombstone) error {
	stones, err := layout.EncodeTombstones(ts, nil)
	if err != nil {
		return err
	}
	return s.do(ctx, Op{"DropVolume", string(r.ID)}, func(d *db) error {
		now, err := d.current(r)
		if err != nil {
			return err
		}
		keys := []string{layout.VolumeKey(r.ID)}
		if nameKey := layout.NameKey(now.Name); string(d.values[nameKey].data) == string(r.ID) {
			keys = append(keys, nameKey)
		}
		for _, st := range stones {
			d.put(st.Key, st.Value)
		}
		d.drop(keys...)
		return nil
	})
}

// WatchVolumes reports every record and then every change.
func (s *Store) WatchVolumes(ctx context.Context, f func(metadata.VolumeEvent)) error {
	known := map[holdfast.VolumeID]int64{}
	restored := -1
	for {
		s.db.mu.Lock()
		records, bad := s.db.volumes()
		changed, present := s.db.changed, s.db.present()
		again := restored != s.db.restored
		down := s.isDown()
		if !down {
			restored = s.db.restored
		}
		s.db.mu.Unlock()
		if !down {
			s.report(bad)
			if again { // as after a reconnect that cannot resume: everything once more
				for id := range known {
					known[id] = 0
				}
			}
			s.deliver(records, present, known, f)
			if again {
				f(metadata.VolumeEvent{Synced: true})
			}
		}
		select {
		case <-ctx.Done():
			return holdfast.WrapKind("WatchVolumes", holdfast.Unavailable, context.Cause(ctx))
		case <-s.life.Done():
			return holdfast.E("WatchVolumes", holdfast.Unavailable, "this client of the metadata store is closed")
		case <-changed:
		}
	}
}

// present is the set of volumes that have a record, readable or not.
func (d *db) present() map[holdfast.VolumeID]bool {
	ids := map[holdfast.VolumeID]bool{}
	for _, key := range d.list(layout.Volumes) {
		ids[holdfast.VolumeID(layout.ID(key, layout.Volumes))] = true
	}
	return ids
}

// deliver reports what differs from known, and remembers it.
func (s *Store) deliver(records []holdfast.Record, present map[holdfast.VolumeID]bool, known map[holdfast.VolumeID]int64, f func(metadata.VolumeEvent)) {
	for _, r := range records {
		if known[r.ID] != r.Revision {
			known[r.ID] = r.Revision
			f(metadata.VolumeEvent{ID: r.ID, Record: r})
		}
	}
	for id := range known {
		if !present[id] {
			delete(known, id)
			f(metadata.VolumeEvent{ID: id, Deleted: true})
		}
	}
}
