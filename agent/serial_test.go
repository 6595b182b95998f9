package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSerial(t *testing.T) {
	const tree, dmi = "proc/device-tree/serial-number", "sys/class/dmi/id/product_serial"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"a Pi's":            {map[string]string{tree: "10000000abcdef01\x00"}, "10000000abcdef01"},
		"a PC's":            {map[string]string{dmi: "PF3K-9921\n"}, "PF3K-9921"},
		"a credential":      {map[string]string{"run/c/serial": "CZ12", dmi: "Default string\n"}, "CZ12"},
		"no number":         {map[string]string{dmi: "To Be Filled By O.E.M.\n"}, ""},
		"nothing":           {nil, ""},
		"a terminal trap":   {map[string]string{tree: "12\x1b[2J\x00"}, ""},
		"too long":          {map[string]string{tree: strings.Repeat("1", 65)}, ""},
		"endless":           {map[string]string{tree: strings.Repeat("1", 1<<20)}, ""},
		"the next is right": {map[string]string{tree: "\x00", dmi: "PF3K-9921"}, "PF3K-9921"},
	} {
		root := t.TempDir()
		for f, text := range c.files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, f), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := serialBelow(root, filepath.Join(root, "run/c")); got != c.want {
			t.Errorf("%s: %q; expected %q", name, got, c.want)
		}
	}
}
