package registry_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/registry"
)

// attest is the gateway's first attestation with a code; it gives why it was refused.
func (f *fixture) attest(t *testing.T, code string) string {
	t.Helper()
	err := f.Attested(f.ctx, "gw-1", ek("one"), []byte("an AK"), code)
	var wants *registry.CodeError
	if err != nil && !errors.As(err, &wants) {
		t.Fatal(err)
	}
	if wants == nil {
		return ""
	}
	return wants.Why
}

// TestCode: a gateway for which one was made is certified with it alone, once; and by its TPM from then on.
func TestCode(t *testing.T) {
	f := one(t)
	code, ends, err := f.MakeCode(f.ctx, operator, "", "gw-1", time.Hour)
	if err != nil || len(code) != 26 || !ends.Equal(f.clock.Add(time.Hour).Truncate(time.Millisecond)) {
		t.Fatalf("%q until %v, %v", code, ends, err)
	}
	if why := f.attest(t, ""); !strings.Contains(why, "wants the one-time code") {
		t.Errorf("without: %q", why)
	}
	if why := f.attest(t, code[1:]); why != "the one-time code is wrong; 9 tries are left" {
		t.Errorf("a wrong one: %q", why)
	}
	if why := f.attest(t, strings.ToLower(code[:4]+"-"+code[4:10]+" "+code[10:]+"\n")); why != "" {
		t.Errorf("as people type it: %q", why)
	}
	if why := f.attest(t, ""); why != "" {
		t.Errorf("a renewal: %q", why)
	}
	if err := f.Attested(f.ctx, "gw-1", ek("one"), []byte("a new AK"), ""); err != nil {
		t.Errorf("after a cleared TPM: %v", err)
	}
	if c, err := f.CodeOf(f.ctx, "gw-1"); c != nil || err != nil {
		t.Errorf("a used code waits: %+v, %v", c, err)
	}
	if _, _, err := f.MakeCode(f.ctx, operator, "", "gw-1", time.Hour); !errors.Is(err, registry.ErrConflict) {
		t.Errorf("a code for who has enrolled: %v", err)
	}
	if _, err := f.Replace(f.ctx, operator, "", "gw-1", "broken", []string{hexOf("another")}); err != nil {
		t.Fatal(err)
	}
	next, _, err := f.MakeCode(f.ctx, operator, "", "gw-1", time.Hour)
	if err != nil {
		t.Fatalf("a code for another board: %v", err)
	}
	var wants *registry.CodeError
	if err := f.Attested(f.ctx, "gw-1", ek("another"), []byte("its AK"), code); !errors.As(err, &wants) {
		t.Errorf("the former board's code: %v", err)
	}
	if err := f.Attested(f.ctx, "gw-1", ek("another"), []byte("its AK"), next); err != nil {
		t.Error(err)
	}
	made, used := 0, 0
	for _, ev := range f.journal.Events(t) {
		switch ev.Type {
		case audit.CodeMade:
			made++
		case audit.CodeUsed:
			used++
		}
		for k, v := range ev.Detail {
			if strings.Contains(v, code) || strings.Contains(v, next) {
				t.Errorf("the code is in the log, %s", k)
			}
		}
	}
	if made != 2 || used != 2 {
		t.Errorf("%d made, %d used", made, used)
	}
}

// TestCodeEnds: by its time, and by tries; the next one starts anew.
func TestCodeEnds(t *testing.T) {
	f := one(t)
	code, _, err := f.MakeCode(f.ctx, operator, "", "gw-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	f.clock = f.clock.Add(time.Hour)
	if why := f.attest(t, code); !strings.Contains(why, "has ended") {
		t.Errorf("an hour later: %q", why)
	}
	if code, _, err = f.MakeCode(f.ctx, operator, "", "gw-1", time.Hour); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		f.attest(t, strings.Repeat("guess", 100))
	}
	if why := f.attest(t, code); !strings.Contains(why, "too often") {
		t.Errorf("after ten tries: %q", why)
	}
	if code, _, err = f.MakeCode(f.ctx, operator, "", "gw-1", time.Hour); err != nil {
		t.Fatal(err)
	}
	if why := f.attest(t, code); why != "" {
		t.Errorf("the next one: %q", why)
	}
	for _, life := range []time.Duration{0, registry.MaxCodeLife + 1} {
		if _, _, err := f.MakeCode(f.ctx, operator, "", "gw-1", life); err == nil {
			t.Errorf("a code for %v", life)
		}
	}
}

// TestCodeRequired: by policy no TPM is certified for the first time without one; who attested before the policy goes on.
func TestCodeRequired(t *testing.T) {
	f := one(t)
	if _, err := f.Import(f.ctx, operator, "", []registry.Gateway{gateway("gw-2", "two")}); err != nil {
		t.Fatal(err)
	}
	if err := f.Attested(f.ctx, "gw-2", ek("two"), []byte("two's"), ""); err != nil {
		t.Fatal(err)
	}
	strict, err := registry.New(registry.Config{DB: f.db, Outbox: f.outbox, Now: func() time.Time { return f.clock }, CodeRequired: true})
	if err != nil {
		t.Fatal(err)
	}
	f.Registry = strict
	if err := f.Attested(f.ctx, "gw-2", ek("two"), []byte("two's"), ""); err != nil {
		t.Errorf("who was there before: %v", err)
	}
	if why := f.attest(t, "x"); !strings.Contains(why, "wardlink provision code gw-1") {
		t.Errorf("without a code: %q", why)
	}
	code, _, err := f.MakeCode(f.ctx, operator, "", "gw-1", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if why := f.attest(t, code); why != "" {
		t.Errorf("with it: %q", why)
	}
}
