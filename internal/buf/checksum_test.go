package buf_test

import (
	"hash/crc32"
	"sync"
	"testing"

	"github.com/holdfast-storage/holdfast/internal/buf"
)

func TestChecksumIsThatOfTheContentAlsoWhenTheMemoryIsUsedAgain(t *testing.T) {
	table := crc32.MakeTable(crc32.Castagnoli)
	for round := range 100 {
		b := buf.Get(1 + round*97%4096)
		for i := range b.B {
			b.B[i] = byte(round + i)
		}
		want := crc32.Checksum(b.B, table)
		var wg sync.WaitGroup
		for range 3 { // as the connections' writers do
			wg.Go(func() {
				if got := b.Checksum(); got != want {
					t.Errorf("round %d: %08x, want %08x", round, got, want)
				}
			})
		}
		wg.Wait()
		b.Release()
	}
}
