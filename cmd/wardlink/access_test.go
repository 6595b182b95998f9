package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wardlink/server/api/client"
)

// TestNoAccountWithoutAPlaceForItsKey: the server is asked only once the account's files can be written.
func TestNoAccountWithoutAPlaceForItsKey(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{filepath.Join(file, "x"), "/proc/x", "/proc"} {
		err := (&tool{operator: filepath.Join(dir, "none.pem")}).issue(nil, client.AccessRequest{Name: "ehr"}, out, false)
		if err == nil || !strings.Contains(err.Error(), "the server was not asked") {
			t.Errorf("into %s: %v", out, err)
		}
	}
	ready := filepath.Join(dir, "a", "b")
	err := (&tool{operator: filepath.Join(dir, "none.pem")}).issue(nil, client.AccessRequest{Name: "ehr"}, ready, false)
	if err == nil || strings.Contains(err.Error(), "the server was not asked") {
		t.Errorf("into a folder that can be written: %v", err)
	}
	if left, err := os.ReadDir(ready); err != nil || len(left) != 0 {
		t.Errorf("the trial left %v, %v", left, err)
	}
}
