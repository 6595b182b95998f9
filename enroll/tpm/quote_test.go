package tpm

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wardlink/enroll/verify"
	"wardlink/enroll/verify/eventlog"
	"wardlink/internal/swtpm"
	"wardlink/internal/swtpmtest"
)

// What the TPM quotes is what the hospital's half accepts, and what was extended shows in it.
func TestQuote(t *testing.T) {
	sw := swtpmtest.Start(t)
	d := open(t, sw.Path)
	keys, err := CreateKeys(t.Context(), d, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ek, err := d.EK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ak := keys.AK()
	v, err := verify.Attestation(&verify.Request{EK: ek.Public, AttestParams: verify.Params{Public: ak.Public, CreateData: ak.CreateData,
		CreateAttestation: ak.CreateAttestation, CreateSignature: ak.CreateSignature}}, verify.Trust{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	quote := func(secret string) *verify.Measured {
		t.Helper()
		q, err := keys.Quote(t.Context(), verify.Qualifying([]byte(secret)))
		if err != nil {
			t.Fatal(err)
		}
		m, err := verify.Quote(&verify.Boot{Quote: q.Attest, Signature: q.Signature, PCRs: q.PCRs}, v.AKPublic.(*rsa.PublicKey), []byte(secret))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	before := quote("one challenge")
	if before.Selected != verify.QuotedPCRs {
		t.Errorf("PCRs %#x are quoted", before.Selected)
	}
	loader := sha256.Sum256([]byte("a boot loader"))
	sw.Extend(4, loader)
	log := eventlog.Append(eventlog.Header(), 4, eventlog.BootApplication, loader, eventlog.Image(`\EFI\boot.efi`))
	after := quote("another challenge")
	for pcr := range before.Values {
		if same := before.Values[pcr] == after.Values[pcr]; same == (pcr == 4) {
			t.Errorf("PCR %d is unchanged: %v", pcr, same)
		}
	}
	parsed, err := eventlog.Parse(log)
	if err != nil {
		t.Fatal(err)
	}
	if pcr, found := parsed.Unaccounted(after.Selected, after.Values); found {
		t.Errorf("the log does not account for PCR %d of a real TPM", pcr)
	}
	if pcr, found := parsed.Unaccounted(before.Selected, before.Values); !found || pcr != 4 {
		t.Errorf("a log with one event too many: PCR %d, %v", pcr, found)
	}
	if n := loaded(t, d); n != 0 {
		t.Fatalf("%d slots are left occupied", n)
	}
}

// A TPM without the bank gives no values, and that is told from a TPM that fails.
func TestNoBank(t *testing.T) {
	sw := swtpmtest.Start(t)
	if err := swtpm.WithoutSHA256(sw.Socket); err != nil {
		t.Fatal(err)
	}
	sw.Restart()
	d := open(t, sw.Path)
	if err := d.do(t.Context(), "read the PCRs", func(c *conn) error { _, err := c.pcrs(verify.QuotedPCRs); return err }); !errors.Is(err, ErrNoBank) {
		t.Errorf("%v; expected %v", err, ErrNoBank)
	}
}

func TestReadEventLog(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "binary_bios_measurements")
	if data, err := ReadEventLog(path); data != nil || err != nil {
		t.Errorf("a machine without a log: %d bytes, %v", len(data), err)
	}
	for n, whole := range map[int]bool{0: true, verify.MaxEventLog: true, verify.MaxEventLog + 1: false} {
		if err := os.WriteFile(path, bytes.Repeat([]byte{7}, n), 0o600); err != nil {
			t.Fatal(err)
		}
		data, err := ReadEventLog(path)
		if (err == nil) != whole || whole && len(data) != n || !whole && data != nil {
			t.Errorf("a log of %d bytes: %d bytes, %v", n, len(data), err)
		}
	}
	if _, err := ReadEventLog(dir); err == nil {
		t.Error("a directory for a log: no error")
	}
}
