package engine

import (
	"sync/atomic"
	"testing"

	"github.com/holdfast-storage/holdfast/engine/disk"
	"github.com/holdfast-storage/holdfast/internal/buf"
)

const benchBytes = 256 << 20

// BenchmarkWrite4K compares a write of 4 KiB by the engine with the pwrite it
// rests on, at the same places of the same file on real XFS.
func BenchmarkWrite4K(b *testing.B) {
	path, root, _ := formatted(b)
	p := mustOpenPool(b, path, root)
	r := created(b, p, benchBytes)
	all := buf.Get(1 << 20)
	defer all.Release()
	for off := int64(0); off < benchBytes; off += 1 << 20 {
		if err := r.WriteAt(Entry{Epoch: 1, Grant: 1}, all.B, off, false); err != nil {
			b.Fatal(err)
		}
	}
	if err := r.Flush(); err != nil {
		b.Fatal(err)
	}
	var seq atomic.Uint64
	engine := func(p []byte, off int64) error {
		n := seq.Add(1)
		return r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: n, Committed: n - min(n, 64)}, p, off, false)
	}
	raw := func(p []byte, off int64) error {
		_, err := r.data.WriteAt(p, off, false)
		return err
	}
	b.Run("raw/1", func(b *testing.B) { write4K(b, raw, 0) })
	b.Run("engine/1", func(b *testing.B) { write4K(b, engine, 0) })
	b.Run("raw/8", func(b *testing.B) { write4K(b, raw, 4) })
	b.Run("engine/8", func(b *testing.B) { write4K(b, engine, 4) })
	b.Run("batch/8", func(b *testing.B) { writeBatches(b, r, &seq, 8) })
	b.Run("batch/32", func(b *testing.B) { writeBatches(b, r, &seq, 32) })
	if err := p.Close(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkWrite4KMemory is the engine's own work: the disk is memory.
func BenchmarkWrite4KMemory(b *testing.B) {
	r := created(b, fsPool(b, disk.NewMem(1<<30)), benchBytes)
	var seq atomic.Uint64
	b.ReportAllocs()
	write4K(b, func(p []byte, off int64) error {
		n := seq.Add(1)
		return r.WriteAt(Entry{Epoch: 1, Grant: 1, Seq: n, Committed: n - min(n, 64)}, p, off, false)
	}, 0)
}

// write4K writes all over the file; perCPU goroutines for each CPU, or one.
func write4K(b *testing.B, write func(p []byte, off int64) error, perCPU int) {
	var at atomic.Int64
	one := func(p []byte) error {
		return write(p, at.Add(1)*7919%(benchBytes/4096)*4096)
	}
	b.SetBytes(4096)
	if perCPU == 0 {
		p := buf.Get(4096)
		defer p.Release()
		for b.Loop() {
			if err := one(p.B); err != nil {
				b.Fatal(err)
			}
		}
		return
	}
	b.SetParallelism(perCPU)
	b.RunParallel(func(pb *testing.PB) {
		p := buf.Get(4096)
		defer p.Release()
		for pb.Next() {
			if err := one(p.B); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// writeBatches writes n blocks of a batch at a time.
func writeBatches(b *testing.B, r *Replica, seq *atomic.Uint64, n int) {
	ts := make([]Transfer, n)
	p := buf.Get(n * 4096)
	defer p.Release()
	b.SetBytes(4096)
	at := int64(0)
	for done := 0; done < b.N; done += n {
		for i := range ts {
			at++
			s := seq.Add(1)
			ts[i] = Transfer{Write: true, Entry: Entry{Epoch: 1, Grant: 1, Seq: s, Committed: s - min(s, 64)},
				P: p.B[i*4096:][:4096], Off: at * 7919 % (benchBytes / 4096) * 4096}
		}
		r.TransferAll(ts)
		for i := range ts {
			if ts[i].Err != nil {
				b.Fatal(ts[i].Err)
			}
		}
	}
}
