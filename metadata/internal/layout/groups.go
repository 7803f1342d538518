package layout

import (
	"fmt"
	"net/url"

	"github.com/holdfast-storage/holdfast"
)

// Groups is the folder of group snapshots.
const Groups = "groups/"

// GroupKey is where a group snapshot is.
func GroupKey(name string) string { return Groups + url.PathEscape(name) }

// EncodeGroup checks a group snapshot that is about to be stored and gives its
// JSON. The error is of kind Invalid.
func EncodeGroup(g holdfast.Group) ([]byte, error) {
	op := "encode group snapshot " + g.Name
	if err := g.Validate(); err != nil {
		return nil, holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	return encode(op, g)
}

// DecodeGroup reads a stored group snapshot. The error is of kind Corrupt.
func DecodeGroup(key string, value []byte, revision int64) (holdfast.Group, error) {
	var g holdfast.Group
	if err := decode(key, value, &g, holdfast.GroupVersion); err != nil {
		return holdfast.Group{}, err
	}
	if err := g.Validate(); err != nil {
		return holdfast.Group{}, holdfast.WrapKind("decode "+key, holdfast.Corrupt, err)
	}
	if GroupKey(g.Name) != key {
		return holdfast.Group{}, corrupt(key, fmt.Sprintf("it holds the group snapshot %q", g.Name))
	}
	g.Revision = revision
	return g, nil
}
