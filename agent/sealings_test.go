package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"wardlink/agent/card"
	"wardlink/agent/uplink"
	"wardlink/buffer"
	"wardlink/internal/durable"
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
	record := recordOf(period)
	path := filepath.Join(t.TempDir(), "sealings")
	open := func() *sealings {
		t.Helper()
		s, err := openSealings(path, record, slog.New(slog.DiscardHandler))
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
	now := time.Now()
	for name, c := range map[string]struct {
		misses []time.Duration
		gone   bool
	}{
		"one":                       {[]time.Duration{0}, false},
		"half a wait":               {[]time.Duration{0, missingFor / 2}, false},
		"a whole wait":              {[]time.Duration{0, missingFor / 2, missingFor}, true},
		"two, hours apart":          {[]time.Duration{0, 3 * time.Hour}, false},
		"begun anew after a gap":    {[]time.Duration{0, missingFor, missingFor + missGap}, false},
		"a whole wait after a gap":  {[]time.Duration{0, time.Hour, time.Hour + missGap, time.Hour + 2*missGap}, true},
		"never a minute at a time":  {[]time.Duration{0, missGap, 3 * missGap, 4 * missGap, 6 * missGap}, false},
		"asked often, then forever": {[]time.Duration{0, missGap, 2 * missGap, 3 * missGap}, true},
	} {
		s, err := openSealings(filepath.Join(t.TempDir(), "sealings"), nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for _, after := range c.misses {
			err = s.miss([16]byte{1}, now.Add(after))
		}
		if errors.Is(err, uplink.ErrNoSealing) != c.gone {
			t.Errorf("%s: %v; expected gone for good %t", name, err, c.gone)
		}
	}
}

// TestAnUnreadableRecordNeverParks: only a record that the buffer says it does not have begins to count as missing.
func TestAnUnreadableRecordNeverParks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := syscall.EIO
		s, err := openSealings(filepath.Join(t.TempDir(), "sealings"), func([16]byte) ([]byte, error) { return nil, answer }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.use(newDeviceKey(t)); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			if _, err := s.get(t.Context(), [16]byte{1}); !errors.Is(err, answer) || errors.Is(err, uplink.ErrNoSealing) {
				t.Fatalf("%v; expected the disk's error, which means later", err)
			}
			time.Sleep(5 * time.Second) // the bubble's clock
		}
		s.record = func([16]byte) ([]byte, error) { return nil, buffer.ErrNoRecord }
		began := time.Now()
		for err = nil; !errors.Is(err, uplink.ErrNoSealing); time.Sleep(5 * time.Second) {
			if _, err = s.get(t.Context(), [16]byte{1}); time.Since(began) > 2*missingFor {
				t.Fatalf("a record that is not there is still waited for: %v", err)
			}
		}
		if took := time.Since(began); took < missingFor {
			t.Errorf("given up after %v", took)
		}
	})
}

// TestDamagedCachesDoNotKeepTheAgentFromStarting: both can be had again, and a bedside cannot wait for a person.
func TestDamagedCachesDoNotKeepTheAgentFromStarting(t *testing.T) {
	period, err := seal.NewPeriod(newKey(t).Public(), telemetry.Epoch{1}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	spoil := func(path string) {
		t.Helper()
		for _, suffix := range []string{".a", ".b"} {
			if err := os.WriteFile(path+suffix, []byte("noise "+path), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	kept := func(path string) {
		t.Helper()
		for _, suffix := range []string{".a", ".b"} {
			if raw, err := os.ReadFile(path + suffix + durable.DamagedSuffix); err != nil || string(raw) != "noise "+path {
				t.Errorf("set aside: %q, %v", raw, err)
			}
		}
		if !strings.Contains(logged.String(), path) {
			t.Errorf("the log does not name %s: %s", path, logged.String())
		}
	}
	path := filepath.Join(dir, "sealings")
	spoil(path)
	s, err := openSealings(path, recordOf(period), log)
	if err != nil {
		t.Fatal(err)
	}
	kept(path)
	if err := s.use(newDeviceKey(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.get(t.Context(), period.ID()); err != nil {
		t.Errorf("nothing is signed after the loss: %v", err)
	}
	path = filepath.Join(dir, "config")
	spoil(path)
	c, err := openConfigStore(path, nil, func() int64 { return 0 }, log)
	if err != nil {
		t.Fatal(err)
	}
	kept(path)
	if v := c.inForce().Version; v != 0 {
		t.Errorf("a configuration of version %d came out of noise", v)
	}
}

// recordOf is a buffer that holds one sealing record.
func recordOf(p *seal.Period) func(id [16]byte) ([]byte, error) {
	return func(id [16]byte) ([]byte, error) {
		if id != p.ID() {
			return nil, buffer.ErrNoRecord
		}
		return p.Record(), nil
	}
}

// TestSealingsAreSignedBeforeAnybodyAsks: what the buffer holds is signed and stored as it is sealed, with no uplink; a TPM that fails in
// between costs only a wait; what the buffer no longer holds gives way when room is needed.
func TestSealingsAreSignedBeforeAnybodyAsks(t *testing.T) {
	var periods []*seal.Period
	var ids [][16]byte
	records := map[[16]byte][]byte{}
	for range storeSealings + 3 {
		p, err := seal.NewPeriod(newKey(t).Public(), telemetry.Epoch{1}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		periods, ids = append(periods, p), append(ids, p.ID())
		records[p.ID()] = p.Record()
	}
	path := filepath.Join(t.TempDir(), "sealings")
	read := 0
	open := func() *sealings {
		t.Helper()
		s, err := openSealings(path, func(id [16]byte) ([]byte, error) { read++; return records[id], nil }, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	if err := s.signAll(t.Context(), ids); !errors.Is(err, errNoSigner) {
		t.Errorf("before enrolment: %v", err)
	}
	key := newDeviceKey(t)
	if err := s.use(key); err != nil {
		t.Fatal(err)
	}
	records[ids[5]] = []byte("not a record") // what a TPM that fails comes to: no signature
	good := periods[5].Record()
	if err := s.signAll(t.Context(), ids); err == nil {
		t.Error("a record that cannot be signed is no error")
	}
	if got := len(open().signed); got != 5 {
		t.Errorf("%d signatures are stored after the sixth failed; expected 5", got)
	}
	records[ids[5]] = good
	if err := s.signAll(t.Context(), ids); err != nil {
		t.Fatal(err)
	}
	again := open()
	if len(again.signed) != len(ids) {
		t.Fatalf("%d of %d signatures are stored", len(again.signed), len(ids))
	}
	if err := again.use(key); err != nil {
		t.Fatal(err)
	}
	read = 0
	if err := again.signAll(t.Context(), ids); err != nil || read != 0 {
		t.Errorf("signed again: %d records were read, %v", read, err)
	}
	for len(again.signed) < card.MaxSealings {
		again.signed = append(again.signed, card.Sealing{ID: [16]byte{byte(len(again.signed)), byte(len(again.signed) >> 8), 7}})
	}
	if err := again.signAll(t.Context(), ids); err != nil || len(again.signed) != len(ids) {
		t.Errorf("%d signatures are kept, of which %d are needed: %v", len(again.signed), len(ids), err)
	}
}
