// Package e2e tests the real programs together: what is tested runs as a program; packages of the house only read what it said or left,
// and make what stands in for a part that a test cannot have.
package e2e

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"wardlink/internal/syscalltest"
)

// bin is the folder of the programs, built from this tree once for all tests.
var bin string

func TestMain(m *testing.M) {
	syscalltest.Main()
	// Most of a test here is waiting for programs and disks.
	flag.Parse()
	if p := flag.Lookup("test.parallel"); p.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) && runtime.GOMAXPROCS(0) < 4 {
		_ = p.Value.Set("4")
	}
	os.Exit(run(m))
}

// ownPrograms hands the folder on to a test that runs in a process of its own.
const ownPrograms = "WARDLINK_TEST_PROGRAMS"

func run(m *testing.M) int {
	if bin = os.Getenv(ownPrograms); bin != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "wl-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	build := exec.Command("go", "build", "-o", dir+"/", "./cmd/...") // the flags of the test run, so that its build cache serves
	build.Dir = ".."
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// TestScripts drives the programs' command lines; the failures are as much part of the product as the successes.
func TestScripts(t *testing.T) {
	if files, err := filepath.Glob("testdata/*.txtar"); err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("NO_COLOR", "1")
			return nil
		},
	})
}
