package memory

import (
	"context"
	"fmt"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// PutGroup stores a group snapshot.
func (s *Store) PutGroup(ctx context.Context, g holdfast.Group) (holdfast.Group, error) {
	data, err := layout.EncodeGroup(g)
	if err != nil {
		return holdfast.Group{}, err
	}
	var out holdfast.Group
	err = s.do(ctx, Op{"PutGroup", g.Name}, func(d *db) error {
		key := layout.GroupKey(g.Name)
		if err := d.sameGroup(key, g.Revision); err != nil {
			out, _ = d.group(key)
			return err
		}
		d.put(key, data)
		out, err = d.group(key)
		return err
	})
	return out, err
}

func (d *db) sameGroup(key string, revision int64) error {
	if have := d.values[key].revision; have != revision {
		return holdfast.E("", holdfast.Busy, fmt.Sprintf("the group changed meanwhile: it is at revision %d, not %d; read it again", have, revision))
	}
	return nil
}

func (d *db) group(key string) (holdfast.Group, error) {
	v, ok := d.values[key]
	if !ok {
		return holdfast.Group{}, holdfast.E("", holdfast.NotFound, "there is no such group snapshot")
	}
	return layout.DecodeGroup(key, v.data, v.revision)
}

// Group reads one group snapshot by name.
func (s *Store) Group(ctx context.Context, name string) (holdfast.Group, error) {
	if err := layout.CheckID("read group snapshot", "group snapshot's name", name); err != nil {
		return holdfast.Group{}, err
	}
	var out holdfast.Group
	err := s.do(ctx, Op{"Group", name}, func(d *db) (err error) {
		out, err = d.group(layout.GroupKey(name))
		return err
	})
	return out, err
}

// Groups reads all group snapshots.
func (s *Store) Groups(ctx context.Context) ([]holdfast.Group, error) {
	var out []holdfast.Group
	bad := skipped{}
	err := s.do(ctx, Op{Name: "Groups"}, func(d *db) error {
		for _, key := range d.list(layout.Groups) {
			if g, err := d.group(key); err != nil {
				bad[key] = err
			} else {
				out = append(out, g)
			}
		}
		return nil
	})
	s.report(bad)
	return out, err
}

// DropGroup removes a group snapshot.
func (s *Store) DropGroup(ctx context.Context, g holdfast.Group) error {
	return s.do(ctx, Op{"DropGroup", g.Name}, func(d *db) error {
		key := layout.GroupKey(g.Name)
		if _, ok := d.values[key]; !ok {
			return nil
		}
		if err := d.sameGroup(key, g.Revision); err != nil {
			return err
		}
		d.drop(key)
		return nil
	})
}
