package audit

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
)

// CopyLog hands every file that a log's checkpoint covers to add, beside the log's writer: names are relative to dir, with slashes, and from is
// where to read them. A part that is collected meanwhile, because its full one is there, is given as the full one; windows that were packed meanwhile as
// their pack. Files of windows past the checkpoint may be among them. What add returns ends the copying.
//
// Checkpoint first, then everything else: files of a log never change, so whatever the checkpoint covers is there and stays.
func CopyLog(dir string, size uint64, add func(name, from string) error) error {
	d := openDir(dir)
	if err := d.copyTree("entries", size, add); err != nil {
		return err
	}
	for level, n := 0, size; n > 0; level, n = level+1, n/tileWidth {
		if err := d.copyTree(strconv.Itoa(level), n, add); err != nil {
			return err
		}
	}
	return d.copyWindows(add)
}

// copyTree gives the tiles or bundles that hold n parts.
func (d logDir) copyTree(kind string, n uint64, add func(name, from string) error) error {
	for i := range n / tileWidth {
		name := "tile/" + kind + "/" + tileIndex(i)
		if err := add(name, filepath.Join(d.path, name)); err != nil {
			return err
		}
	}
	if n%tileWidth == 0 {
		return nil
	}
	full := "tile/" + kind + "/" + tileIndex(n/tileWidth)
	part := fmt.Sprintf("%s.p/%d", full, n%tileWidth)
	err := add(part, filepath.Join(d.path, part))
	if errors.Is(err, fs.ErrNotExist) {
		err = add(full, filepath.Join(d.path, full))
	}
	return err
}

// copyWindows gives the windows' files, and then packs until no new one has come.
func (d logDir) copyWindows(add func(name, from string) error) error {
	packs := map[string]bool{}
	each := func(only func(parent, name string) bool) (news int, err error) {
		root := filepath.Join(d.path, WindowsDir)
		err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
			if isNotExist(err) {
				return nil
			}
			if err != nil || entry.IsDir() {
				return err
			}
			rel, err := filepath.Rel(d.path, path)
			if err != nil || packs[rel] || !only(filepath.Base(filepath.Dir(path)), entry.Name()) {
				return err
			}
			if err := add(filepath.ToSlash(rel), path); isNotExist(err) {
				return nil // packed
			} else if err != nil {
				return err
			}
			if _, _, ok := parsePackFile(filepath.Base(filepath.Dir(path)), entry.Name()); ok {
				packs[rel] = true
			}
			news++
			return nil
		})
		return news, err
	}
	if _, err := each(func(parent, name string) bool {
		_, _, pack := parsePackFile(parent, name)
		_, _, _, err := ParseWindowFile(name)
		return pack || err == nil
	}); err != nil {
		return err
	}
	for {
		news, err := each(func(parent, name string) bool { _, _, ok := parsePackFile(parent, name); return ok })
		if err != nil || news == 0 {
			return err
		}
	}
}

// ReadCheckpoint reads the signed checkpoint of the log in dir and verifies it with the log's public key.
func ReadCheckpoint(dir, vkey string) (signed []byte, cp Checkpoint, err error) {
	if signed, err = openDir(dir).read(CheckpointFile, maxCheckpoint); err != nil {
		return nil, cp, fmt.Errorf("checkpoint: %w", err)
	}
	cp, err = OpenCheckpoint(signed, vkey)
	return signed, cp, err
}

// OriginNumber reads the trust domain and the number of a log out of its origin.
func OriginNumber(origin string) (trustDomain string, n uint64, err error) {
	if i := strings.LastIndexByte(origin, '/'); i >= 0 {
		domain, ok := strings.CutSuffix(origin[:i], "/log")
		n, err := strconv.ParseUint(origin[i+1:], 10, 64)
		if ok && err == nil && Origin(domain, n) == origin {
			return domain, n, nil
		}
	}
	return "", 0, fmt.Errorf("log origin %q; expected <trust domain>/log/<number>", origin)
}
