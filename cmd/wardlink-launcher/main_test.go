package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wardlink/firmware/slots"
)

// TestLaunch: what cannot be executed is followed by the package's copy, with the same arguments; what was met is said.
func TestLaunch(t *testing.T) {
	dir := slots.Dir{Path: filepath.Join(t.TempDir(), "wardlink", "slots"), Packaged: "/packaged", Owner: uint32(os.Getuid())}
	slot := filepath.Join(dir.Path, "b", slots.Program)
	if err := errors.Join(os.MkdirAll(filepath.Dir(slot), 0o755), os.WriteFile(slot, nil, 0o755)); err != nil {
		t.Fatal(err)
	}
	empty := "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	if err := dir.SetCurrent(slots.Current{Slot: "b", Version: "99.0.0", SHA256: empty}); err != nil {
		t.Fatal(err)
	}
	var tried []string
	var said strings.Builder
	launch(dir, []string{"run", "--config", "x"}, &said, func(path string, argv []string) error {
		if !slices.Equal(argv, []string{"wardlink-agent", "run", "--config", "x"}) {
			t.Errorf("%s with %q", path, argv)
		}
		tried = append(tried, path)
		return errors.New("exec format error")
	})
	if !slices.Equal(tried, []string{slot, "/packaged"}) {
		t.Errorf("tried %q", tried)
	}
	for _, part := range []string{"slot b: exec format error; the package's copy starts instead", "/packaged cannot be started: exec format error; install the package"} {
		if !strings.Contains(said.String(), part) {
			t.Errorf("%q is not in %q", part, said.String())
		}
	}
}
