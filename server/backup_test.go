package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/backup"
	"wardlink/server/keys"
	"wardlink/server/sqldb"
	"wardlink/server/translog"
)

const backupPassphrase = "correct horse battery staple"

// hospital is a server's directory, and a server on it.
type hospital struct {
	t   *testing.T
	dir string
}

func newHospital(t *testing.T) *hospital {
	h := &hospital{t, filepath.Join(t.TempDir(), "hospital")}
	c := DefaultConfig()
	c.TrustDomain, c.Names = "ward.example", []string{"127.0.0.1"}
	for _, addr := range []*string{&c.Gateways, &c.Hospital, &c.Operators} {
		*addr = freeAddress(t)
	}
	if err := Init(t.Context(), InitOptions{Dir: h.dir, Config: c, Passphrase: backupPassphrase, Operator: "operator"}); err != nil {
		t.Fatal(err)
	}
	return h
}

// run starts a server and gives what stops it in order.
func (h *hospital) run(log *slog.Logger) (stop func()) {
	h.t.Helper()
	srv, err := New(h.dir, log)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			h.t.Error(err)
		}
	}
	h.t.Cleanup(stop)
	return stop
}

func (h *hospital) backup(o BackupOptions) BackupResult {
	h.t.Helper()
	o.Dir = h.dir
	if o.Out == "" {
		o.Out = filepath.Join(h.t.TempDir(), "backup")
	}
	res, err := Backup(h.t.Context(), o)
	if err != nil {
		h.t.Fatal(err)
	}
	return res
}

func (h *hospital) restore(o RestoreOptions) (*hospital, RestoreResult, error) {
	if o.Dir == "" {
		o.Dir = filepath.Join(h.t.TempDir(), "restored")
	}
	if o.Passphrase == "" {
		o.Passphrase = backupPassphrase
	}
	o.Operator = "operator"
	res, err := Restore(h.t.Context(), o)
	return &hospital{h.t, o.Dir}, res, err
}

// moved waits until no event waits in the database.
func (h *hospital) moved() {
	h.t.Helper()
	db, err := sqldb.Look(databaseFile(h.dir))
	if err != nil {
		h.t.Fatal(err)
	}
	defer db.Close()
	for n, deadline := 1, time.Now().Add(20*time.Second); n > 0; {
		if err := db.QueryRow("SELECT COUNT(*) FROM events_out").Scan(&n); err != nil || time.Now().After(deadline) {
			h.t.Fatalf("%d events wait, %v", n, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// logged waits until the log has so many leaves.
func (h *hospital) logged(leaves uint64) {
	h.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(20 * time.Millisecond) {
		if _, size, err := translog.Position(logDir(h.dir)); err != nil || size >= leaves {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("the log does not get to %d leaves", leaves)
		}
	}
}

// verify verifies the log and gives its first leaf's event.
func (h *hospital) verify(log, key string) (audit.Report, audit.Event) {
	h.t.Helper()
	vkey, err := os.ReadFile(filepath.Join(h.dir, key))
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := audit.Verify(filepath.Join(h.dir, log), strings.TrimSpace(string(vkey)))
	if err != nil {
		h.t.Fatal(err)
	}
	for data, err := range audit.Leaves(filepath.Join(h.dir, log), 0, r.Size) {
		if err != nil {
			h.t.Fatal(err)
		}
		leaf, err := audit.DecodeLeaf(data)
		if err != nil || leaf.Event == nil {
			h.t.Fatalf("first leaf: %v, %v", leaf, err)
		}
		return r, *leaf.Event
	}
	h.t.Fatal("the log is empty")
	return r, audit.Event{}
}

func TestBackupOfARunningServerIsRestored(t *testing.T) {
	h := newHospital(t)
	stop := h.run(slog.New(slog.DiscardHandler))
	if _, err := NewOperator(t.Context(), h.dir, "jane-doe", ""); err != nil { // an act, so that database and log have something to agree on
		t.Fatal(err)
	}
	h.moved()
	h.logged(3) // two operators, and the server's start
	out := t.TempDir()
	res := h.backup(BackupOptions{Out: out})
	if res.Files == 0 || res.Manifest.Bytes == 0 || res.ListSHA256 == "" {
		t.Errorf("the result does not say what is in the file: %+v", res)
	}
	if info, err := os.Stat(res.File); err != nil || info.Mode().Perm() != 0o600 || info.Size() != res.Bytes || filepath.Dir(res.File) != out {
		t.Fatalf("%v, %v", info, err)
	}
	if left, err := filepath.Glob(filepath.Join(out, ".*")); err != nil || len(left) > 0 {
		t.Fatalf("left over: %v, %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(h.dir, ".backup", "wardlink.db")); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the copy of the database is still there: %v", err)
	}
	if res.LogBehind || res.Behind != 0 {
		t.Fatalf("%+v; want neither behind the other", res.Manifest)
	}
	stop()

	n, made, err := h.restore(RestoreOptions{From: res.File, Verify: true})
	if err != nil {
		t.Fatal(err)
	}
	former, _ := n.verify("former/log-1", "former/log-1.pub")
	if former.Origin != "ward.example/log/1" || former.Size != made.Leaves || made.Log != "ward.example/log/2" {
		t.Fatalf("%+v, %+v", former, made)
	}
	var told bytes.Buffer
	stop = n.run(slog.New(slog.NewTextHandler(&told, nil)))
	n.moved()
	stop()
	if strings.Contains(told.String(), "recovery file") || strings.Contains(told.String(), "behind the journal") {
		t.Fatalf("a restore has opened the recovery file, and begins where the database is:\n%s", told.String())
	}
	second, first := n.verify("log", "public/log.pub")
	if second.Origin != made.Log || first.Type != audit.LogSucceeded || first.Target != former.Origin || first.Detail["checkpoint"] != res.Checkpoint {
		t.Fatalf("%+v begins with %+v", second, first)
	}
	logs, err := audit.FormerLogs(n.dir)
	if err != nil || len(logs) != 1 || logs[0].Number != 1 {
		t.Fatalf("former logs: %+v, %v", logs, err)
	}
	vkey := func(path string) string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(text))
	}
	if _, err := audit.CheckSuccession(logDir(n.dir), vkey(filepath.Join(n.dir, "public", "log.pub")), logs[0]); err != nil {
		t.Fatal(err)
	}
	// The lost server's own log is a longer one of the same key, and fits too; another server's, and a log that succeeds nothing, do not.
	theirs := audit.Former{Number: 1, Dir: logDir(h.dir), Key: vkey(filepath.Join(h.dir, "public", "log.pub"))}
	if _, err := audit.CheckSuccession(logDir(n.dir), vkey(filepath.Join(n.dir, "public", "log.pub")), theirs); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.CheckSuccession(theirs.Dir, theirs.Key, logs[0]); err == nil || !strings.Contains(err.Error(), "first leaf") {
		t.Fatalf("a log that succeeds nothing: %v", err)
	}
	other := newHospital(t)
	strange := audit.Former{Number: 1, Dir: logDir(other.dir), Key: vkey(filepath.Join(other.dir, "public", "log.pub"))}
	if _, err := audit.CheckSuccession(logDir(n.dir), vkey(filepath.Join(n.dir, "public", "log.pub")), strange); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Fatalf("another server's log: %v", err)
	}
	// The act of before is in the former log once and in the new one not at all.
	for log, want := range map[string]int{"former/log-1": 2, "log": 1} { // the restore makes an operator's file itself
		issued := 0
		for it, err := range audit.List(filepath.Join(n.dir, log), audit.Filter{Type: audit.CertIssued, Limit: 100}) {
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(it.Event.Target, "/operator/") {
				issued++
			}
		}
		if issued != want {
			t.Errorf("%s: %d operators' certificates; want %d", log, issued, want)
		}
	}
}

// TestBackupHoldsNoPrivateKey opens a backup as its restore does and looks for every private key of the server in all of it, and in the file as it
// lies on a disk.
func TestBackupHoldsNoPrivateKey(t *testing.T) {
	h := newHospital(t)
	res := h.backup(BackupOptions{Bare: true})
	k, err := keys.Open(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	seed, err := keys.BackupSeed(k.Records)
	if err != nil {
		t.Fatal(err)
	}
	key, err := backup.NewKey(seed)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(res.File)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := bufio.NewReader(f)
	header, err := backup.ReadHeader(r)
	if err != nil {
		t.Fatal(err)
	}
	open := t.TempDir()
	if _, err := backup.Extract(r, header, key, open, func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	var secrets [][]byte
	note := func(raw []byte) {
		secrets = append(secrets, raw, []byte(base64.StdEncoding.EncodeToString(raw)), []byte(hex.EncodeToString(raw)))
	}
	each := func(dir string, fn func(path string, data []byte)) {
		t.Helper()
		n := 0
		if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			n++
			fn(path, data)
			return err
		}); err != nil || n == 0 {
			t.Fatalf("%s: %d files, %v", dir, n, err)
		}
	}
	each(filepath.Join(h.dir, "keys"), func(path string, data []byte) {
		if b, _ := pem.Decode(data); b != nil {
			note(b.Bytes)
			if len(b.Bytes) > 64 { // the private value itself, in PKCS #8 of P-256 and Ed25519
				note(b.Bytes[36:68])
			}
			return
		}
		text := strings.TrimSpace(string(data)) // the log's key, a note signer's
		note([]byte(text))
		raw, err := base64.StdEncoding.DecodeString(strings.SplitN(text, "+", 5)[4])
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		note(raw[1:])
	})
	note(seed)
	note(k.Pseudonym)
	if len(secrets) < 3*9 {
		t.Fatalf("only %d secrets were found to look for", len(secrets))
	}
	sealed, err := os.ReadFile(res.File)
	if err != nil {
		t.Fatal(err)
	}
	look := func(path string, data []byte) {
		for _, s := range secrets {
			if bytes.Contains(data, s) {
				t.Errorf("%s holds a private key", path)
			}
		}
	}
	each(open, look)
	look(res.File, sealed)
	if bytes.Contains(sealed, []byte("SQLite format")) || bytes.Contains(sealed, []byte("BEGIN CERTIFICATE")) {
		t.Error("the backup is not encrypted")
	}
	if _, err := os.Stat(filepath.Join(open, "wardlink.db")); err != nil {
		t.Error(err)
	}
}

func TestRestoreFailsClosed(t *testing.T) {
	h := newHospital(t)
	whole := h.backup(BackupOptions{})
	bare := h.backup(BackupOptions{Bare: true})
	other := newHospital(t)
	data, err := os.ReadFile(whole.File)
	if err != nil {
		t.Fatal(err)
	}
	changed := func(edit func([]byte) []byte) string {
		path := filepath.Join(t.TempDir(), "changed")
		if err := os.WriteFile(path, edit(slices.Clone(data)), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    RestoreOptions
		want string
	}{
		"wrong passphrase":        {RestoreOptions{From: whole.File, Passphrase: "not the passphrase at all"}, "passphrase is wrong"},
		"no recovery file":        {RestoreOptions{From: bare.File}, "--recovery-file"},
		"another's recovery":      {RestoreOptions{From: bare.File, Recovery: filepath.Join(other.dir, "recovery.json")}, "does not open"},
		"a flipped bit":           {RestoreOptions{From: changed(func(b []byte) []byte { b[len(b)-100] ^= 1; return b })}, "changed"},
		"a flipped header":        {RestoreOptions{From: changed(func(b []byte) []byte { b[30] ^= 1; return b })}, ""},
		"cut off":                 {RestoreOptions{From: changed(func(b []byte) []byte { return b[:len(b)-1] })}, "cut off"},
		"cut off at a chunk":      {RestoreOptions{From: changed(func(b []byte) []byte { return b[:len(b)-len(b)%65564] })}, ""},
		"more behind it":          {RestoreOptions{From: changed(func(b []byte) []byte { return append(b, 0) })}, ""},
		"no backup":               {RestoreOptions{From: filepath.Join(h.dir, ConfigFile)}, "not a backup"},
		"a directory in use":      {RestoreOptions{From: whole.File, Dir: full}, "not empty"},
		"a log that began before": {RestoreOptions{From: whole.File, Log: 1}, "greater number"},
	} {
		t.Run(name, func(t *testing.T) {
			n, _, err := h.restore(c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v; want %q", err, c.want)
			}
			if c.o.Dir != "" {
				return
			}
			if _, err := New(n.dir, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "did not come to its end") {
				t.Fatalf("a server on what was left: %v", err)
			}
			if _, _, err := h.restore(RestoreOptions{From: whole.File, Dir: n.dir}); err == nil || !strings.Contains(err.Error(), "not empty") {
				t.Fatalf("a restore into what was left: %v", err)
			}
		})
	}
	if _, _, err := h.restore(RestoreOptions{From: bare.File, Recovery: filepath.Join(h.dir, "recovery.json")}); err != nil {
		t.Fatalf("a recovery file that was kept apart: %v", err)
	}
}

func TestBackupOverwritesNothing(t *testing.T) {
	h := newHospital(t)
	stamp := filepath.Join(t.TempDir(), "stamp")
	config, err := os.ReadFile(filepath.Join(h.dir, ConfigFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, ConfigFile), append(config, "\nalerts: {backup_stamp: "+stamp+"}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	res := h.backup(BackupOptions{})
	if text, err := os.ReadFile(stamp); err != nil || !strings.Contains(string(text), res.SHA256) {
		t.Fatalf("stamp: %q, %v", text, err)
	}
	if _, err := Backup(t.Context(), BackupOptions{Dir: h.dir, Out: res.File}); err == nil || !strings.Contains(err.Error(), "not overwritten") {
		t.Fatalf("%v; want a refusal", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out := t.TempDir()
	if _, err := Backup(ctx, BackupOptions{Dir: h.dir, Out: out}); err == nil {
		t.Fatal("an interrupted backup says that it is done")
	}
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Fatalf("an interrupted backup left %v, %v", left, err)
	}
}

func TestRecoveryIsConfirmed(t *testing.T) {
	h := newHospital(t)
	said := func() bool {
		var told bytes.Buffer
		h.run(slog.New(slog.NewTextHandler(&told, nil)))()
		return strings.Contains(told.String(), "nobody has proven that the recovery file opens")
	}
	if !said() {
		t.Error("a new server does not ask for it")
	}
	if err := ConfirmRecovery(t.Context(), h.dir, "not the passphrase at all"); err == nil {
		t.Fatal("a wrong passphrase confirms")
	}
	if !said() {
		t.Error("a wrong passphrase silenced it")
	}
	if err := ConfirmRecovery(t.Context(), h.dir, backupPassphrase); err != nil {
		t.Fatal(err)
	}
	if said() {
		t.Error("it is asked for once it was proven")
	}
	path := filepath.Join(h.dir, keys.RecoveryFile)
	if err := os.Rename(path, path+".apart"); err != nil {
		t.Fatal(err)
	}
	if said() {
		t.Error("it is asked for again though the file is kept apart")
	}
	if err := os.WriteFile(path, []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if !said() {
		t.Error("another recovery file counts as proven")
	}
}

// A server on PostgreSQL has no file to copy; what is said names who makes its backups.
func TestBackupLeavesPostgresToItsOwnTools(t *testing.T) {
	h := newHospital(t)
	f, err := os.OpenFile(filepath.Join(h.dir, ConfigFile), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("\ndatabase: postgres://wardlink@db.hospital.example/wardlink\n"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if _, err := Backup(t.Context(), BackupOptions{Dir: h.dir, Out: out}); !errors.Is(err, sqldb.ErrNoSnapshot) {
		t.Error(err)
	}
	if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it left a file")
	}
}
