package etcd

import (
	"context"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

func (s *Store) groups() named[holdfast.Group] {
	return named[holdfast.Group]{s: s, what: "group snapshot", prefix: layout.Groups, key: layout.GroupKey, encode: layout.EncodeGroup, decode: layout.DecodeGroup,
		id: func(g holdfast.Group) (string, int64) { return g.Name, g.Revision }}
}

// PutGroup stores a group snapshot that nobody changed meanwhile.
func (s *Store) PutGroup(ctx context.Context, g holdfast.Group) (holdfast.Group, error) {
	return s.groups().put(ctx, g)
}

// Group reads one group snapshot by name.
func (s *Store) Group(ctx context.Context, name string) (holdfast.Group, error) {
	return s.groups().get(ctx, name)
}

// Groups reads all group snapshots.
func (s *Store) Groups(ctx context.Context) ([]holdfast.Group, error) { return s.groups().list(ctx) }

// DropGroup removes a group snapshot that nobody changed meanwhile.
func (s *Store) DropGroup(ctx context.Context, g holdfast.Group) error {
	return s.groups().drop(ctx, g)
}
