package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Regular says why a file that somebody else may have made is not to be opened: it is a link, a device or a pipe, whose opening can wait for
// ever or do something, or it is longer than most bytes. nil for a regular file, and where nothing is.
func Regular(path string, most int64) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is no regular file but %s; it is not opened", path, info.Mode().Type())
	case info.Size() > most:
		return fmt.Errorf("%s has %d bytes; expected at most %d", path, info.Size(), most)
	}
	return nil
}
