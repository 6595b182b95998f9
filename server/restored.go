package server

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/audit"
	"wardlink/internal/durable"
	"wardlink/server/journal"
	"wardlink/server/keys"
	"wardlink/server/sqldb"
	"wardlink/server/translog"
)

// RestoredOptions are what Restored is told.
type RestoredOptions struct {
	Dir string
	// Log is the number of the log that begins; 0: the next one. A greater one is needed where that was begun already, behind a former restore of the
	// same backup.
	Log uint64
	// Apart accepts a log and a database that are of two moments; RestoredResult says what that costs.
	Apart bool
	// DryRun looks and says what would be done. It changes neither log nor data, and no schema.
	DryRun   bool
	Progress func(stage string) // nil: nobody looks

	step     func(name string) error // tests end it here, as a kill would
	patience time.Duration           // 0: placeTime
}

// RestoredResult is what was done, or would be.
type RestoredResult struct {
	Dir    string    `json:"dir"`
	Former string    `json:"former_log"`
	Leaves uint64    `json:"former_leaves"` // of the former log
	Latest time.Time `json:"former_latest"` // its last act
	Log    string    `json:"log"`
	// Journal is where the new log begins: journal entries up to here are leaves of the former one. FormerJournal is how far that one says it went, and
	// Cursor how far the database says so. All three are the same where both halves are of one moment.
	Journal       uint64 `json:"journal"`
	FormerJournal uint64 `json:"former_journal"`
	Cursor        uint64 `json:"logged"`
	Apart         string `json:"apart,omitempty"` // why log and database are not of one moment
	Generation    string `json:"generation,omitempty"`
	Done          bool   `json:"done"`   // false: a dry run
	Before        bool   `json:"before"` // a former run had done it all, and nothing was logged since
}

// Again says how many journal entries become leaves although the former log, before it was lost, had them.
func (r RestoredResult) Again() uint64 { return max(r.Cursor, r.Journal) - r.Journal }

// Ahead says whether the former log holds acts that the database does not know of.
func (r RestoredResult) Ahead() bool { return r.FormerJournal > r.Journal }

const (
	// succeedingFile is in a directory from Restored's first step to its last. Nothing runs on a directory that has it. Once it holds a succession what
	// that says is going to be done, whoever is killed.
	succeedingFile = "SUCCEEDING"
	// succeedingDir holds Restored's lock, and the new log until it takes its place.
	succeedingDir = ".restored"
	// placeTime is how long a service that was just stopped may take to be gone from the database.
	placeTime = 10 * time.Second
)

// Restored ends the log of a server whose directory and PostgreSQL were put back by other tools than ours, begins the next one, and has gateways
// asked for what the database lacks. Restore does as much for a server on files. Nothing of the server runs meanwhile: the database says who is connected, the
// places of log and records are taken, and the directory bears a mark.
//
// The former log gets no further leaf: the lost server may have written others behind the same ones, and signed for them; a log that went on
// here would be a second one under its name. What its key still signs are leaves that it had integrated. The new log begins with the leaf
// log.succeeded, which names the former one's last checkpoint and key, and goes on with what the journal holds behind it.
//
// Crash argument. Until the succession is durable in succeedingFile, nothing is changed but for what is made beside (succeedingDir) and a checkpoint
// over leaves that are there: after a kill the next run begins anew. From then on each step can be repeated, and the next run repeats all:
// a row of the database under a generation that is in the succession, and renames that look whether they were done. The mark goes last.
func Restored(ctx context.Context, o RestoredOptions) (RestoredResult, error) {
	r := &succeeding{RestoredOptions: o, log: slog.New(slog.DiscardHandler)}
	if r.Progress == nil {
		r.Progress = func(string) {}
	}
	if r.step == nil {
		r.step = func(string) error { return nil }
	}
	if r.patience == 0 {
		r.patience = placeTime
	}
	err := r.run(ctx)
	err = errors.Join(err, r.closers.close())
	if err != nil {
		err = fmt.Errorf("restored: %w", err)
		if r.decided() {
			err = fmt.Errorf("%w\nlog %s is half begun and nothing runs on %s; run the command again, it goes on where this one ended", err, r.plan.Log, o.Dir)
		}
	}
	return r.plan.RestoredResult, err
}

// succeeding is one run of Restored.
type succeeding struct {
	RestoredOptions
	cfg     Config
	url     string // of the database, password included
	log     *slog.Logger
	journal journal.Store
	db      *sqldb.DB
	former  translog.Config
	vkey    string // of the former log
	end     translog.End
	plan    succession
	carried bool // out, to its end
	closers closers
}

// decided says whether there is something to go on with: a kill, or an error, leaves it to the next run.
func (r *succeeding) decided() bool { return r.plan.Key != "" && !r.carried }

// run does all of it, in order.
func (r *succeeding) run(ctx context.Context) (err error) {
	if err := r.belongs(); err != nil {
		return err
	}
	if r.DryRun {
		if r.plan, err = readSuccession(r.Dir); err != nil || r.plan.Key != "" {
			r.carried, r.plan.Done = true, false
			return err
		}
		if err := r.connect(ctx); err != nil {
			return err
		}
		return r.look()
	}
	if err := os.MkdirAll(filepath.Join(r.Dir, succeedingDir), 0o700); err != nil {
		return err
	}
	lock, err := durable.Lock(filepath.Join(r.Dir, succeedingDir, "lock"), syscall.LOCK_EX)
	if errors.Is(err, durable.ErrLocked) {
		return fmt.Errorf("another one of %s is under way", r.Dir)
	}
	if err != nil {
		return err
	}
	r.closers = append(r.closers, lock.Close)
	if r.plan, err = readSuccession(r.Dir); err != nil {
		return err
	}
	if r.decided() && r.Log != 0 && r.Log != r.plan.Number {
		return fmt.Errorf("a run that did not come to its end has begun log %s; run it again without --log, or with --log %d", r.plan.Log, r.plan.Number)
	}
	if !r.decided() {
		// First the mark, then the look who is connected; a server that starts looks the other way round. So one of the two sees the other.
		if err := durable.WriteFile(filepath.Join(r.Dir, succeedingFile), nil, 0o600); err != nil {
			return err
		}
		defer func() {
			if r.plan.Key == "" { // nothing came of it
				err = errors.Join(err, unmark(r.Dir))
			}
		}()
	}
	if err := r.connect(ctx); err != nil {
		return err
	}
	return r.placed(ctx, []string{ServiceRecords, ServiceLog}, func(ctx context.Context) error {
		if !r.decided() {
			if err := r.look(); err != nil || r.plan.Before {
				return err
			}
			if err := r.prepare(ctx); err != nil {
				return err
			}
		}
		return r.carryOut(ctx)
	})
}

// unmark takes the mark of a run away that changed nothing.
func unmark(dir string) error {
	if err := os.Remove(filepath.Join(dir, succeedingFile)); err != nil {
		return err
	}
	return durable.SyncDir(dir)
}

// belongs refuses a directory that this is not for.
func (r *succeeding) belongs() (err error) {
	if err := unmarked(r.Dir, restoringFile); err != nil {
		return err
	}
	if r.cfg, err = loadConfig(r.Dir); err != nil {
		return err
	}
	if r.cfg.Services.Node() || r.cfg.Services.enrols() {
		return fmt.Errorf("%s is the directory of a node, which has no log; name the server's", r.Dir)
	}
	if r.cfg.Database == "" {
		return fmt.Errorf("%s keeps its stores in files, of which 'wardlink-server backup' makes backups; 'wardlink-server restore' brings one back, and begins the next log by itself", r.Dir)
	}
	r.url, err = r.cfg.database(r.Dir)
	return err
}

// connect opens the database and its journal once no other process of this server is connected.
func (r *succeeding) connect(ctx context.Context) (err error) {
	r.Progress("looking who is connected to the database")
	if err := aloneIn(ctx, r.url, r.patience); err != nil {
		return err
	}
	if r.DryRun {
		r.db, err = sqldb.OpenBeside(r.url, r.cfg.migrations()...)
	} else {
		r.db, err = sqldb.OpenConfig(sqldb.Config{Path: r.url, Migrations: r.cfg.migrations(), Log: r.log, Upgraded: func(tx *sql.Tx, u sqldb.Upgrade) error {
			return addUpgraded(tx, u, commandID(time.Now()))
		}})
	}
	if err != nil {
		return err
	}
	r.closers = append(r.closers, r.db.Close)
	if r.journal, err = openSharedJournal(r.Dir, r.cfg, r.log, ServiceLog, ServiceRecords); err != nil {
		return err
	}
	r.closers = append(r.closers, r.journal.Close)
	return nil
}

// aloneIn fails unless this process is the only one of wardlink's that is connected to the database at url, or becomes it within patience. The caller has
// no connection yet.
func aloneIn(ctx context.Context, url string, patience time.Duration) error {
	c, err := sqldb.NativeConfig(url, nil)
	if err != nil {
		return err
	}
	conn, err := sqldb.ConnectNative(ctx, c)
	if err != nil {
		return sqldb.Explain(url, err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	for end := time.Now().Add(patience); ; pause(ctx, 200*time.Millisecond) {
		var who string
		// Of other logins' connections PostgreSQL shows name and login, and no address.
		if err := conn.QueryRow(ctx, `SELECT coalesce(string_agg(DISTINCT usename || coalesce(' from ' || host(client_addr), ''), ', '), '') FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'wardlink%'`).Scan(&who); err != nil {
			return sqldb.Explain(url, err)
		}
		if who == "" {
			return nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return fmt.Errorf("processes of this server are connected to its database (%s); stop all of them and all nodes, and run this again", who)
		}
	}
}

// placed runs fn while this process has the places of services of which a server has one each, the last one's as the fence of its writes.
func (r *succeeding) placed(ctx context.Context, services []string, fn func(context.Context) error) error {
	if len(services) == 0 {
		return fn(ctx)
	}
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(r.patience, cancel)
	err := r.db.Singleton(waiting, services[0], func(ctx context.Context, _ sqldb.Place) error {
		if !late.Stop() {
			return context.Canceled
		}
		return r.placed(ctx, services[1:], fn)
	})
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		return fmt.Errorf("the service %s runs in another process; stop it, and run this again", services[0])
	}
	return err
}

// look finds where log and journal end, and fills in the plan but for what prepare makes.
func (r *succeeding) look() (err error) {
	r.Progress("comparing log and journal")
	if err := r.open(); err != nil {
		return err
	}
	domain, n, err := audit.OriginNumber(r.former.Origin)
	if err != nil {
		return err
	}
	end, err := translog.FindEnd(r.former)
	if err != nil {
		return err
	}
	r.end = end
	_, cp, err := audit.ReadCheckpoint(logDir(r.Dir), r.vkey)
	if err != nil {
		return err
	}
	if cp.Size == 0 {
		return fmt.Errorf("log %s is empty: no server ever ran on %s, and nothing was lost", cp.Origin, r.Dir)
	}
	last, err := leafAt(logDir(r.Dir), cp.Size-1)
	if err != nil {
		return err
	}
	p := &r.plan.RestoredResult
	*p = RestoredResult{Dir: r.Dir, Former: cp.Origin, Leaves: cp.Size, Latest: time.UnixMilli(last.Time()).UTC(), Journal: end.Begin, FormerJournal: end.Logged, Cursor: end.Cursor}
	if end.Apart != nil {
		p.Apart = end.Apart.Error()
	}
	if r.Log == 0 && cp.Size == 1 && last.Event != nil && last.Event.Type == audit.LogSucceeded && end.Apart == nil {
		p.Former, p.Log, p.Generation, p.Before = last.Event.Target, cp.Origin, last.Event.Detail["generation"], true
		return nil
	}
	if r.plan.Number = r.Log; r.Log == 0 {
		r.plan.Number = n + 1
	}
	p.Log = audit.Origin(domain, r.plan.Number)
	if r.plan.Number <= n {
		return fmt.Errorf("the log is number %d; the new one needs a greater number than %d", n, r.plan.Number)
	}
	if end.Apart != nil && !r.Apart && !r.DryRun {
		return fmt.Errorf("%w\nPut back halves of one moment. Where they are lost, --apart goes on with these; 'restored --dry-run' says what that means", end.Apart)
	}
	return r.movable(n)
}

// open reads the keys of the log that ends.
func (r *succeeding) open() error {
	k, err := keys.OpenOf(r.Dir, ServiceLog)
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(k.LogSigner)
	if err != nil {
		return fmt.Errorf("log key: %w", err)
	}
	r.vkey = k.LogVerifier
	r.former = translog.Config{Dir: logDir(r.Dir), Origin: signer.Name(), Signer: signer, Journal: r.journal, Log: r.log}
	return nil
}

// movable refuses a log that cannot be moved by a rename within the server's directory.
func (r *succeeding) movable(n uint64) error {
	former, key := audit.FormerLog(r.Dir, n)
	for _, path := range []string{former, key} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there already (%w): a log of that number has ended before. Put the directory back whole, %s included", path, errors.Join(err, fs.ErrExist), audit.FormerDir)
		}
	}
	var above, log syscall.Stat_t
	if err := errors.Join(syscall.Lstat(r.Dir+"/.", &above), syscall.Lstat(logDir(r.Dir), &log)); err != nil {
		return fmt.Errorf("log %s: %w", logDir(r.Dir), err)
	}
	if log.Mode&syscall.S_IFMT != syscall.S_IFDIR || log.Dev != above.Dev {
		return fmt.Errorf("%s is a link or a file system of its own, and cannot become %s; have the whole directory there instead, as with a shared one", logDir(r.Dir), former)
	}
	return nil
}

// leafAt reads one leaf of a log.
func leafAt(dir string, index uint64) (leaf audit.Leaf, err error) {
	for data, err := range audit.Leaves(dir, index, index+1) {
		if err != nil {
			return leaf, err
		}
		return audit.DecodeLeaf(data)
	}
	return leaf, fmt.Errorf("log %s: it has no leaf %d", dir, index)
}
