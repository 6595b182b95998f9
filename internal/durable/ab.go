package durable

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// ErrDamaged: files of an A/B pair exist and neither holds a whole value. The caller decides what that means; it is never the
// same as "nothing stored yet".
var ErrDamaged = errors.New("both copies are damaged")

// ErrNewer: the file is whole and a newer version of the program wrote it. It is not damaged: it must be neither set aside nor written.
var ErrNewer = errors.New("a newer version of the program wrote it; install that version again, or a later one")

// An A/B file is: magic (8), generation (8, big endian), length (4, big endian), data, SHA-256 over all before it (32). Bytes after
// that are left from a longer former value and mean nothing.
const (
	abMagic  = "WLAB\x00\x00\x00\x01"
	abHead   = len(abMagic) + 8 + 4
	abExtra  = abHead + sha256.Size
	abSuffix = 2
)

// AB keeps one small value in two files, path.a and path.b, and overwrites the older of the two in place: one flush a Store, and no
// new names once both exist.
//
// Crash argument: Store writes only the file that does not hold the newest whole value, and that value's file is not touched before
// Store has returned. So at every instant at least one file holds a whole value, and after a crash the reader finds the value of the
// last Store that returned, or of the one that was under way. A file is born by WriteFile (whole or not there), hence a file that
// exists and does not verify is torn by an overwrite, and then its twin is whole; if both fail to verify, the disk lost bytes that
// were durable, and that is ErrDamaged.
type AB struct {
	path       string
	max        int
	next       int    // index of the file the next Store writes
	generation uint64 // of the last Store tried; a failed one may still be on disk, so its number is never used again
	born       [2]bool
}

var abNames = [abSuffix]string{".a", ".b"}

// OpenAB reads the pair. data is nil when never stored; max is the greatest length of data in bytes. It writes nothing.
//
// A copy that is there but cannot be read (no descriptors, no permission, a bad sector) is an error even when its twin is whole: it
// may be the newest, and going on with the twin would give out the former value and let the next Store overwrite the newest.
func OpenAB(path string, max int) (f *AB, data []byte, err error) {
	f = &AB{path: path, max: max}
	newest, faults := -1, []error{}
	for i, suffix := range abNames {
		raw, err := readLimited(path+suffix, max+abExtra)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		f.born[i] = true
		if err != nil {
			return nil, nil, fmt.Errorf("read %s.a and .b: %w", path, err)
		}
		generation, value, err := parseAB(raw, max)
		if errors.Is(err, ErrNewer) { // also beside a whole value of ours, which is then the older one
			return nil, nil, fmt.Errorf("read %s%s: %w", path, suffix, err)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("%s%s: %w", path, suffix, err))
			continue
		}
		if newest < 0 || generation > f.generation {
			newest, f.generation, data = i, generation, value
		}
	}
	if newest < 0 {
		if len(faults) > 0 {
			return nil, nil, fmt.Errorf("read %s.a and .b: %w: %w", path, ErrDamaged, errors.Join(faults...))
		}
		return f, nil, nil
	}
	f.next = 1 - newest
	return f, data, nil
}

// OpenABOrAside is OpenAB for a value that can be had again, so that its loss must not stop a start: a pair that is damaged, or that
// the disk cannot read, is set aside under the names in aside, and the pair is empty. lost says why; it is nil when nothing was lost.
// Faults of this process or machine (no descriptors, no permission) stay errors: the files may be whole.
func OpenABOrAside(path string, max int) (f *AB, data []byte, aside []string, lost, err error) {
	f, data, err = OpenAB(path, max)
	if !errors.Is(err, ErrDamaged) && !errors.Is(err, syscall.EIO) {
		return f, data, nil, nil, err
	}
	lost = err
	for _, suffix := range abNames {
		to, err := SetAside(path + suffix)
		switch {
		case err == nil:
			aside = append(aside, to)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, nil, aside, lost, err
		}
	}
	f, data, err = OpenAB(path, max)
	return f, data, aside, lost, err
}

// Store makes data the pair's value. It is durable on return; on an error the former value stands, or after a crash perhaps data.
// Not for several callers at a time.
func (f *AB) Store(data []byte) error {
	if len(data) > f.max {
		return fmt.Errorf("store %s: %d bytes are more than its limit of %d", f.path, len(data), f.max)
	}
	f.generation++
	path := f.path + abNames[f.next]
	raw := appendAB(make([]byte, 0, len(data)+abExtra), f.generation, data)
	var err error
	if f.born[f.next] {
		err = overwrite(path, raw)
	} else {
		err = WriteFile(path, raw, 0o600)
	}
	if err != nil {
		// f.next stays: the other file still holds the last whole value and must not be the next one written.
		return err
	}
	f.born[f.next] = true
	f.next = 1 - f.next
	return nil
}

// overwrite writes raw over the start of an existing file and flushes it. No O_TRUNC: a crash between truncation and write would
// be just as recoverable, but freeing and allocating blocks costs flash writes and may meet ENOSPC.
func overwrite(path string, raw []byte) error {
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	_, err = w.WriteAt(raw, 0)
	if err == nil {
		err = syscall.Fdatasync(int(w.Fd()))
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	return nil
}

func appendAB(raw []byte, generation uint64, data []byte) []byte {
	raw = append(raw, abMagic...)
	raw = binary.BigEndian.AppendUint64(raw, generation)
	raw = binary.BigEndian.AppendUint32(raw, uint32(len(data)))
	raw = append(raw, data...)
	sum := sha256.Sum256(raw)
	return append(raw, sum[:]...)
}

func parseAB(raw []byte, max int) (generation uint64, data []byte, err error) {
	// The first bytes lie in one sector, so a torn write leaves no other version than those that were written.
	if len(raw) >= len(abMagic) && string(raw[:len(abMagic)-1]) == abMagic[:len(abMagic)-1] && raw[len(abMagic)-1] > abMagic[len(abMagic)-1] {
		return 0, nil, fmt.Errorf("A/B file of version %d: %w", raw[len(abMagic)-1], ErrNewer)
	}
	if len(raw) < abExtra || !bytes.HasPrefix(raw, []byte(abMagic)) {
		return 0, nil, errors.New("not an A/B file of version 1")
	}
	generation = binary.BigEndian.Uint64(raw[len(abMagic):])
	n := uint64(binary.BigEndian.Uint32(raw[len(abMagic)+8:]))
	if n > uint64(max) || n > uint64(len(raw)-abExtra) {
		return 0, nil, fmt.Errorf("length %d does not fit", n)
	}
	end := abHead + int(n)
	sum := sha256.Sum256(raw[:end])
	if !bytes.Equal(sum[:], raw[end:end+sha256.Size]) {
		return 0, nil, errors.New("checksum does not match")
	}
	// Never nil: a stored empty value is not the same as none.
	return generation, append(make([]byte, 0, n), raw[abHead:end]...), nil
}

func readLimited(path string, limit int) ([]byte, error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, int64(limit)))
}
