package tpm

import (
	"crypto"
	"crypto/sha256"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"wardlink/internal/swtpmtest"
)

// Somebody guesses the password of a key of theirs until the TPM locks itself: it shows, and our own keys go on signing.
func TestLockout(t *testing.T) {
	d := open(t, swtpmtest.Start(t).Path)
	keys, err := CreateKeys(t.Context(), d, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	before, err := d.Lockout(t.Context())
	if err != nil || before.Locked || before.Failures != 0 || before.Most == 0 {
		t.Fatalf("%+v, %v", before, err)
	}
	guarded := deviceTemplate()
	guarded.ObjectAttributes.NoDA = false
	digest := sha256.Sum256([]byte("x"))
	if err := d.do(t.Context(), "guess", func(c *conn) error {
		made, err := tpm2.CreatePrimary{
			PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(guarded),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")}}},
		}.Execute(c)
		if err != nil {
			return err
		}
		defer c.flush(made.ObjectHandle)
		for range before.Most + 1 { // the first one only makes the TPM note on its disk that somebody tries
			_, err := tpm2.Sign{
				KeyHandle: tpm2.AuthHandle{Handle: made.ObjectHandle, Name: made.Name, Auth: tpm2.PasswordAuth([]byte("wrong"))},
				Digest:    tpm2.TPM2BDigest{Buffer: digest[:]}, InScheme: tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
				Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
			}.Execute(c)
			if err == nil {
				t.Error("a wrong password signs")
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if after, err := d.Lockout(t.Context()); err != nil || !after.Locked || after.Failures != before.Most {
		t.Errorf("%+v, %v", after, err)
	}
	if _, err := keys.Device().Sign(nil, digest[:], crypto.SHA256); err != nil {
		t.Errorf("a TPM that is locked out: %v", err)
	}
}
