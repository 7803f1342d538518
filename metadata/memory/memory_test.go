package memory_test

import (
	"testing"

	"github.com/holdfast-storage/holdfast/metadata"
	"github.com/holdfast-storage/holdfast/metadata/memory"
)

func TestStoreIsAStore(t *testing.T) {
	var s metadata.Store = memory.New()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
