package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"modernc.org/sqlite"

	"wardlink/internal/build"
	"wardlink/internal/durable"
)

const (
	// copiesKept bounds the copies by number: the last upgrade's, and the one's before.
	copiesKept = 2
	// copyMargin is what must be left on the disk beside a copy, in bytes: the write-ahead log at its usual size.
	copyMargin = 64 << 20
	// copyStep is how many pages are copied between two looks at the clock: 256 KB.
	copyStep = 64
	// tellInterval is how often a long copy says how far it is.
	tellInterval = 5 * time.Second
)

// Copy is the database as it was before an upgrade.
type Copy struct {
	Path    string
	Version string    // of the program that upgraded
	Made    time.Time // to the second
}

// CopiesDir is where the copies of the database at path are.
func CopiesDir(path string) string { return filepath.Join(filepath.Dir(path), "backups") }

const copyTime = "20060102T150405Z"

var (
	copyName   = regexp.MustCompile(`^before-([0-9A-Za-z.+_-]{1,64})-([0-9]{8}T[0-9]{6}Z)\.db$`)
	notInAName = regexp.MustCompile(`[^0-9A-Za-z.+_-]`)
)

// Copies lists the copies of the database at path, oldest first. PostgreSQL's has none.
func Copies(path string) (out []Copy, err error) {
	if IsPostgres(path) {
		return nil, nil
	}
	entries, err := os.ReadDir(CopiesDir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("database %s: %w", path, err)
	}
	for _, e := range entries {
		m := copyName.FindStringSubmatch(e.Name())
		if m == nil || !e.Type().IsRegular() {
			continue
		}
		if made, err := time.Parse(copyTime, m[2]); err == nil {
			out = append(out, Copy{Path: filepath.Join(CopiesDir(path), e.Name()), Version: m[1], Made: made})
		}
	}
	slices.SortStableFunc(out, func(a, b Copy) int { return a.Made.Compare(b.Made) })
	return out, nil
}

// DropCopies removes copies made before a time: they hold what has been disposed of since.
func (d *DB) DropCopies(before time.Time) error {
	if d.url != "" {
		return nil
	}
	copies, err := Copies(d.path)
	for _, c := range copies {
		if c.Made.Before(before) {
			err = errors.Join(err, os.Remove(c.Path))
		}
	}
	if err != nil {
		return fmt.Errorf("copies of database %s: %w", d.path, err)
	}
	return nil
}

// copyBefore copies the database, page by page, while the caller holds its write lock. The copy gets its name when it is whole, durable
// and has been read again; so after a crash there is a whole copy under a name, or none.
func copyBefore(ctx context.Context, c Config, have Schema) (path string, err error) {
	dir := CopiesDir(c.Path)
	defer func() {
		if err != nil {
			err = fmt.Errorf("a copy of the database is made before its schema is changed, in %s; nothing was changed: %w", dir, err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	if err := durable.SyncDir(filepath.Dir(dir)); err != nil {
		return "", err
	}
	making := filepath.Join(dir, "copy.making")
	if err := Remove(making); err != nil {
		return "", err
	}
	source, err := openHandle(c.Path, readerPragmas, "deferred", 1)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	if err := room(ctx, source, dir); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, Remove(making))
		}
	}()
	if err := copyPages(ctx, source, making, c); err != nil {
		return "", err
	}
	c.step("pages copied")
	c.Progress("reading the copy of the database again")
	if err := syncFile(making); err != nil {
		return "", err
	}
	if err := verifyCopy(ctx, making, have); err != nil {
		return "", err
	}
	c.step("copy verified")
	path = freeName(dir, time.Now())
	if err := os.Rename(making, path); err != nil {
		return "", err
	}
	if err := durable.SyncDir(dir); err != nil {
		return "", err
	}
	c.step("copy named")
	return path, thinCopies(c.Path)
}

// freeName is the name of a copy made now; a second within one second counts on.
func freeName(dir string, now time.Time) string {
	version := notInAName.ReplaceAllString(build.Version, "_")
	for {
		path := filepath.Join(dir, fmt.Sprintf("before-%s-%s.db", version[:min(len(version), 64)], now.UTC().Format(copyTime)))
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return path
		}
		now = now.Add(time.Second)
	}
}

// thinCopies keeps the last ones.
func thinCopies(path string) error {
	copies, err := Copies(path)
	if err != nil || len(copies) <= copiesKept {
		return err
	}
	for _, c := range copies[:len(copies)-copiesKept] {
		if err := os.Remove(c.Path); err != nil {
			return err
		}
	}
	return nil
}

// room refuses a copy that the disk has no room for, before it is begun.
func room(ctx context.Context, source *sql.DB, dir string) error {
	var need int64
	if err := source.QueryRowContext(ctx, "SELECT p.page_count * s.page_size FROM pragma_page_count p, pragma_page_size s").Scan(&need); err != nil {
		return err
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(dir, &disk); err != nil {
		return err
	}
	if free := int64(disk.Bavail) * disk.Bsize; free < need+copyMargin {
		const mb = 1 << 20
		return fmt.Errorf("the copy takes %d MB and %d MB must be left beside it, the disk has %d MB free; free %d MB, for instance by moving older copies away, or mount a larger disk at that directory",
			(need+mb-1)/mb, copyMargin/mb, free/mb, (need+copyMargin-free+mb-1)/mb)
	}
	return nil
}

func copyPages(ctx context.Context, source *sql.DB, making string, c Config) error {
	f, err := os.OpenFile(making, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	conn, err := source.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // gives it back
	var pages int64
	if err := conn.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages); err != nil {
		return err
	}
	to, err := fileURI(making, url.Values{"_pragma": {"journal_mode(OFF)", "synchronous(OFF)"}})
	if err != nil {
		return err
	}
	return conn.Raw(func(raw any) error {
		from, ok := raw.(interface {
			NewBackup(string) (*sqlite.Backup, error)
		})
		if !ok {
			return errors.New("the SQLite driver cannot copy a database")
		}
		// The file has no name yet and is flushed once it is whole, so it needs no journal of its own.
		b, err := from.NewBackup(to)
		if err != nil {
			return err
		}
		told, copied := time.Now(), int64(0)
		for more := true; more; copied += copyStep {
			if more, err = b.Step(copyStep); err != nil {
				return errors.Join(err, b.Finish())
			}
			c.step("some pages copied")
			if time.Since(told) >= tellInterval {
				told = time.Now()
				percent := copied * 100 / pages
				c.Log.Info("the database is copied before its schema is changed", "percent", percent)
				c.Progress(fmt.Sprintf("copying the database before its schema is changed: %d %%", percent))
			}
		}
		return b.Finish()
	})
}

// verifyCopy reads the copy from its file: its pages hang together, and it is the database that was to be copied.
func verifyCopy(ctx context.Context, path string, have Schema) (err error) {
	// Nobody else has the file, so SQLite needs neither locks nor files beside it.
	uri, err := fileURI(path, url.Values{"mode": {"ro"}, "immutable": {"1"}})
	if err != nil {
		return err
	}
	db, err := sql.Open("sqlite", uri)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var verdict string
	if err := db.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&verdict); err != nil {
		return fmt.Errorf("the copy cannot be read: %w", err)
	}
	if verdict != "ok" {
		return fmt.Errorf("the database is damaged, or its copy is (%s); check the disk, then restore the last backup", verdict)
	}
	var id int
	if err := db.QueryRowContext(ctx, "PRAGMA application_id").Scan(&id); err != nil {
		return err
	}
	got, err := versions(ctx, db)
	if err != nil {
		return err
	}
	if id != applicationID || !maps.Equal(got, have) {
		return fmt.Errorf("the copy has application id %#x and schema %s, expected %#x and %s; check the disk", id, got, applicationID, have)
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Remove removes a database that nobody has open, such as one that was being made, and what SQLite may have left beside it. One that is
// not there is no error.
func Remove(path string) error {
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
