package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestThreatsNameTheirTests: each row of docs/THREATS.md that says what holds names a test, and each test that it names is there.
func TestThreatsNameTheirTests(t *testing.T) {
	root := filepath.Join("..", "..")
	page, err := os.ReadFile(filepath.Join(root, "docs", "THREATS.md"))
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	known := map[string]map[string]bool{} // tests by package
	rows, named, proven := 0, 0, false
	for i, line := range strings.Split(string(page), "\n") {
		if strings.HasPrefix(line, "|---") {
			continue
		}
		if strings.HasPrefix(line, "| ") && strings.Contains(line, "| tests |") {
			proven = true // the table's head
			continue
		}
		if !strings.HasPrefix(line, "|") {
			proven = false
		}
		found := name.FindAllStringSubmatch(line, -1)
		if proven {
			rows++
			if cells := strings.Split(strings.Trim(line, "|"), "|"); len(found) == 0 || !name.MatchString(cells[len(cells)-1]) {
				t.Errorf("docs/THREATS.md:%d: the row names no test", i+1)
			}
		}
		for _, m := range found {
			named++
			if known[m[1]] == nil {
				known[m[1]] = testsOf(t, filepath.Join(root, m[1]))
			}
			if !known[m[1]][m[2]] {
				t.Errorf("docs/THREATS.md:%d: package %s has no %s", i+1, m[1], m[2])
			}
		}
	}
	if rows < 40 || named < 90 {
		t.Errorf("%d rows, %d tests: the patterns no longer fit the page", rows, named)
	}
}

// testsOf are the test functions of a package's directory.
func testsOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil {
				out[f.Name.Name] = true
			}
		}
	}
	return out
}
