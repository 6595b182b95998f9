package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// judge has each kind of check, and judgeTest a row for each but those that the comments name.
const judge = `package judge

import "errors"

var errNo = errors.New("no")

func Guarded(n int) error {
	if n < 0 || n > 100 { // nobody tries -1
		return errNo
	}
	switch {
	case n == 7: // nobody tries
		return errNo
	case n == 9, n == 11:
		return errNo
	}
	switch n {
	case 4: // nobody tries
		return errNo
	case 6:
		return errNo
	}
	return nil
}

func Listed(n int) error {
	for _, good := range []int{0, 2, 10} {
		if n == good {
			return nil
		}
	}
	return errNo
}

func Plain(s string) bool { return len(s) < 3 && s != "x" } // nobody tries "x"

func Sure(n int) (int, error) {
	m, err := n, error(nil)
	if err != nil { // cannot fail: it is nil
		return 0, err
	}
	return m, nil
}
`

const judgeTest = `package judge

import "testing"

func TestGuarded(t *testing.T) {
	for n, good := range map[int]bool{0: true, 102: false, 9: false, 11: false, 6: false} {
		if (Guarded(n) == nil) != good {
			t.Error(n)
		}
	}
}

func TestListed(t *testing.T) {
	if Listed(2) != nil || Listed(12) == nil {
		t.Error("listed")
	}
}

func TestPlain(t *testing.T) {
	if !Plain("a") || Plain("abc") {
		t.Error("plain")
	}
}

func TestNeverGreen(t *testing.T) { t.Error("red") }
`

// TestUntestedChecksAreReported is the tool's own proof that it can fail.
func TestUntestedChecksAreReported(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("go.mod", "module judge\n\ngo 1.26\n")
	write("judge.go", judge)
	write("judge_test.go", judgeTest)
	var out bytes.Buffer
	whole := target{dir: dir, run: "^Test(Guarded|Listed|Plain)$"}
	survived, err := try(t.Context(), whole, 2, &out)
	if err != nil {
		t.Fatal(err)
	}
	for check, want := range map[string]string{"n < 0 →": "SURVIVED", "n > 100 →": "TestGuarded", "n == 7 →": "SURVIVED", "n == 9 →": "TestGuarded",
		"n == 11 →": "TestGuarded", "n == good →": "TestListed", "otherwise →": "TestListed", "len(s) < 3 →": "TestPlain", `s != "x" →`: "SURVIVED",
		"err != nil →": "cannot fail: it is nil"} {
		_, after, found := strings.Cut(out.String(), check)
		if line, _, _ := strings.Cut(after, "\n"); !found || !strings.Contains(line, want) {
			t.Errorf("%s%s; expected %s", check, line, want)
		}
	}
	if untried := strings.Count(judge, "nobody tries"); survived != untried || strings.Count(out.String(), "SURVIVED") != untried {
		t.Errorf("%d survived; expected %d\n%s", survived, untried, out.String())
	}
	// What cannot be trusted is an error, and no verdict.
	for what, other := range map[string]target{
		"tests that fail as they are": {dir: dir, run: "^TestNeverGreen$"}, "no tests": {dir: dir, run: "^TestOther$"},
		"a function that is gone": {dir: dir, funcs: []string{"Guarded", "Odd"}},
	} {
		if _, err := try(t.Context(), other, 2, new(bytes.Buffer)); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	write("judge.go", strings.Replace(judge, "// nobody tries -1", "// cannot fail: nothing is so large", 1))
	if _, err := try(t.Context(), whole, 2, new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "remove the comment") {
		t.Errorf("an excuse that is not true: %v", err)
	}
}
