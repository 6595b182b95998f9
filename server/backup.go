package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"wardlink/audit"
	"wardlink/internal/build"
	"wardlink/internal/durable"
	"wardlink/server/backup"
	"wardlink/server/keys"
	"wardlink/server/sqldb"
	"wardlink/server/translog"
	"wardlink/telemetry/seal"
)

// BackupOptions are what Backup is told.
type BackupOptions struct {
	Dir  string // the server's
	Out  string // a new file, or a directory in which one gets a name
	Bare bool   // without the recovery file: it is kept apart, and restore is given it
	// Wait bounds how long the database may take to catch up with the log, and then the log with the database; 0: 60 s.
	Wait     time.Duration
	Progress func(stage string, bytes int64) // nil: nobody looks; bytes so far, before compression
}

// BackupResult is what was written.
type BackupResult struct {
	File   string `json:"file"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
	backup.Manifest
}

// publicFiles are copied as they are where they are there: what anybody may know, and what says how the server was set up. Keys are not
// among them, nor operators' files, nor the CA's store, which agents fill again by themselves.
var publicFiles = []string{ConfigFile, keys.CanaryFile}

// publicDirs are copied with all files in them.
var publicDirs = []string{"public", "ek-trust"}

// Backup writes data and log of the server in Dir, running or not, into one encrypted file; FORMAT.md of server/backup describes it and
// argues for the order:
//
//  1. wait until the database has what the log has at the beginning: what the log says was received can then be read.
//  2. snapshot of the database.
//  3. wait until the log has what the snapshot has: no act without its proof. Then copy the log under its checkpoint.
//
// The journal is not in it: what it holds behind the snapshot are acts of moments, in the log that comes after, or publishes, which
// gateways bring again. A failure or a kill leaves no file under the final name; the temporary copy of the database, in the server's own directory, is
// removed by the next Backup. The event is in the server's database before the file has its name.
func Backup(ctx context.Context, o BackupOptions) (res BackupResult, err error) {
	b := &backingUp{BackupOptions: o, running: running(o.Dir)}
	if b.Wait == 0 {
		b.Wait = time.Minute
	}
	if b.Progress == nil {
		b.Progress = func(string, int64) {}
	}
	if b.cfg, err = LoadConfig(o.Dir); err != nil {
		return res, err
	}
	if b.cfg.Database != "" {
		return res, fmt.Errorf("backup: %s keeps its stores in PostgreSQL: %w", o.Dir, sqldb.ErrNoSnapshot)
	}
	if b.keys, err = keys.Open(o.Dir); err != nil {
		return res, err
	}
	if err := b.name(); err != nil {
		return res, err
	}
	work := filepath.Join(o.Dir, ".backup")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return res, fmt.Errorf("backup: %w", err)
	}
	lock, err := durable.Lock(filepath.Join(work, "lock"), syscall.LOCK_EX)
	if errors.Is(err, durable.ErrLocked) {
		return res, fmt.Errorf("backup: another one of %s is under way", o.Dir)
	}
	if err != nil {
		return res, fmt.Errorf("backup: %w", err)
	}
	defer lock.Close()
	b.snapshot, b.list = filepath.Join(work, "wardlink.db"), filepath.Join(work, "list")
	defer func() { err = errors.Join(err, b.clean()) }()
	if err := b.clean(); err != nil { // of one that was killed
		return res, err
	}
	if err := b.write(ctx); err != nil {
		return res, err
	}
	return b.result, nil
}

// backingUp is one Backup.
type backingUp struct {
	BackupOptions
	cfg            Config
	keys           *keys.Keys
	running        bool
	snapshot, list string // temporary files
	out            *os.File
	manifest       backup.Manifest
	result         BackupResult
}

// running says whether a server runs on dir.
func running(dir string) bool {
	f, err := durable.Lock(filepath.Join(journalDir(dir), "lock"), syscall.LOCK_SH)
	if err == nil {
		_ = f.Close()
	}
	return errors.Is(err, durable.ErrLocked)
}

// name decides on the file. One that is there is never overwritten.
func (b *backingUp) name() error {
	if b.Out == "" {
		return errors.New("backup: where to? Name a new file, or a directory")
	}
	if info, err := os.Stat(b.Out); err == nil && info.IsDir() {
		b.Out = filepath.Join(b.Out, fmt.Sprintf("%s-%s.wlbackup", b.cfg.TrustDomain, time.Now().UTC().Format("20060102T150405Z")))
	}
	if _, err := os.Lstat(b.Out); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("backup: %s is there already and is not overwritten", b.Out)
	}
	return nil
}

func (b *backingUp) clean() error {
	err := os.Remove(b.list)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err := errors.Join(err, sqldb.Remove(b.snapshot)); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	return nil
}

// write makes the file under a temporary name beside its final one, and gives it that once all of it is durable.
func (b *backingUp) write(ctx context.Context) (err error) {
	dir, base := filepath.Split(b.Out)
	if b.out, err = os.CreateTemp(dir, "."+base+".*.partial"); err != nil { // mode 0600
		return fmt.Errorf("backup: %w", err)
	}
	defer func() {
		err = errors.Join(err, b.out.Close())
		if err != nil {
			_ = os.Remove(b.out.Name())
		}
	}()
	sum := sha256.New()
	if err := b.fill(ctx, io.MultiWriter(b.out, sum)); err != nil {
		return err
	}
	b.Progress("flushing to disk", b.manifest.Bytes)
	if err := b.out.Sync(); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	info, err := b.out.Stat()
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	b.result = BackupResult{File: b.Out, Bytes: info.Size(), SHA256: hex.EncodeToString(sum.Sum(nil)), Manifest: b.manifest}
	if err := b.announce(ctx); err != nil {
		return fmt.Errorf("backup: it is withheld, its event cannot be kept: %w", err)
	}
	if err := os.Rename(b.out.Name(), b.Out); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if err := durable.SyncDir(filepath.Dir(b.Out)); err != nil {
		return err
	}
	if stamp := b.cfg.Alerts.BackupStamp; stamp != "" { // backup-old looks at it
		return durable.WriteFile(stamp, []byte(b.result.SHA256+"  "+b.Out+"\n"), 0o644)
	}
	return nil
}

func (b *backingUp) fill(ctx context.Context, to io.Writer) error {
	key, err := backupKey(b.keys.Records)
	if err != nil {
		return err
	}
	var recovery []byte
	if !b.Bare {
		if recovery, err = os.ReadFile(filepath.Join(b.Dir, keys.RecoveryFile)); err != nil {
			return fmt.Errorf("backup: recovery file: %w; give --without-recovery if it is kept apart", err)
		}
	}
	list, err := os.OpenFile(b.list, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	defer list.Close()
	b.manifest = backup.Manifest{Program: build.Version, TrustDomain: b.cfg.TrustDomain, Created: time.Now().UTC()}
	w, err := backup.NewWriter(to, key, recovery, list)
	if err != nil {
		return err
	}
	for _, part := range []func(context.Context, *backup.Writer) error{b.settings, b.database, b.log} {
		if err := part(ctx, w); err != nil {
			return err
		}
	}
	b.manifest, err = w.Close(b.manifest)
	return err
}

// backupKey is the key pair of backups, which the records key gives.
func backupKey(records seal.PrivateKey) (backup.Key, error) {
	seed, err := keys.BackupSeed(records)
	if err != nil {
		return backup.Key{}, err
	}
	defer seed.Wipe()
	return backup.NewKey(seed)
}

// settings adds configuration, certificates and public keys.
func (b *backingUp) settings(_ context.Context, w *backup.Writer) error {
	for _, name := range publicFiles {
		if err := w.AddFile(name, filepath.Join(b.Dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	for _, dir := range publicDirs {
		entries, err := os.ReadDir(filepath.Join(b.Dir, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("backup: %w", err)
		}
		for _, e := range entries {
			if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), ".") {
				continue
			}
			if err := w.AddFile(dir+"/"+e.Name(), filepath.Join(b.Dir, dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// database waits for the records and adds a snapshot.
func (b *backingUp) database(ctx context.Context, w *backup.Writer) error {
	b.Progress("copying the database", w.Bytes())
	logged, _, err := translog.Position(logDir(b.Dir))
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	if _, err := b.until(ctx, func() (bool, error) {
		p, err := readPosition(ctx, databaseFile(b.Dir))
		return p.records >= logged, err
	}); err != nil {
		return err
	}
	if err := sqldb.Snapshot(ctx, databaseFile(b.Dir), b.snapshot); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	p, err := readPosition(ctx, b.snapshot)
	if err != nil {
		return err
	}
	b.manifest.Journal, b.manifest.Behind = p.records, max(logged, p.records)-p.records
	if err := w.AddFile(databaseFile(""), b.snapshot); err != nil {
		return err
	}
	if err := sqldb.Remove(b.snapshot); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	reached, err := b.until(ctx, func() (bool, error) {
		seq, size, err := translog.Position(logDir(b.Dir))
		if err != nil || seq < max(p.records, p.outbox) {
			return false, err
		}
		_, cp, err := audit.ReadCheckpoint(logDir(b.Dir), b.keys.LogVerifier)
		return cp.Size >= size, err
	})
	b.manifest.LogBehind = !reached
	return err
}

// log adds the log as far as its checkpoint goes.
func (b *backingUp) log(ctx context.Context, w *backup.Writer) error {
	if err := addTree(ctx, w, b.Dir, audit.FormerDir); err != nil {
		return err
	}
	signed, cp, err := audit.ReadCheckpoint(logDir(b.Dir), b.keys.LogVerifier)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	b.manifest.Origin, b.manifest.Checkpoint = cp.Origin, string(signed)
	if err := w.Add("log/"+audit.CheckpointFile, int64(len(signed)), bytes.NewReader(signed)); err != nil {
		return err
	}
	return audit.CopyLog(logDir(b.Dir), cp.Size, func(name, from string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		b.Progress("copying the log", w.Bytes())
		return w.AddFile("log/"+name, from)
	})
}

// addTree adds a directory of files that never change.
func addTree(ctx context.Context, w *backup.Writer, dir, tree string) error {
	return filepath.WalkDir(filepath.Join(dir, tree), func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && e.IsDir() {
			return ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("backup: %w", err)
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		return w.AddFile(filepath.ToSlash(rel), path)
	})
}

// until asks a few times a second. reached is false when the wait is over, at once when no server runs that could get further.
func (b *backingUp) until(ctx context.Context, ask func() (bool, error)) (reached bool, err error) {
	deadline := time.Now().Add(b.Wait)
	for {
		if reached, err = ask(); reached || err != nil {
			return reached, err
		}
		if !b.running || time.Now().After(deadline) {
			return false, nil
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// announce leaves the event in the server's database.
func (b *backingUp) announce(ctx context.Context) error {
	return leave(ctx, b.Dir, audit.Event{
		Type: audit.BackupMade, Target: filepath.Base(b.Out), Detail: map[string]string{
			"sha256": b.result.SHA256, "bytes": fmt.Sprint(b.result.Bytes), "checkpoint": b.manifest.Checkpoint,
			"journal": fmt.Sprint(b.manifest.Journal), "recovery_file": fmt.Sprint(!b.Bare), "by": "wardlink-server backup",
		},
	}, nil)
}

// position is how far a database is in the journal.
type position struct {
	records uint64 // settled by the records
	outbox  uint64 // the last event of an act that was moved
}

func readPosition(ctx context.Context, path string) (p position, err error) {
	db, err := sqldb.Look(path)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	err = db.QueryRowContext(ctx, "SELECT (SELECT seq FROM records_totals), (SELECT seq FROM events_out_mark)").Scan(&p.records, &p.outbox)
	if errors.Is(err, sql.ErrNoRows) {
		err = fmt.Errorf("%s is no server's database", path)
	}
	return p, err
}
