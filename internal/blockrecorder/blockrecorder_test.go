package blockrecorder

import (
	"bytes"
	"testing"
)

// FuzzRead: whatever a log contains, its records lie within it, one after the
// other, and what is cut off ends it.
func FuzzRead(f *testing.F) {
	rec := make([]byte, recordHeader, recordHeader+4)
	order.PutUint32(rec, uint32(Write))
	order.PutUint32(rec[4:], 4)
	order.PutUint64(rec[8:], 4096)
	rec = append(rec, "data"...)
	f.Add(append(append([]byte{}, rec...), rec...))
	f.Add(rec[:18])
	f.Fuzz(func(t *testing.T, log []byte) {
		at := int64(0)
		err := Read(bytes.NewReader(log), func(r Record) error {
			if at += recordHeader + int64(len(r.Data)); r.End != at || at > int64(len(log)) {
				t.Fatalf("a record ends at %d, must be %d of %d", r.End, at, len(log))
			}
			if !bytes.Equal(r.Data, log[at-int64(len(r.Data)):at]) {
				t.Fatal("a record has other data than the log")
			}
			return nil
		})
		if err == nil && int64(len(log))-at > maxWrite+recordHeader {
			t.Fatalf("it ended at %d of %d without an error", at, len(log))
		}
	})
}
