package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	waiters = 4
	// long is from which on a write is told of.
	long = time.Second
	// blocks is how many each writes, again and again.
	blocks    = 64
	blockSize = 4096
)

// waits writes blocks past the page cache, reads each back, and does not end unless
// one fails or is not as written.
func waits(dir string) error {
	failed := make(chan error)
	for w := range waiters {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("waits%d", w)), os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
		if err != nil {
			return err
		}
		go func() { failed <- wait(f) }()
	}
	return <-failed
}

func wait(f *os.File) error {
	p, got := aligned(), aligned()
	for n := uint64(1); ; n++ {
		at := int64(n%blocks) * blockSize
		for i := 0; i < len(p); i += 8 {
			binary.LittleEndian.PutUint64(p[i:], n)
		}
		began := time.Now()
		_, err := f.WriteAt(p, at)
		if took := time.Since(began); took > long {
			fmt.Println("waited", took.Milliseconds(), "ms")
		}
		if err != nil {
			return err
		}
		if _, err := f.ReadAt(got, at); err != nil {
			return err
		}
		if !bytes.Equal(p, got) {
			return errors.New("a block is not as written")
		}
	}
}

func aligned() []byte {
	p := make([]byte, 2*blockSize)
	skip := int(-uintptr(unsafe.Pointer(&p[0])) & (blockSize - 1))
	return p[skip:][:blockSize]
}
