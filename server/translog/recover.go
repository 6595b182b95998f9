package translog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/audit"
	"wardlink/internal/durable"
)

// span is a window that the log holds past the mark, and those of its rows that the journal has shown so far.
type span struct {
	audit.Window
	rows [][]byte
}

// checkStart refuses combinations of log, mark and journal that could only come of a restore, a swapped directory or a lost journal.
func (l *Log) checkStart() error {
	if err := l.checkSelf(); err != nil {
		return err
	}
	_, err := l.checkJournal()
	return err
}

// checkSelf is the part of checkStart that needs no journal.
func (l *Log) checkSelf() error {
	if l.at.Origin != l.cfg.Origin {
		return l.unsound("its mark belongs to %q, the configuration says %q", l.at.Origin, l.cfg.Origin)
	}
	if err := l.checkKey(); err != nil {
		return err
	}
	tree, err := audit.Integrated(l.cfg.Dir)
	if err != nil {
		return fmt.Errorf("open log %s: %w", l.cfg.Dir, err)
	}
	if l.at.Size > uint64(tree.N) {
		return l.unsound("its mark stands at leaf %d and it has %d: the log was put back; a restore begins a new log", l.at.Size, tree.N)
	}
	root, err := audit.RootAt(l.cfg.Dir, tree, l.at.Size)
	if err != nil {
		return fmt.Errorf("open log %s: %w: %w; run wardlink audit verify", l.cfg.Dir, ErrUnsound, err)
	}
	if root != l.at.Root {
		return l.unsound("its first %d leaves are not those it had at its mark", l.at.Size)
	}
	return nil
}

// checkKey demands that the last checkpoint was signed by our key: with another one, all who hold the public key would see a
// broken log from the next checkpoint on.
func (l *Log) checkKey() error {
	signed, err := os.ReadFile(filepath.Join(l.cfg.Dir, audit.CheckpointFile))
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	var unverified *note.UnverifiedNoteError
	if _, err := note.Open(signed, note.VerifierList()); !errors.As(err, &unverified) {
		return l.unsound("its checkpoint is not a signed note")
	}
	for _, sig := range unverified.Note.UnverifiedSigs {
		if sig.Name == l.cfg.Origin && sig.Hash == l.cfg.Signer.KeyHash() {
			return nil
		}
	}
	return l.unsound("its checkpoint was signed by another key than the one configured")
}

// checkJournal looks for a journal that is older than the mark, another one, or newer than it could be, and gives its cursor.
func (l *Log) checkJournal() (cursor uint64, err error) {
	if cursor, err = l.cfg.Journal.Resume(consumer); err != nil {
		return 0, fmt.Errorf("log %s: %w", l.cfg.Dir, err)
	}
	if cursor > l.at.Seq {
		return 0, l.unsound("the journal was logged up to %d, the mark stands at %d: the log was put back; a restore begins a new log",
			cursor, l.at.Seq)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel() // asks without waiting: Wait looks at the journal before it looks at ctx, and Resume has seen where it ends
	return cursor, fits(ended, l.cfg.Dir, l.cfg.Journal, l.at, cursor)
}

// fits compares the journal with the entry at the mark. Entries are deleted only once the cursor has passed them: one that the cursor is
// behind and the journal has never had was lost with a journal that came back older. ctx bounds the wait for a journal that is late to say
// how far it reaches.
func fits(ctx context.Context, dir string, j Journal, m mark, cursor uint64) error {
	if m.Seq == 0 {
		return nil
	}
	entries, err := j.ReadHeads(m.Seq, 1)
	if err != nil {
		return fmt.Errorf("log %s: read journal at %d: %w", dir, m.Seq, err)
	}
	switch {
	case len(entries) == 0 && cursor != m.Seq && j.Wait(ctx, m.Seq-1) != nil:
		return unsound(dir, "the journal ends before %d, where the mark stands: it was put back or made anew", m.Seq)
	case len(entries) > 0 && entries[0].Seq == m.Seq && entries[0].ID != m.Entry:
		return unsound(dir, "the journal's entry %d is %s, the mark says %s: this is another journal, or it was put back and has grown again",
			m.Seq, entries[0].ID, m.Entry)
	}
	return nil
}

// join checks that the journal is still the one that the mark is of, and moves its cursor to the mark. A cursor that stays behind could not
// tell that the journal came back shorter: numbers up to the mark, given again to other acts, would pass for logged. From the cursor's move
// on the journal itself refuses the next one after it went back.
func (l *Log) join() error {
	cursor, err := l.checkJournal()
	if err != nil || cursor == l.at.Seq {
		return err
	}
	if err := l.cfg.Journal.SetCursor(consumer, l.at.Seq); err != nil {
		return fmt.Errorf("move journal cursor to %d: %w", l.at.Seq, err)
	}
	return nil
}

// resync learns what the log holds past the mark: after a start, and after a pass that failed and may or may not have reached the log.
func (l *Log) resync() error {
	tree, err := audit.Integrated(l.cfg.Dir)
	if err != nil {
		return fmt.Errorf("log %s: %w", l.cfg.Dir, err)
	}
	l.size = uint64(tree.N)
	l.known, l.covered = map[audit.EventID]bool{}, nil
	index := l.at.Size
	for data, err := range audit.Leaves(l.cfg.Dir, l.at.Size, l.size) {
		if err != nil {
			return fmt.Errorf("log %s: leaf %d: %w", l.cfg.Dir, index, err)
		}
		leaf, err := audit.DecodeLeaf(data)
		if err != nil {
			return l.unsound("leaf %d: %v", index, err)
		}
		if w := leaf.Window; w != nil {
			if w.First <= l.at.Seq {
				return l.unsound("leaf %d is a window over journal %d to %d, the mark stands at %d", index, w.First, w.Last, l.at.Seq)
			}
			l.covered = append(l.covered, span{Window: *w})
		} else {
			l.known[leaf.Event.ID] = true
		}
		index++
	}
	return nil
}

// removeUnused deletes the window files of a pass that was killed or failed before its leaves reached the log, and what an interrupted write
// left beside them. Only files of journal positions past the mark are touched: their rows are still in the journal.
func (l *Log) removeUnused() error {
	used := map[string]bool{}
	for _, s := range l.covered {
		used[filepath.Base(audit.WindowFile(s.First, s.Last, audit.RowsSuffix))] = true
		used[filepath.Base(audit.WindowFile(s.First, s.Last, audit.DetailSuffix))] = true
	}
	first := audit.WindowFile(l.at.Seq+1, l.at.Seq+1, audit.RowsSuffix)
	oldest := filepath.Dir(first)
	err := fs.WalkDir(os.DirFS(l.cfg.Dir), audit.WindowsDir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			// Directory names are hex digits of fixed width: as text they are in the journal's order. A parent sorts before its children.
			if path < oldest && !strings.HasPrefix(oldest, path) {
				return fs.SkipDir
			}
			return nil
		}
		from, _, _, err := audit.ParseWindowFile(entry.Name())
		unused := err == nil && from > l.at.Seq && !used[entry.Name()]
		if unused || strings.HasPrefix(entry.Name(), ".") {
			return os.Remove(filepath.Join(l.cfg.Dir, path))
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("log %s: remove unused window files: %w", l.cfg.Dir, err)
	}
	return nil
}

// writeWindow makes a window's two files durable, the row hashes last: where they are, the rows are or were.
func (l *Log) writeWindow(w windowFiles) error {
	if err := l.makeDir(filepath.Dir(audit.WindowFile(w.first, w.last, audit.RowsSuffix))); err != nil {
		return err
	}
	for _, f := range []struct {
		suffix string
		data   []byte
	}{{audit.DetailSuffix, w.detail}, {audit.RowsSuffix, w.rows}} {
		if err := l.step("write " + f.suffix); err != nil {
			return err
		}
		if err := durable.WriteFile(filepath.Join(l.cfg.Dir, audit.WindowFile(w.first, w.last, f.suffix)), f.data, 0o640); err != nil {
			return err
		}
	}
	return nil
}

// makeDir makes a directory below the log's and all names on the way to it durable.
func (l *Log) makeDir(dir string) error {
	if dir == l.madeDir {
		return nil
	}
	if err := os.MkdirAll(filepath.Join(l.cfg.Dir, dir), 0o750); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	for d := filepath.Dir(dir); ; d = filepath.Dir(d) {
		if err := durable.SyncDir(filepath.Join(l.cfg.Dir, d)); err != nil {
			return err
		}
		if d == "." {
			break
		}
	}
	l.madeDir = dir
	return nil
}

// unsound is an ErrUnsound with the log's directory and what does not fit.
func (l *Log) unsound(format string, args ...any) error {
	return unsound(l.cfg.Dir, format, args...)
}

func unsound(dir, format string, args ...any) error {
	return fmt.Errorf("log %s: %w: %s", dir, ErrUnsound, fmt.Sprintf(format, args...))
}

// currentTime is how long Current waits for the journal to say that it reaches the mark: another process may have moved both just now.
const currentTime = 10 * time.Second

// Current refuses a directory that is not the one in which the log is written: beside a journal that several processes share a copy of the
// directory, or an older state of it, would become a second log under the same name. The mark moves before the journal's cursor does, so
// the log's own directory is never behind it, and the journal has the mark's entry. Nothing is locked or changed; a writer may be at work.
func Current(dir string, j Journal) error {
	cursor := j.Cursor(consumer)
	_, m, known, err := openMark(dir)
	switch {
	case err != nil:
		return err
	case !known:
		return fmt.Errorf("log %s: %w: its mark is gone", dir, ErrMissing)
	case m.Seq < cursor:
		return unsound(dir, "the journal was logged up to %d, and this directory's log ends at %d: it is a copy or an older state; use the directory in which the log is written, on storage that both processes see",
			cursor, m.Seq)
	}
	ctx, cancel := context.WithTimeout(context.Background(), currentTime)
	defer cancel()
	return fits(ctx, dir, j, m, cursor)
}
