package enroll

import (
	"crypto"
	"errors"
	"testing"

	"wardlink/enroll/tpm"
	"wardlink/internal/swtpmtest"
)

// TestKeysOfTwoBoards: a disk that was with two boards gives each TPM its own keys, and a third none.
func TestKeysOfTwoBoards(t *testing.T) {
	dir := t.TempDir()
	open := func() (*tpm.TPM, [32]byte) {
		t.Helper()
		d, err := tpm.Open(t.Context(), swtpmtest.Manufacture(t).Start(t).Path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		ek, err := d.EK(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return d, ek.Hash
	}
	first, _ := open()
	if _, err := DeviceKey(t.Context(), first, dir); !errors.Is(err, tpm.ErrMissing) {
		t.Errorf("an empty disk: %v", err)
	}
	made, err := tpm.CreateKeys(t.Context(), first, dir)
	if err != nil {
		t.Fatal(err)
	}
	second, ek := open()
	if _, err := DeviceKey(t.Context(), second, dir); !errors.Is(err, tpm.ErrMissing) {
		t.Errorf("the second board before it has keys: %v", err)
	}
	own, err := tpm.CreateKeys(t.Context(), second, boardDir(dir, ek))
	if err != nil {
		t.Fatal(err)
	}
	for board, want := range map[*tpm.TPM]*tpm.Keys{first: made, second: own} {
		key, err := DeviceKey(t.Context(), board, dir)
		if err != nil {
			t.Fatal(err)
		}
		if public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(want.Device().Public()) {
			t.Error("another board's key")
		}
	}
}
