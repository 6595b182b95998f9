package ca

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/internal/swtpmtest"
)

// TestFirstEnrolmentWantsACode: the TPM alone is not enough where a code was made; the agent gives the one that somebody left for it, once.
func TestFirstEnrolmentWantsACode(t *testing.T) {
	h := newHospital(t, nil)
	g := h.gateway(t, swtpmtest.Start(t).Path)
	h.registry.set(func() { h.registry.active[g.ek], h.registry.code = "gw-1", "THECODE" })
	file := filepath.Join(g.dir, "enrol-code")
	for _, left := range []string{"", "ANOTHER\n", "ANOTHER\n", "two\nlines\n"} {
		if left != "" {
			if err := os.WriteFile(file, []byte(left), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := g.e.Enroll(t.Context()); err == nil || !strings.Contains(err.Error(), "one-time code is wrong") {
			t.Fatalf("with %q: %v", left, err)
		}
	}
	if h.count(audit.AKCertified) != 0 || h.count(audit.Refused) != 4 {
		t.Errorf("%d certified, %d refused", h.count(audit.AKCertified), h.count(audit.Refused))
	}
	if err := os.WriteFile(file, []byte("THECODE\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	id, err := g.e.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	h.checkIdentity(t, id, "gw-1")
	if got := strings.Join(h.registry.codes, " "); got != "ANOTHER THECODE" { // a wrong one once: its tries are few
		t.Errorf("the codes that were given: %s", got)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the code is still there: %v", err)
	}
	for _, left := range []string{"", "what is no code\nkeeps nobody from renewing\n"} {
		if left != "" {
			if err := os.WriteFile(file, []byte(left), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := g.e.Enroll(t.Context()); err != nil {
			t.Errorf("again, with %q: %v", left, err)
		}
	}
}
