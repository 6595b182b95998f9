package audit

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"golang.org/x/mod/sumdb/tlog"
)

// isNotExist tells a file that was not kept from one that cannot be read.
func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// tileChecker makes the hash tiles again from the leaf hashes and compares them with those on disk. Proofs are made from
// tiles, so a damaged one would let a true publish look unproven.
type tileChecker struct {
	levels [][]tlog.Hash // hashes of each level's last tile so far; a full tile stays until the next hash comes
	index  []uint64      // number of that tile
}

// add takes the next hash of a level; a tile that it fills is compared and gives the level above its next hash.
func (c *tileChecker) add(v *verifier, level int, h tlog.Hash) {
	if level == len(c.levels) {
		c.levels = append(c.levels, make([]tlog.Hash, 0, tileWidth))
		c.index = append(c.index, 0)
	}
	if len(c.levels[level]) == tileWidth {
		c.levels[level] = c.levels[level][:0]
		c.index[level]++
	}
	c.levels[level] = append(c.levels[level], h)
	if len(c.levels[level]) == tileWidth {
		c.compare(v, level)
		c.add(v, level+1, treeRoot(c.levels[level]))
	}
}

// finish compares the tiles at the tree's right edge that are not full.
func (c *tileChecker) finish(v *verifier) {
	for level, hashes := range c.levels {
		if len(hashes) < tileWidth {
			c.compare(v, level)
		}
	}
}

// compare compares the last tile of a level. One finding a tile: a damaged tile would otherwise fill the report alone.
func (c *tileChecker) compare(v *verifier, level int) {
	hashes := c.levels[level]
	data, err := v.dir.tile(level, c.index[level], len(hashes))
	if err != nil {
		v.find("%v", err)
		return
	}
	for i, h := range hashes {
		if tlog.Hash(data[i*tlog.HashSize:]) != h {
			v.find("tile/%d/%s: hash %d is not that of the leaves", level, tileIndex(c.index[level]), i)
			return
		}
	}
}

// checkIDs finds event ids that occur twice, and journal positions that two windows claim: either would be an act counted twice.
func (v *verifier) checkIDs() {
	slices.SortFunc(v.ids, func(a, b EventID) int { return slices.Compare(a[:], b[:]) })
	for i := 1; i < len(v.ids); i++ {
		if v.ids[i] == v.ids[i-1] {
			v.find("event id %s occurs twice", v.ids[i])
		}
	}
	slices.SortFunc(v.ranges, func(a, b window) int { return cmp.Compare(a.first, b.first) })
	for i := 1; i < len(v.ranges); i++ {
		if v.ranges[i].first <= v.ranges[i-1].last {
			v.find("windows over journal %d to %d and %d to %d overlap",
				v.ranges[i-1].first, v.ranges[i-1].last, v.ranges[i].first, v.ranges[i].last)
		}
	}
}

// checkWindowFiles finds window files that no leaf stands for. Files past the last window are those of the pass under way, or of
// one that was interrupted before it reached the log; the writer's next start removes what it does not use.
func (v *verifier) checkWindowFiles() {
	var lastLogged, pending uint64
	if n := len(v.ranges); n > 0 {
		lastLogged = v.ranges[n-1].last
	}
	root := filepath.Join(v.dir.path, WindowsDir)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if isNotExist(err) && path != root {
			return nil // packed while we looked; its windows were met by their leaves
		}
		if err != nil {
			return err
		}
		if entry.IsDir() {
			return nil
		}
		if first, suffix, ok := parsePackFile(filepath.Base(filepath.Dir(path)), entry.Name()); ok && filepath.Dir(filepath.Dir(path)) == root {
			v.checkPack(first, suffix)
			return nil
		}
		first, last, suffix, err := ParseWindowFile(entry.Name())
		if err != nil {
			v.report.Strays++
			return nil
		}
		if want := filepath.Join(v.dir.path, WindowFile(first, last, suffix)); path != want {
			v.find("window file %s: lies in the wrong directory; expected %s", path, want)
			return nil
		}
		i, found := slices.BinarySearchFunc(v.ranges, first, func(w window, first uint64) int { return cmp.Compare(w.first, first) })
		switch {
		case found && v.ranges[i].last == last:
		case first > lastLogged:
			if suffix == RowsSuffix {
				pending++
			}
		default:
			v.find("window file %s: no leaf stands for it", entry.Name())
		}
		return nil
	})
	// No window was ever written: then there need not be a directory.
	if err != nil && !(isNotExist(err) && len(v.ranges) == 0) {
		v.find("window files: %v", err)
	}
	v.report.Pending = pending
}

// checkPack finds windows in a pack that no leaf stands for, and such as differ from a loose file that is still there beside it.
func (v *verifier) checkPack(first uint64, suffix string) {
	windows, err := v.dir.pack(first, suffix)
	if err != nil {
		v.find("%s: %v", PackFile(first, suffix), err)
		return
	}
	for _, w := range windows {
		i, found := slices.BinarySearchFunc(v.ranges, w.First, func(o window, first uint64) int { return cmp.Compare(o.first, first) })
		if !found || v.ranges[i].last != w.Last {
			v.find("%s: no leaf stands for its window over journal %d to %d", PackFile(first, suffix), w.First, w.Last)
			continue
		}
		loose, err := v.dir.read(WindowFile(w.First, w.Last, suffix), maxDetailFile)
		if err == nil && !bytes.Equal(loose, w.Data) {
			v.find("%s: its window over journal %d to %d differs from the file that is still there", PackFile(first, suffix), w.First, w.Last)
		}
	}
}
