package translog

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/internal/durable"
)

// Directories of windows that are old enough are packed: one file for the row hashes of all, one for their rows. Nothing is lost by it,
// so a clock that is wrong does no harm here.
//
// Order, and what a kill after each step leaves:
//
//  1. .rows.pack durable: the loose files and a pack that says the same. The verifier holds them against each other.
//  2. .detail.pack durable: the same.
//  3. both packs read back from the disk and compared with every loose file: the same.
//  4. loose files removed, rows last: what is gone is in the packs. Readers look for a loose file first and for its pack then.
//  5. the empty directory removed.
//
// Whatever is left of a directory, the next round does the steps again; a pack that is there takes in what it lacks.
const (
	packInterval = time.Minute
	packAgain    = time.Hour
	packRest     = 4        // the packer rests so many times as long as a directory took it
	windowBits   = 12       // positions of a directory, as audit.WindowFile has it
	maxRead      = 32 << 20 // of one file; a pack has 13 MB at most
)

// packing packs about once a minute what is old enough, until ctx ends. A failure is logged and tried again.
func (l *Log) packing(ctx context.Context) error {
	if l.cfg.PackAfter == 0 {
		return nil
	}
	for {
		begin := time.Now()
		packed, err := l.packNext()
		pause := packInterval
		switch {
		case err != nil && ctx.Err() == nil:
			l.cfg.Log.Error("old windows could not be packed; nothing of them is lost, and it is tried again", "error", err)
		case packed:
			pause = max(packRest*time.Since(begin), time.Millisecond)
		}
		if !sleep(ctx, pause) {
			return nil
		}
	}
}

// packNext packs the oldest directory that is not packed, if it is complete and old enough.
func (l *Log) packNext() (packed bool, err error) {
	root := filepath.Join(l.cfg.Dir, audit.WindowsDir)
	parents, err := os.ReadDir(root)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	// Names are hex digits of fixed width, and ReadDir sorts: as text they are in the journal's order.
	for _, parent := range parents {
		dirs, err := os.ReadDir(filepath.Join(root, parent.Name()))
		if err != nil {
			return false, err
		}
		for _, dir := range dirs {
			if !dir.IsDir() {
				continue
			}
			n, err := strconv.ParseUint(parent.Name()+dir.Name(), 16, 64)
			if err != nil || len(parent.Name()) != 10 || len(dir.Name()) != 3 {
				continue // not ours
			}
			path := filepath.Join(root, parent.Name(), dir.Name())
			if time.Since(l.unpacked[path]) < packAgain {
				continue // it failed lately; those behind it need not wait
			}
			due, err := l.packDue(n<<windowBits, path)
			if err == nil && !due {
				return false, nil
			}
			if err == nil {
				err = l.packDir(n<<windowBits, path)
			}
			if err != nil {
				l.unpacked[path] = time.Now()
			}
			return err == nil, err
		}
	}
	return false, nil
}

// packDue says that all windows that begin in the directory are in the log, and the newest file is old enough.
func (l *Log) packDue(first uint64, path string) (bool, error) {
	l.mu.Lock()
	logged := l.state.JournalSeq
	l.mu.Unlock()
	if logged < first|(1<<windowBits-1) {
		return false, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return false, err
	}
	newest := time.Time{}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return false, err
		}
		if info.ModTime().After(newest) {
			newest = info.ModTime()
		}
	}
	return l.cfg.Now().Sub(newest) >= l.cfg.PackAfter, nil
}

// looseWindow is one window's files as they lie in its directory.
type looseWindow struct {
	first, last uint64
	data        map[string][]byte // by suffix
}

func (l *Log) packDir(first uint64, path string) error {
	loose, err := readLoose(path)
	if err != nil {
		return err
	}
	for _, suffix := range []string{audit.RowsSuffix, audit.DetailSuffix} {
		if err := l.step("pack " + suffix); err != nil {
			return err
		}
		if err := l.writePack(first, suffix, loose); err != nil {
			return err
		}
	}
	if err := l.step("check packs"); err != nil {
		return err
	}
	for _, suffix := range []string{audit.RowsSuffix, audit.DetailSuffix} {
		if err := l.checkPack(first, suffix, loose); err != nil {
			return err
		}
	}
	for _, suffix := range []string{audit.DetailSuffix, audit.RowsSuffix} {
		for _, w := range loose {
			if _, ok := w.data[suffix]; !ok {
				continue
			}
			if err := l.step("remove " + suffix); err != nil {
				return err
			}
			if err := os.Remove(filepath.Join(l.cfg.Dir, audit.WindowFile(w.first, w.last, suffix))); err != nil {
				return err
			}
		}
		if err := durable.SyncDir(path); err != nil {
			return err
		}
	}
	if err := l.step("remove directory"); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// readLoose reads a directory's windows in their order, and what does not fit together or is not ours is an error: it is left for a
// person to look at. What an interrupted write left is removed.
func readLoose(path string) ([]*looseWindow, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	byRange := map[[2]uint64]*looseWindow{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			if err := os.Remove(filepath.Join(path, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		first, last, suffix, err := audit.ParseWindowFile(e.Name())
		if err != nil {
			return nil, fmt.Errorf("%s: %w; move it out of the log's directory", path, err)
		}
		data, err := readBounded(filepath.Join(path, e.Name()))
		if err != nil {
			return nil, err
		}
		w := byRange[[2]uint64{first, last}]
		if w == nil {
			w = &looseWindow{first, last, map[string][]byte{}}
			byRange[[2]uint64{first, last}] = w
		}
		w.data[suffix] = data
	}
	var out []*looseWindow
	for _, w := range byRange {
		rows, hasRows := w.data[audit.RowsSuffix]
		detail, hasDetail := w.data[audit.DetailSuffix]
		if hasRows && hasDetail {
			if err := audit.CheckWindow(rows, detail); err != nil {
				return nil, fmt.Errorf("window over journal %d to %d: %w; run wardlink audit verify", w.first, w.last, err)
			}
		}
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b *looseWindow) int { return cmp.Compare(a.first, b.first) })
	return out, nil
}

func readBounded(path string) ([]byte, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxRead {
		return nil, fmt.Errorf("%s: expected a file of at most %d bytes", path, maxRead)
	}
	return os.ReadFile(path)
}

// readPack gives what a pack holds; nothing when there is none.
func (l *Log) readPack(first uint64, suffix string) ([]audit.Packed, error) {
	name := audit.PackFile(first, suffix)
	data, err := readBounded(filepath.Join(l.cfg.Dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	windows, err := audit.DecodePack(data, first)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return windows, nil
}

// writePack makes the pack of one suffix hold all loose files of it, beside what it holds already.
func (l *Log) writePack(first uint64, suffix string, loose []*looseWindow) error {
	windows, err := l.readPack(first, suffix)
	if err != nil {
		return err
	}
	have := len(windows)
	for _, w := range loose {
		data, ok := w.data[suffix]
		if ok && !slices.ContainsFunc(windows[:have], func(p audit.Packed) bool { return p.First == w.first && p.Last == w.last }) {
			windows = append(windows, audit.Packed{First: w.first, Last: w.last, Data: data})
		}
	}
	if len(windows) == have {
		return nil
	}
	slices.SortFunc(windows, func(a, b audit.Packed) int { return cmp.Compare(a.First, b.First) })
	data, err := audit.EncodePack(windows)
	if err != nil {
		return fmt.Errorf("%s: %w", audit.PackFile(first, suffix), err)
	}
	return durable.WriteFile(filepath.Join(l.cfg.Dir, audit.PackFile(first, suffix)), data, 0o640)
}

// checkPack reads the pack back and compares every loose file with what it holds.
func (l *Log) checkPack(first uint64, suffix string, loose []*looseWindow) error {
	windows, err := l.readPack(first, suffix)
	if err != nil {
		return err
	}
	for _, w := range loose {
		data, ok := w.data[suffix]
		if !ok {
			continue
		}
		i := slices.IndexFunc(windows, func(p audit.Packed) bool { return p.First == w.first && p.Last == w.last })
		if i < 0 || !bytes.Equal(windows[i].Data, data) {
			return fmt.Errorf("%s: window over journal %d to %d is not in it as it lies beside it; the loose file is kept", audit.PackFile(first, suffix), w.first, w.last)
		}
	}
	return nil
}
