package memory

import (
	"context"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/metadata/internal/layout"
)

// Claim is who owns a name.
func (s *Store) Claim(ctx context.Context, name string) (owner string, err error) {
	if err := layout.CheckID("read claim", "claimed name", name); err != nil {
		return "", err
	}
	err = s.do(ctx, Op{"Claim", name}, func(d *db) error {
		owner = string(d.values[layout.ClaimKey(name)].data)
		return nil
	})
	return owner, err
}

// SwapClaim gives a name to another owner.
func (s *Store) SwapClaim(ctx context.Context, name, from, to string) (owner string, err error) {
	if err := layout.CheckID("change claim", "claimed name", name); err != nil {
		return "", err
	}
	err = s.do(ctx, Op{"SwapClaim", name}, func(d *db) error {
		key := layout.ClaimKey(name)
		owner = string(d.values[key].data)
		switch {
		case owner != from:
			return holdfast.E("", holdfast.Busy, "it is claimed by "+owner)
		case to != "":
			d.put(key, []byte(to))
		case owner != "":
			d.drop(key)
		}
		owner = to
		return nil
	})
	return owner, err
}
