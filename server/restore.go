package server

import (
	"bufio"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"wardlink/audit"
	"wardlink/internal/durable"
	"wardlink/server/backup"
	"wardlink/server/ca/acmedb"
	"wardlink/server/journal"
	"wardlink/server/keys"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/translog"
	"wardlink/telemetry/seal"
)

// restoringFile is in a directory from a restore's first step to its last. Nothing runs on a directory that has it.
const restoringFile = "RESTORING"

// restoreMigrations is the schema of what is known of restores: one row each.
func restoreMigrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "restores", Version: 1, SQL: `
CREATE TABLE restores (
	generation BLOB NOT NULL PRIMARY KEY CHECK (length(generation) = 16), -- random: names this restore to gateways
	restored INTEGER NOT NULL,  -- when, server's clock in Unix milliseconds
	made INTEGER NOT NULL,      -- when the backup was made
	journal INTEGER NOT NULL,   -- the former journal's entries up to here are in the database
	log INTEGER NOT NULL        -- number of the log that began
) WITHOUT ROWID;
`}}
}

// RestoreOptions are what Restore is told.
type RestoreOptions struct {
	Dir        string // empty, or not there yet
	From       string // the backup
	Recovery   string // recovery file; "": the one in the backup
	Passphrase string
	Operator   string // name of the operator who gets a file
	// Log is the number of the log that begins; 0: one more than the backup's. A greater one is needed where a former restore of
	// the same backup has begun that one.
	Log uint64
	// Verify hashes every leaf of the log again and has the database engine check every page: minutes for large ones. Without it the hashes of all files,
	// the checkpoint's signature and the canary are checked, which proves that the files are those that were backed up.
	Verify   bool
	Progress func(stage string) // nil: nobody looks
}

// RestoreResult is what was restored.
type RestoreResult struct {
	Dir    string    `json:"dir"`
	Backup time.Time `json:"backup"` // when it was made
	Former string    `json:"former_log"`
	Leaves uint64    `json:"former_leaves"` // of the former log
	Log    string    `json:"log"`
	Behind uint64    `json:"records_behind"`
	// LogBehind: see backup.Manifest.
	LogBehind bool `json:"log_behind"`
	Verified  bool `json:"verified"` // leaf by leaf and page by page
}

// Restore makes a server's directory of a backup and the recovery file. Whatever does not hold ends it, and what it has written then bears a mark
// that keeps everything from running on it; the directory is to be removed. So does a kill at any instant: the mark is made durable first
// and removed last.
//
// The restored server has the former root, records and config keys; a new issuing CA, so that the certificates of gateways and operators
// stay valid and none that a thief might make with the old key is needed; a new attestation CA; and a new log, whose first leaf holds the former log's last known checkpoint.
func Restore(ctx context.Context, o RestoreOptions) (RestoreResult, error) {
	r := &restoring{RestoreOptions: o}
	if r.Progress == nil {
		r.Progress = func(string) {}
	}
	f, err := os.Open(o.From)
	if err != nil {
		return r.result, fmt.Errorf("restore: %w", err)
	}
	defer f.Close()
	if err := r.begin(); err != nil {
		return r.result, fmt.Errorf("restore: %w", err)
	}
	for _, step := range []func(context.Context) error{
		func(context.Context) error { return r.extract(bufio.NewReaderSize(f, 1<<20)) },
		r.prove, r.succeed, r.database, r.journal, r.finish,
	} {
		if err := errors.Join(ctx.Err(), step(ctx)); err != nil {
			return r.result, fmt.Errorf("restore: %w\n%s is not whole and nothing runs on it; remove it", err, o.Dir)
		}
	}
	return r.result, nil
}

// restoring is one Restore.
type restoring struct {
	RestoreOptions
	recovery   []byte
	recovered  keys.Recovered
	manifest   backup.Manifest
	vkey       string // of the former log
	generation [16]byte
	result     RestoreResult
}

// begin takes the empty directory.
func (r *restoring) begin() error {
	entries, err := os.ReadDir(r.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty; name a new directory, or remove this one if nothing in it is needed", r.Dir)
	}
	if err := os.MkdirAll(r.Dir, 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(r.Dir, restoringFile), []byte("A restore has not come to its end. Remove this directory and restore again.\n"), 0o600); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(filepath.Clean(r.Dir)))
}

// whole refuses a directory that was restored, of our backup or by other tools, and not to the end.
func whole(dir string) error {
	return errors.Join(unmarked(dir, restoringFile), unmarked(dir, succeedingFile))
}

func unmarked(dir, mark string) error {
	_, err := os.Lstat(filepath.Join(dir, mark))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("whether a restore into it came to its end: %w", err)
	case mark == succeedingFile:
		return fmt.Errorf("%s: 'wardlink-server restored' did not come to its end there; run it again", dir)
	}
	return fmt.Errorf("%s: a restore into it did not come to its end; remove it and restore again", dir)
}

func (r *restoring) extract(in *bufio.Reader) error {
	r.Progress("opening the recovery file")
	h, err := backup.ReadHeader(in)
	if err != nil {
		return fmt.Errorf("%s: %w", r.From, err)
	}
	r.recovery = h.Recovery
	if r.Recovery != "" {
		if r.recovery, err = os.ReadFile(r.Recovery); err != nil {
			return fmt.Errorf("recovery file: %w", err)
		}
	}
	if len(r.recovery) == 0 {
		return errors.New("the backup was made without the recovery file; name it with --recovery-file")
	}
	if r.recovered, err = keys.OpenRecovery(r.recovery, r.Passphrase); err != nil {
		return err
	}
	records, err := seal.ParsePrivateKey(r.recovered.Records)
	if err != nil {
		return err
	}
	key, err := backupKey(records)
	if err != nil {
		return err
	}
	r.Progress("writing the files and comparing their hashes")
	r.manifest, err = backup.Extract(in, h, key, r.Dir, belongs)
	return err
}

// belongs says whether Backup puts a file of that name into a backup.
func belongs(name string) bool {
	if slices.Contains(publicFiles, name) || name == databaseFile("") {
		return true
	}
	top, rest, ok := strings.Cut(name, "/")
	if !ok {
		return false
	}
	if slices.Contains(publicDirs, top) {
		return !strings.Contains(rest, "/")
	}
	return top == audit.FormerDir || top == "log" && !strings.HasPrefix(rest, ".")
}

// prove checks what was written: keys against canary and root, the log against the checkpoint of the manifest, the database against itself.
func (r *restoring) prove(ctx context.Context) error {
	r.Progress("opening the canary")
	if err := r.recovered.Prove(r.Dir); err != nil {
		return err
	}
	cfg, err := loadConfig(r.Dir)
	if err != nil {
		return err
	}
	vkey, err := os.ReadFile(filepath.Join(r.Dir, keys.LogPublicFile))
	if err != nil {
		return err
	}
	r.vkey = strings.TrimSpace(string(vkey))
	signed, cp, err := audit.ReadCheckpoint(logDir(r.Dir), r.vkey)
	if err != nil {
		return err
	}
	domain, n, err := audit.OriginNumber(cp.Origin)
	if err != nil {
		return err
	}
	if string(signed) != r.manifest.Checkpoint || cp.Origin != r.manifest.Origin || domain != cfg.TrustDomain || domain != r.manifest.TrustDomain {
		return errors.New("log, manifest and configuration are not of one server")
	}
	if r.Log == 0 {
		r.Log = n + 1
	}
	if r.Log <= n {
		return fmt.Errorf("the backup's log is number %d; the new one needs a greater number than %d", n, r.Log)
	}
	r.result = RestoreResult{Dir: r.Dir, Backup: r.manifest.Created, Former: cp.Origin, Leaves: cp.Size, Log: audit.Origin(domain, r.Log),
		Behind: r.manifest.Behind, LogBehind: r.manifest.LogBehind, Verified: r.Verify}
	if !r.Verify {
		return nil
	}
	r.Progress(fmt.Sprintf("verifying the log, %d leaves", cp.Size))
	if _, err := audit.Verify(logDir(r.Dir), r.vkey); err != nil {
		return err
	}
	r.Progress("checking the database")
	db, err := sqldb.OpenBeside(databaseFile(r.Dir))
	if err != nil {
		return err
	}
	return errors.Join(db.Check(ctx), db.Close())
}

// succeed ends the former log and makes the keys.
func (r *restoring) succeed(context.Context) error {
	r.Progress("making keys")
	_, n, err := audit.OriginNumber(r.result.Former)
	if err != nil {
		return err
	}
	former, key := audit.FormerLog(r.Dir, n)
	if err := os.MkdirAll(filepath.Dir(former), 0o700); err != nil {
		return err
	}
	if err := os.Rename(logDir(r.Dir), former); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(r.Dir, keys.LogPublicFile), key); err != nil {
		return err
	}
	now := time.Now()
	if err := keys.Restore(r.Dir, r.manifest.TrustDomain, r.recovered, r.recovery, r.result.Log, now); err != nil {
		return err
	}
	r.recovered.Wipe()
	_, err = keys.Confirm(r.Dir, now) // it has just opened
	return err
}

// database begins a generation of restores, for which gateways are asked for what is missing, and takes events out of the outbox that the
// former log has already: they were moved between the snapshot and the log's copy.
func (r *restoring) database(ctx context.Context) (err error) {
	r.Progress("preparing the database")
	db, err := sqldb.Open(databaseFile(r.Dir), migrations()...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	rand.Read(r.generation[:])
	return db.Write(ctx, func(tx *sql.Tx) error {
		if _, err := beginGeneration(tx, r.generation, restoredRow{made: r.manifest.Created, journal: r.manifest.Journal, log: r.Log}); err != nil {
			return err
		}
		// The mark may be further than the records were, and the new journal uses those numbers again.
		if _, err := tx.Exec("UPDATE events_out_mark SET seq = $1", int64(r.manifest.Journal)); err != nil {
			return err
		}
		if _, err := tx.Exec("UPDATE records_totals SET opening = seq"); err != nil { // what was being opened then is not what has those numbers now
			return err
		}
		// Enrolments that were under way are over, and nonces of then must not be good again.
		if err := acmedb.Forget(tx); err != nil {
			return err
		}
		return r.forget(tx)
	})
}

// forget deletes the outbox's events that the former log holds.
func (r *restoring) forget(tx *sql.Tx) error {
	waiting := map[audit.EventID]bool{}
	rows, err := tx.Query("SELECT id FROM events_out")
	if err != nil {
		return err
	}
	for rows.Next() {
		var id []byte
		if err := rows.Scan(&id); err != nil {
			return errors.Join(err, rows.Close())
		}
		if len(id) == len(audit.EventID{}) {
			waiting[audit.EventID(id)] = true
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil || len(waiting) == 0 {
		return err
	}
	_, n, err := audit.OriginNumber(r.result.Former)
	if err != nil {
		return err
	}
	// They were moved within moments; a bounded tail holds them.
	from := r.result.Leaves - min(r.result.Leaves, 100_000)
	former, _ := audit.FormerLog(r.Dir, n)
	for data, err := range audit.Leaves(former, from, r.result.Leaves) {
		if err != nil {
			return err
		}
		leaf, err := audit.DecodeLeaf(data)
		if err != nil {
			return err
		}
		if id := leaf.ID(); waiting[id] {
			if _, err := tx.Exec("DELETE FROM events_out WHERE id = $1", id[:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// journal begins the journal behind what the database holds, with the event that says so as its first entry, and the log behind it.
func (r *restoring) journal(ctx context.Context) error {
	r.Progress("beginning log " + r.result.Log)
	begin := r.manifest.Journal // the numbers go on, so that nobody reports a hole
	jc := journalConfig(r.Dir)
	if err := journal.CreateAfter(jc, begin, r.manifest.Created); err != nil {
		return err
	}
	j, err := journal.Open(jc)
	if err != nil {
		return err
	}
	err = journal.AppendEvent(ctx, j, audit.Event{
		Type: audit.LogSucceeded, Actor: audit.Actor{ID: "server"}, Target: r.result.Former, Outcome: audit.Success,
		Reason: "restored from a backup", Detail: map[string]string{
			"checkpoint": r.manifest.Checkpoint, "key": r.vkey, "backup": r.manifest.Created.Format(time.RFC3339), "program": r.manifest.Program,
			"journal": fmt.Sprint(r.manifest.Journal), "records_behind": fmt.Sprint(r.manifest.Behind), "generation": hex.EncodeToString(r.generation[:]),
		},
	})
	if err = errors.Join(err, j.Close()); err != nil {
		return err
	}
	k, err := keys.Open(r.Dir)
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(k.LogSigner)
	if err != nil {
		return err
	}
	return translog.Create(translog.Config{Dir: logDir(r.Dir), Origin: signer.Name(), Signer: signer, Begin: begin})
}

// finish makes all of it durable, takes the mark away, and makes an operator's file: the former ones may be gone.
func (r *restoring) finish(ctx context.Context) error {
	r.Progress("flushing to disk")
	dir, err := os.Open(r.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	// One flush of the file system instead of one for each of millions of files.
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("flush of %s: %w", r.Dir, err)
	}
	if err := os.Remove(filepath.Join(r.Dir, restoringFile)); err != nil {
		return err
	}
	if err := durable.SyncDir(r.Dir); err != nil {
		return err
	}
	_, err = NewOperator(ctx, r.Dir, r.Operator, registry.Admin)
	return err
}
