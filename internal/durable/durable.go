// Package durable writes small files so that a power cut leaves the former content or the new one, never a mixture and never
// nothing. It is for state of a few kilobytes; batches and entries live in buffer/segment.
//
// What is relied on: rename(2) within a directory is atomic, fsync(2) of a file makes its bytes durable, fsync(2) of a directory
// makes its names durable. A disk that lies about flushes breaks all of it and cannot be detected from here.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// WriteFile replaces path by data. The calls, in order, and what a crash after each leaves:
//
//	open(tmp, O_CREAT|O_EXCL)  the former file, and an unused temporary one
//	write(tmp), fsync(tmp)     the same
//	rename(tmp, path)          the former file or the new one: the name's change is not durable yet
//	fsync(dir)                 the new file
//
// On an error before rename the former content stands. On an error of the last call either may stand after a crash, and the new
// one is seen until then; the caller must treat the write as failed and may repeat it.
func WriteFile(path string, data []byte, perm fs.FileMode) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".tmp*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	tmp := f.Name()
	defer func() {
		if err != nil {
			// Only a leftover name is at stake: the next WriteFile uses another one.
			_ = f.Close()
			_ = os.Remove(tmp)
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if err = f.Chmod(perm); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(tmp, path); err != nil {
		return err
	}
	return SyncDir(dir)
}

// DamagedSuffix ends the name of a file that was set aside.
const DamagedSuffix = ".damaged"

// SetAside renames a damaged file so that nothing opens it again, and returns the new path. The file is kept as it is, beside those
// of the same name that were set aside before.
func SetAside(path string) (string, error) {
	aside := path + DamagedSuffix
	for i := 1; ; i++ {
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		} else if err != nil {
			return "", fmt.Errorf("set aside %s: %w", path, err)
		}
		aside = fmt.Sprintf("%s.%d%s", path, i, DamagedSuffix)
	}
	if err := os.Rename(path, aside); err != nil {
		return "", fmt.Errorf("set aside %s: %w", path, err)
	}
	return aside, SyncDir(filepath.Dir(path))
}

// SyncDir makes the directory's names durable: what was created, renamed or removed in it before the call stays so.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	err = d.Sync()
	// Some file systems (FUSE, 9p, some overlay set-ups) cannot fsync a directory and say EINVAL; they order names themselves or
	// not at all, and there is nothing else to call.
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOTSUP) {
		err = nil
	}
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
