package keys

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/secret"
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
	if err := CheckRecovery(dir, pass+"x"); err == nil {
		t.Error("a wrong passphrase opens the recovery file")
	}
	if err := Create(dir, "ward.example", pass, time.Now()); err == nil {
		t.Error("Create overwrote keys")
	}
	// The root key is in the recovery file alone.
	data, err := os.ReadFile(filepath.Join(dir, recoveryFileName))
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
	data, err := os.ReadFile(filepath.Join(b, recoveryFileName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a, recoveryFileName), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := CheckRecovery(a, pass); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("the recovery file of another server passes: %v", err)
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
	if _, err := WrapRecovery("ward.example", "short", Recovered{}); err == nil {
		t.Error("a short passphrase was accepted")
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
