package ingest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestProfileNamesItsTests: every row of MQTT.md names tests that exist, and every test of the endpoint has its row.
func TestProfileNamesItsTests(t *testing.T) {
	doc := string(must(os.ReadFile("MQTT.md"))(t))
	named := make(map[string]bool)
	for _, m := range regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(doc, -1) {
		named[m[1]] = true
	}
	exists := make(map[string]bool)
	files := must(filepath.Glob("*_test.go"))(t)
	for _, f := range files {
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllStringSubmatch(string(must(os.ReadFile(f))(t)), -1) {
			exists[m[1]] = true
		}
	}
	if len(named) < 20 || len(exists) < 20 {
		t.Fatalf("%d names in MQTT.md, %d tests: the patterns no longer fit", len(named), len(exists))
	}
	for name := range named {
		if !exists[name] {
			t.Errorf("MQTT.md names %s, which does not exist", name)
		}
	}
	for name := range exists {
		if !named[name] && name != "TestMain" && name != "TestProfileNamesItsTests" && name != "TestConformanceTable" {
			t.Errorf("%s has no row in MQTT.md", name)
		}
	}
	for i, line := range strings.Split(doc, "\n") {
		if strings.HasPrefix(line, "| ") && !strings.Contains(line, "`Test") && !strings.Contains(line, "`Fuzz") && !strings.Contains(line, "| Test |") && !strings.HasPrefix(line, "|---") {
			t.Errorf("MQTT.md:%d: the row names no test", i+1)
		}
	}
}
