package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"wardlink/agent/uplink"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

func newDeviceKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestSealingsAreSignedOnceAndAgainForAnotherKey: the file keeps what was signed; a replaced TPM signs anew; a lost file costs nothing.
func TestSealingsAreSignedOnceAndAgainForAnotherKey(t *testing.T) {
	period, err := seal.NewPeriod(newKey(t).Public(), telemetry.Epoch{1}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	record := func(id [16]byte) ([]byte, bool) { return period.Record(), id == period.ID() }
	path := filepath.Join(t.TempDir(), "sealings")
	open := func() *sealings {
		t.Helper()
		s, err := openSealings(path, record)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ctx := context.Background()
	s := open()
	if _, err := s.get(ctx, period.ID()); err == nil || errors.Is(err, uplink.ErrNoSealing) {
		t.Errorf("before enrolment: %v; expected an error that means later", err)
	}
	first := newDeviceKey(t)
	if err := s.use(first); err != nil {
		t.Fatal(err)
	}
	signed, err := s.get(ctx, period.ID())
	if err != nil {
		t.Fatal(err)
	}
	verify := func(signed []byte, key *ecdsa.PrivateKey) bool {
		t.Helper()
		parsed, err := seal.ParseSigned(signed)
		if err != nil {
			t.Fatal(err)
		}
		_, err = parsed.Verify(&key.PublicKey)
		return err == nil
	}
	if !verify(signed, first) {
		t.Error("not signed by the device key")
	}
	s = open()
	if err := s.use(first); err != nil {
		t.Fatal(err)
	}
	if again, err := s.get(ctx, period.ID()); err != nil || string(again) != string(signed) {
		t.Errorf("signed again although the file has it: %v", err)
	}
	second := newDeviceKey(t)
	if err := s.use(second); err != nil {
		t.Fatal(err)
	}
	if again, err := s.get(ctx, period.ID()); err != nil || !verify(again, second) {
		t.Errorf("not signed by the new key: %v", err)
	}
}

// TestAMissingRecordIsGoneOnlyAfterAWhile: what cannot be read for a moment must not park a batch.
func TestAMissingRecordIsGoneOnlyAfterAWhile(t *testing.T) {
	s, err := openSealings(filepath.Join(t.TempDir(), "sealings"), func([16]byte) ([]byte, bool) { return nil, false })
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	id := [16]byte{1}
	for _, c := range []struct {
		after time.Duration
		gone  bool
	}{{0, false}, {missingFor / 2, false}, {missingFor, true}} {
		if err := s.miss(id, now.Add(c.after)); errors.Is(err, uplink.ErrNoSealing) != c.gone {
			t.Errorf("after %v: %v; expected gone for good %t", c.after, err, c.gone)
		}
	}
}
