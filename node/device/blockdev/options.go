package blockdev

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/node/device"
)

// IsVolume says whether a name is the id of a volume.
func IsVolume(name string) bool {
	raw, err := hex.DecodeString(name)
	return err == nil && len(raw) == 16 && strings.ToLower(name) == name
}

// Validate refuses options that no front end can serve, with Invalid.
func Validate(o device.Options, b device.Backend) error {
	bad := func(format string, a ...any) error {
		return holdfast.E("", holdfast.Invalid, fmt.Sprintf(format, a...))
	}
	if !IsVolume(string(o.Volume)) {
		return bad("the volume id %q is not 32 lower-case hexadecimal digits", o.Volume)
	}
	switch {
	case b == nil:
		return bad("a backend is needed")
	case o.LogicalBlk != 512 && o.LogicalBlk != 4096:
		return bad("a logical block of %d bytes is not possible; use 512 or 4096", o.LogicalBlk)
	case o.SizeBytes <= 0 || o.SizeBytes > holdfast.MaxVolumeBytes || o.SizeBytes%int64(o.LogicalBlk) != 0:
		return bad("a size of %d bytes is not possible; use a multiple of %d up to %d", o.SizeBytes, o.LogicalBlk, int64(holdfast.MaxVolumeBytes))
	}
	return nil
}
