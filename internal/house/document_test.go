package house

import (
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestArchitectureNamesEveryRoom: docs/ARCHITECTURE.md has each package, with a row of its own or in a row of one above it, and no other.
func TestArchitectureNamesEveryRoom(t *testing.T) {
	_, house, _ := strings.Cut(section(t, "## The house"), "```")
	house, _, _ = strings.Cut(house, "```")
	out, err := exec.Command("go", "list", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	packages := strings.Fields(string(out))
	if len(packages) < 40 {
		t.Fatalf("%d packages", len(packages))
	}
	rows := regexp.MustCompile(`(?m)^([a-z0-9/-]+?)/? +(.*(?:\n +.*)*)`).FindAllStringSubmatch(house, -1)
	for _, p := range packages {
		p = strings.TrimPrefix(p, module)
		if !slices.ContainsFunc(rows, func(r []string) bool {
			inside := regexp.MustCompile(`\b(` + regexp.QuoteMeta(p) + `|` + path.Base(p) + `)\b`)
			return r[1] == p || strings.HasPrefix(p, r[1]+"/") && inside.MatchString(r[2])
		}) {
			t.Errorf("%s is not in the house of docs/ARCHITECTURE.md", p)
		}
	}
	for _, row := range rows {
		if info, err := os.Stat(filepath.Join("../..", row[1])); err != nil || !info.IsDir() {
			t.Errorf("the house has %s, which is no directory", row[1])
		}
	}
}

// TestArchitectureGivesEachDependencyAReason: every module that go.mod requires directly.
func TestArchitectureGivesEachDependencyAReason(t *testing.T) {
	reasons := section(t, "## Dependencies")
	data, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	direct := regexp.MustCompile(`(?m)^\t(\S+) v\S+$`).FindAllStringSubmatch(string(data), -1)
	if len(direct) < 15 {
		t.Fatalf("%d direct requirements in go.mod", len(direct))
	}
	for _, m := range direct {
		name := regexp.MustCompile(`/v[0-9]+$`).ReplaceAllString(strings.TrimPrefix(m[1], "github.com/"), "")
		if !strings.Contains(reasons, name) {
			t.Errorf("docs/ARCHITECTURE.md gives no reason for %s", m[1])
		}
	}
}

// section is what stands under a heading of docs/ARCHITECTURE.md.
func section(t *testing.T, heading string) string {
	t.Helper()
	data, err := fs.ReadFile(os.DirFS("../../docs"), "ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(data), "\n"+heading)
	if !ok {
		t.Fatalf("docs/ARCHITECTURE.md has no %q", heading)
	}
	text, _, _ := strings.Cut(rest, "\n## ")
	return text
}
