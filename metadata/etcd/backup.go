package etcd

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/holdfast-storage/holdfast"
)

// Backup writes everything in etcd to a file, as etcdutl restores it. On return
// it is complete and durable; on an error there is no file. It takes as long as
// ctx allows. Restore with --bump-revision and --mark-compacted, so that no
// revision is used twice for different content.
func (s *Store) Backup(ctx context.Context, path string) (err error) {
	const op = "back the metadata up"
	r, err := s.client.Snapshot(ctx)
	if err != nil {
		return s.fail(op, err)
	}
	defer r.Close()
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".part-*") // mode 0600
	if err != nil {
		return holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	defer func() {
		_ = tmp.Close()
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	if _, err := io.Copy(tmp, r); err != nil {
		return holdfast.WrapKind(op, holdfast.Unavailable, err)
	}
	if err := tmp.Sync(); err != nil {
		return holdfast.WrapKind(op, holdfast.Other, err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return holdfast.WrapKind(op, holdfast.Invalid, err)
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return holdfast.WrapKind(op, holdfast.Other, err)
	}
	defer dir.Close()
	return holdfast.WrapKind(op, holdfast.Other, dir.Sync())
}
