package server

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/sys/unix"

	"wardlink/audit"
	"wardlink/internal/build"
	"wardlink/internal/durable"
	"wardlink/server/ca/acmedb"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/keys"
	"wardlink/server/translog"
)

// succession is what Restored has decided, once it is durable in succeedingFile.
type succession struct {
	RestoredResult
	Number uint64 `json:"number"` // of the log that begins
	Key    string `json:"key"`    // verifier key of the former one; "": nothing is decided
}

// maxSuccession bounds its file.
const maxSuccession = 16 << 10

// readSuccession reads what a run decided that did not come to its end; its Key is "" where none did.
func readSuccession(dir string) (s succession, err error) {
	path := filepath.Join(dir, succeedingFile)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	if info.Size() == 0 {
		return s, nil // killed before it decided
	}
	if info.Size() > maxSuccession {
		return s, fmt.Errorf("%s has %d bytes; at most %d", path, info.Size(), maxSuccession)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(text, &s); err != nil || s.Key == "" {
		return s, fmt.Errorf("%s is not what 'restored' wrote (%v); put the directory back again", path, err)
	}
	s.Dir = dir
	return s, nil
}

// prepare makes the new log beside the former one, with its first leaf and its key, and decides: from its end on the succession is carried out.
func (r *succeeding) prepare(ctx context.Context) error {
	if err := r.step("sign"); err != nil {
		return err
	}
	if err := translog.SignRest(ctx, r.former); err != nil {
		return err
	}
	signed, cp, err := audit.ReadCheckpoint(r.former.Dir, r.vkey)
	if err != nil {
		return err
	}
	last, err := leafAt(r.former.Dir, cp.Size-1)
	if err != nil {
		return err
	}
	r.Progress("making log " + r.plan.Log)
	var generation [16]byte
	rand.Read(generation[:])
	p := &r.plan
	p.Leaves, p.Latest, p.Generation = cp.Size, time.UnixMilli(last.Time()).UTC(), hex.EncodeToString(generation[:])
	ev := audit.Event{
		ID: r.journal.NextID(), Type: audit.LogSucceeded, Time: time.Now().UnixMilli(), Actor: audit.Actor{ID: "server"}, Target: p.Former, Outcome: audit.Success,
		Reason: "database and directory were put back", Detail: map[string]string{
			"checkpoint": string(signed), "key": r.vkey, "program": build.Version, "journal": fmt.Sprint(p.Journal), "former_journal": fmt.Sprint(p.FormerJournal),
			"logged": fmt.Sprint(p.Cursor), "generation": p.Generation, "by": "wardlink-server restored",
		},
	}
	if err := r.make(ev); err != nil {
		return err
	}
	if err := r.step("decide"); err != nil {
		return err
	}
	decided := *p
	decided.Key = r.vkey
	text, err := json.MarshalIndent(decided, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(r.Dir, succeedingFile), append(text, '\n'), 0o600); err != nil {
		return err
	}
	r.plan = decided
	return nil
}

// make builds log and key in succeedingDir, durably, in place of what a former run left there.
func (r *succeeding) make(ev audit.Event) error {
	work := filepath.Join(r.Dir, succeedingDir)
	for _, name := range []string{"log", "log.key", "log.pub"} {
		if err := os.RemoveAll(filepath.Join(work, name)); err != nil {
			return err
		}
	}
	if err := r.step("make"); err != nil {
		return err
	}
	skey, vkey, err := translog.NewKey(r.plan.Log)
	if err != nil {
		return err
	}
	signer, err := note.NewSigner(skey)
	if err != nil {
		return err
	}
	leaf, err := audit.EncodeEvent(ev)
	if err != nil {
		return err
	}
	if err := translog.Create(translog.Config{Dir: filepath.Join(work, "log"), Origin: r.plan.Log, Signer: signer, Log: r.log, Begin: r.end.Begin, Entry: r.end.Entry, First: leaf}); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(work, "log.key"), []byte(skey+"\n"), 0o600); err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(work, "log.pub"), []byte(vkey+"\n"), 0o644); err != nil {
		return err
	}
	dir, err := os.Open(work)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("flush of %s: %w", work, err)
	}
	return nil
}

// carryOut does what the succession says. Each step finds out whether it was done.
func (r *succeeding) carryOut(ctx context.Context) error {
	r.Progress("beginning log " + r.plan.Log)
	if err := r.step("database"); err != nil {
		return err
	}
	generation, err := hex.DecodeString(r.plan.Generation)
	if err != nil || len(generation) != 16 {
		return fmt.Errorf("%s names no generation; put the directory back again", filepath.Join(r.Dir, succeedingFile))
	}
	if err := r.db.Write(ctx, func(tx *sql.Tx) error {
		begun, err := beginGeneration(tx, [16]byte(generation), restoredRow{made: r.plan.Latest, journal: r.plan.Journal, log: r.plan.Number})
		if err != nil || !begun {
			return err
		}
		// Enrolments that were under way are over, and nonces that were used since the backup must not be good again.
		if err := acmedb.Forget(tx); err != nil {
			return err
		}
		return pgjournal.Rewind(tx, ServiceLog, r.plan.Journal)
	}); err != nil {
		return err
	}
	if err := r.swap(); err != nil {
		return err
	}
	if err := r.step("end"); err != nil {
		return err
	}
	if err := unmark(r.Dir); err != nil {
		return err
	}
	r.carried, r.plan.Done = true, true
	return nil
}

// swap puts log and keys in the places of the former ones. The former log's private key is gone with it: nothing signs for that log any more.
func (r *succeeding) swap() error {
	_, n, err := audit.OriginNumber(r.plan.Former)
	if err != nil {
		return err
	}
	former, key := audit.FormerLog(r.Dir, n)
	if err := os.MkdirAll(filepath.Dir(former), 0o700); err != nil {
		return err
	}
	if err := durable.WriteFile(key, []byte(r.plan.Key+"\n"), 0o644); err != nil {
		return err
	}
	work := filepath.Join(r.Dir, succeedingDir)
	for _, m := range []struct{ step, from, to, unless string }{
		{"former", logDir(r.Dir), former, former},
		{"log", filepath.Join(work, "log"), logDir(r.Dir), ""},
		{"key", filepath.Join(work, "log.key"), filepath.Join(r.Dir, keys.LogKeyFile), ""},
		{"public", filepath.Join(work, "log.pub"), filepath.Join(r.Dir, keys.LogPublicFile), ""},
	} {
		if err := r.step(m.step); err != nil {
			return err
		}
		if err := moveOnce(m.from, m.to, m.unless); err != nil {
			return err
		}
	}
	return nil
}

// moveOnce renames from to to, durably, unless that was done: then from is gone, or unless is there.
func moveOnce(from, to, unless string) error {
	if unless != "" {
		if _, err := os.Lstat(unless); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(from, to); err != nil {
		if _, done := os.Lstat(to); errors.Is(err, fs.ErrNotExist) && done == nil {
			return nil
		}
		return err
	}
	return errors.Join(durable.SyncDir(filepath.Dir(to)), durable.SyncDir(filepath.Dir(from)))
}
