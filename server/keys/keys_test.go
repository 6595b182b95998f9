package keys

import (
	"bytes"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/secret"
	"wardlink/telemetry/seal"
)

func TestCreateOpenAndRecover(t *testing.T) {
	dir := t.TempDir()
	pass := NewPassphrase()
	if err := Create(dir, "ward.example", pass, time.Now()); err != nil {
		t.Fatal(err)
	}
	k, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Issuing.CheckSignatureFrom(k.Root); err != nil {
		t.Errorf("issuing CA: %v", err)
	}
	if err := k.Attestation.CheckSignatureFrom(k.Root); err == nil {
		t.Error("the attestation CA hangs below the root; an AK certificate could pass for an identity")
	}
	if err := CheckRecovery(dir, pass); err != nil {
		t.Errorf("recovery check: %v", err)
	}
	if err := CheckRecovery(dir, " "+strings.ToUpper(strings.ReplaceAll(pass, "-", " "))+"\n"); err != nil {
		t.Errorf("the passphrase as somebody types it from paper: %v", err)
	}
	if err := k.Belong("ward.example"); err != nil {
		t.Error(err)
	}
	if err := k.Belong("other.example"); err == nil || !strings.Contains(err.Error(), "cannot be changed") {
		t.Errorf("keys of another trust domain: %v", err)
	}
	if err := CheckRecovery(dir, pass+"x"); err == nil {
		t.Error("a wrong passphrase opens the recovery file")
	}
	if err := Create(dir, "ward.example", pass, time.Now()); err == nil {
		t.Error("Create overwrote keys")
	}
	// The root key is in the recovery file alone.
	data, err := os.ReadFile(filepath.Join(dir, RecoveryFile))
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenRecovery(data, pass)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Root) < 100 || !bytes.Equal(r.Records, k.Records.Bytes()) {
		t.Error("the recovery file does not hold the root and records keys")
	}
	if der, err := x509.MarshalPKCS8PrivateKey(k.Config); err != nil || !bytes.Equal(r.Config, der) {
		t.Errorf("the recovery file does not hold the config key, which every kit trusts: %v", err)
	}
	err = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, r.Root) || bytes.Contains(content, r.Root[36:68]) {
			t.Errorf("%s holds the root key", path)
		}
		info, ierr := d.Info()
		if ierr == nil && strings.Contains(path, "/keys/") && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v; expected 0600", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCanaryOfAnotherServer(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	const pass = "correct horse battery staple"
	for _, dir := range []string{a, b} {
		if err := Create(dir, "ward.example", pass, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(filepath.Join(b, RecoveryFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a, RecoveryFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CheckRecovery(a, pass); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("the recovery file of another server passes: %v", err)
	}
}

// TestRecoveredRecordsKeyFindsEveryPatient: a server that lost all but its database and recovery file must give its patients the ids
// that the database holds, so the pseudonym key has to follow from the recovered records key alone.
func TestRecoveredRecordsKeyFindsEveryPatient(t *testing.T) {
	dir := t.TempDir()
	const pass = "correct horse battery staple"
	if err := Create(dir, "ward.example", pass, time.Now()); err != nil {
		t.Fatal(err)
	}
	before, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(dir, RecoveryFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "keys")); err != nil {
		t.Fatal(err)
	}
	recovered, err := OpenRecovery(data, pass)
	if err != nil {
		t.Fatal(err)
	}
	records, err := seal.ParsePrivateKey(recovered.Records)
	if err != nil {
		t.Fatal(err)
	}
	after, err := pseudonymKey(records)
	if err != nil || !bytes.Equal(after, before.Pseudonym) || len(after) != 32 {
		t.Errorf("another pseudonym key after recovery: %v", err)
	}
	if bytes.Equal(after, recovered.Records) {
		t.Error("the pseudonym key is the records key itself")
	}
	// The check needs nothing of keys/, so it proves what the recovery file alone is worth.
	if err := CheckRecovery(dir, pass); err != nil {
		t.Errorf("recovery check without keys/: %v", err)
	}
}

// TestPseudonymKeyIsOfTheFormat: the derivation is part of the stored format; a change of label or hash would rename every patient.
func TestPseudonymKeyIsOfTheFormat(t *testing.T) {
	key, err := seal.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	got, err := pseudonymKey(key)
	if err != nil {
		t.Fatal(err)
	}
	// RFC 5869 by hand: extract with an absent salt (32 zero bytes), expand one block.
	extract := hmac.New(sha256.New, make([]byte, 32))
	extract.Write(key.Bytes())
	expand := hmac.New(sha256.New, extract.Sum(nil))
	expand.Write([]byte("wardlink/pseudonym/1\x01"))
	if !bytes.Equal(got, expand.Sum(nil)) {
		t.Errorf("%x", []byte(got))
	}
}

// TestRecoveryOfAForeignConfigKey: the check must notice a recovery file whose config key no kit of this server trusts.
func TestRecoveryOfAForeignConfigKey(t *testing.T) {
	dir := t.TempDir()
	const pass = "correct horse battery staple"
	if err := Create(dir, "ward.example", pass, time.Now()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, RecoveryFile)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := OpenRecovery(data, pass)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := x509.MarshalPKCS8PrivateKey(other)
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string][]byte{"another key": foreign, "no key": nil} {
		keys.Config = config
		data, err := WrapRecovery("ward.example", pass, keys)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := CheckRecovery(dir, pass); err == nil || !strings.Contains(err.Error(), "config key") {
			t.Errorf("%s passes the check: %v", name, err)
		}
	}
}

func TestRecoveryFileCannotBeWeakened(t *testing.T) {
	const pass = "correct horse battery staple"
	data, err := WrapRecovery("ward.example", pass, Recovered{Root: []byte("root"), Records: []byte("records")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRecovery(data, pass); err != nil {
		t.Fatal(err)
	}
	change := func(f func(m map[string]any)) []byte {
		var m map[string]any
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		f(m)
		out, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, bad := range map[string][]byte{
		"fewer rounds":  change(func(m map[string]any) { m["rounds"] = 1000 }),
		"endless":       change(func(m map[string]any) { m["rounds"] = 1 << 40 }),
		"other domain":  change(func(m map[string]any) { m["trust_domain"] = "other.example" }),
		"other KDF":     change(func(m map[string]any) { m["kdf"] = "none" }),
		"unknown field": change(func(m map[string]any) { m["more"] = 1 }),
		"flipped":       bytes.Replace(data, []byte(`"sealed": "`), []byte(`"sealed": "A`), 1),
		"empty":         nil,
	} {
		if _, err := OpenRecovery(bad, pass); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	for _, weak := range []string{"short", strings.Repeat(" ", 16), "   fourteen-chars \n\t "} {
		if _, err := WrapRecovery("ward.example", weak, Recovered{}); err == nil {
			t.Errorf("the passphrase %q was accepted", weak)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	r := Recovered{Root: secret.Bytes("very secret"), Records: secret.Bytes("very secret")}
	out, err := json.Marshal(r)
	if err != nil || bytes.Contains(out, []byte("very")) {
		t.Errorf("JSON shows a key: %s %v", out, err)
	}
}

func FuzzOpenRecovery(f *testing.F) {
	f.Add([]byte(`{"wardlink_recovery":1,"kdf":"PBKDF2-HMAC-SHA256","rounds":1,"cipher":"AES-256-GCM"}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if bytes.Contains(data, []byte("00000")) {
			return // a valid number of rounds takes a second; the bounds are tested above
		}
		if _, err := OpenRecovery(data, "correct horse battery staple"); err == nil {
			t.Error("opened bytes that were never sealed")
		}
	})
}
