package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/holdfast-storage/holdfast"
	"github.com/holdfast-storage/holdfast/internal/netcluster"
	holdfastv1 "github.com/holdfast-storage/holdfast/proto/holdfast/v1"
)

// compare reads the data of all replicas of a volume from the pools and compares
// them block by block, then lets the filesystem's own checker look at one of
// them. The volume is served by nobody before, meanwhile and afterwards.
func (r *run) compare(ctx context.Context, c *netcluster.Claim) error {
	op := "compare the replicas of " + c.Name
	for range 5 {
		before, err := r.volume(ctx, c.Name)
		if err != nil {
			return holdfast.Wrap(op, err)
		}
		files, err := r.dataFiles(before)
		if err != nil {
			return holdfast.Wrap(op, err)
		}
		differs := compareFiles(files)
		if differs == nil {
			return r.checkFilesystem(ctx, c, files[0])
		}
		after, err := r.volume(ctx, c.Name)
		if err != nil {
			return holdfast.Wrap(op, err)
		}
		if after.GetEpoch() == before.GetEpoch() && quietAndInSync(before) == nil && quietAndInSync(after) == nil {
			return holdfast.Wrap(fmt.Sprintf("%s in epoch %d", op, after.GetEpoch()), differs)
		}
		// It was served meanwhile: once more.
		if err := r.inSync(ctx, c.Name); err != nil {
			return err
		}
	}
	return holdfast.E(op, holdfast.Busy, "somebody serves it again and again although nobody wants it")
}

// dataFiles finds the replicas' files on the mounted pools.
func (r *run) dataFiles(v *holdfastv1.Volume) ([]string, error) {
	var out []string
	for _, x := range v.GetReplicas() {
		found, _ := filepath.Glob(filepath.Join(r.f.folder(x.GetNode()), "run/pools/*/replicas", x.GetId(), "data"))
		if len(found) != 1 {
			return nil, holdfast.E("find replica "+x.GetId(), holdfast.NotFound, fmt.Sprintf("there are %d of it on node %s", len(found), x.GetNode()))
		}
		out = append(out, found[0])
	}
	return out, nil
}

// compareFiles compares files that are mostly holes. Errors: Corrupt.
func compareFiles(paths []string) error {
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	var size int64
	for _, p := range paths {
		f, err := os.OpenFile(p, os.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			return holdfast.Wrap("open replica", err)
		}
		files = append(files, f)
		st, err := f.Stat()
		if err != nil {
			return holdfast.Wrap("open replica", err)
		}
		if size != 0 && st.Size() != size {
			return holdfast.E("compare", holdfast.Corrupt, fmt.Sprintf("%s has %d bytes, %s has %d", paths[0], size, p, st.Size()))
		}
		size = st.Size()
	}
	const chunk = 1 << 20
	want, have := aligned(chunk), aligned(chunk)
	for off, err := nextData(files, 0); off < size; off, err = nextData(files, off+chunk) {
		if err != nil {
			return err
		}
		off -= off % chunk
		n, err := readChunk(files[0], want, off)
		if err != nil {
			return err
		}
		for i, f := range files[1:] {
			m, err := readChunk(f, have, off)
			if err != nil {
				return err
			}
			if n != m || !bytes.Equal(want[:n], have[:n]) {
				return different(paths[0], paths[i+1], off, want[:n], have[:n])
			}
		}
	}
	return nil
}

// nextData is the next offset at which any of the files has data; their end if
// there is none.
func nextData(files []*os.File, off int64) (int64, error) {
	next := int64(1) << 62
	for _, f := range files {
		at, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			continue
		}
		if err != nil {
			return 0, holdfast.Wrap("find data", err)
		}
		next = min(next, at)
	}
	return next, nil
}

func readChunk(f *os.File, p []byte, off int64) (int, error) {
	n, err := f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, holdfast.Wrap("read replica", err)
}

// different names the blocks that differ.
func different(a, b string, off int64, pa, pb []byte) error {
	var blocks []int64
	detail := ""
	for i := 0; i+blockBytes <= len(pa); i += blockBytes {
		x, y := pa[i:i+blockBytes], pb[i:i+blockBytes]
		if bytes.Equal(x, y) {
			continue
		}
		if len(blocks) == 0 {
			detail = fmt.Sprintf("the first ones begin with %x and %x", x[:16], y[:16])
		}
		blocks = append(blocks, (off+int64(i))/blockBytes)
	}
	return holdfast.E("compare", holdfast.Corrupt, fmt.Sprintf("%s and %s differ in blocks %v of 4 KiB, perhaps in more; %s", a, b, blocks, detail))
}

// checkFilesystem lets the filesystem's checker look, without changing anything.
func (r *run) checkFilesystem(ctx context.Context, c *netcluster.Claim, data string) error {
	var err error
	switch c.FSType {
	case "xfs":
		_, err = netcluster.Command(ctx, "xfs_repair", "-n", "-f", data)
	case "ext4":
		_, err = netcluster.Command(ctx, "e2fsck", "-f", "-n", data)
	}
	return holdfast.WrapKind("check the filesystem of "+c.Name, holdfast.Corrupt, err)
}
