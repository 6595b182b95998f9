package card

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestOpenOpensNothingButFiles: a pipe in the place of certificate and signatures holds nobody up, and is told.
func TestOpenOpensNothingButFiles(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"buffer", "identity"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "buffer", "format"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"identity/identity.pem", SealingsName + ".a", SealingsName + ".b"} {
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(c.Problems, "\n"); len(c.Problems) != 2 || strings.Count(text, "no regular file") < 2 || !strings.Contains(text, "identity.pem") {
		t.Errorf("problems: %s", text)
	}
}
