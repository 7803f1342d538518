package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/engine/disk"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// sealedLimit bounds sealed files; the largest is meta, with its suspects.
const sealedLimit = 256 << 20

// newestSealed is the newest version that is read. History: 1, the first; 2, of
// "replica": it has snapshots, or depends on an origin; 3, of "replica": it is
// open, or was not closed in good order, and what its files lack is in memory.
func newestSealed(what string) int {
	if what == "replica" {
		return 3
	}
	return 1
}

// versioned is content that needs another version than 1.
type versioned interface{ sealVersion() int }

func sealHeader(what string, version int, body []byte) string {
	return fmt.Sprintf("holdfast %s v%d crc32c=%08x\n", what, version, checksum(body))
}

// seal encodes v as the content of a sealed file.
func seal(what string, v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, holdfast.WrapKind("encode "+what, holdfast.Invalid, err)
	}
	body = append(body, '\n')
	version := 1
	if x, ok := v.(versioned); ok {
		version = x.sealVersion()
	}
	return append([]byte(sealHeader(what, version, body)), body...), nil
}

// unseal decodes a sealed file's content into v; kind Corrupt if it is not what
// seal made.
func unseal(what string, data []byte, v any) error {
	op := "decode " + what
	head, body, found := bytes.Cut(data, []byte("\n"))
	if !found {
		return errorf(op, holdfast.Corrupt, "its first line is not complete")
	}
	version := newestSealed(what)
	for version > 1 && string(head)+"\n" != sealHeader(what, version, body) {
		version--
	}
	if want := sealHeader(what, version, body); string(head)+"\n" != want {
		return errorf(op, holdfast.Corrupt, "its first line is %.80q; with this content it would be %q", head, want[:len(want)-1])
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(v); err != nil {
		return holdfast.WrapKind(op, holdfast.Corrupt, err)
	}
	return nil
}

func writeSealed(fs disk.FS, name, what string, v any) error {
	data, err := seal(what, v)
	if err != nil {
		return err
	}
	return disk.ReplaceFile(fs, name, data)
}

func readSealed(fs disk.FS, name, what string, v any) error {
	data, err := disk.ReadFile(fs, name, sealedLimit)
	if err != nil {
		return err
	}
	return holdfast.Wrap(name, unseal(what, data, v))
}
