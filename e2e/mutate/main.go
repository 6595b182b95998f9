// Command mutate takes each check out of the code that judges strangers, one at a time, runs that package's tests, and tells which test notices:
// a check that can go unseen is one that nobody holds. Exit status 1: one survived.
//
// What no input can make fail is excused where it stands, by a comment "cannot fail: why": the table shows it, for people to judge.
//
// All mutants of a package are one program: each check is put behind a switch that a variable of the environment throws, in a copy of the
// source (go build -overlay), so that a package is compiled once. The tree is not touched.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// target is a package whose checks are taken out.
type target struct {
	dir   string
	funcs []string // only in these functions and methods; nil: in all
	run   string   // go test's -run; "": all tests
}

// targets are where a stranger's word becomes a verdict.
var targets = []target{
	{dir: "enroll/verify"},
	{dir: "enroll/verify/eventlog"},
	{
		dir: "server/ca", run: "^Test(IssuanceChecks|IssuanceReads|ParseAttestation)",
		funcs: []string{"judge", "admitted", "createCertificate", "CreateOrder", "attObj", "decodable", "parseAttestation", "ekOf", "checkSVID", "decodeChallenged"},
	},
}

// most is how long the tests of one mutant may take: one that waits for ever is noticed, too.
const most = 5 * time.Minute

func main() {
	jobs := flag.Int("jobs", 2, "mutants that are tested at a time")
	only := flag.String("only", "", "the one `DIR` to try")
	flag.Parse()
	survived := 0
	for _, t := range targets {
		if *only != "" && t.dir != *only {
			continue
		}
		n, err := try(context.Background(), t, *jobs, os.Stdout)
		if err != nil {
			fmt.Fprintln(os.Stderr, "mutate:", err)
			os.Exit(2)
		}
		survived += n
	}
	if survived > 0 {
		fmt.Printf("%d checks can be deleted unseen: add a test that only they pass\n", survived)
		os.Exit(1)
	}
}

// try takes the checks of one package out, prints what noticed each, and gives how many nobody missed.
func try(ctx context.Context, t target, jobs int, out io.Writer) (survived int, err error) {
	checks, sources, err := find(t)
	if err != nil {
		return 0, err
	}
	if len(checks) == 0 {
		return 0, fmt.Errorf("%s: no check found", t.dir)
	}
	work, err := os.MkdirTemp("", "mutate-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(work)
	began := time.Now()
	program := filepath.Join(work, "test")
	if err := compile(ctx, t.dir, work, program, sources); err != nil {
		return 0, err
	}
	// The tests must be green while nothing is taken out: otherwise red says nothing.
	if red, log := tests(ctx, t, program, 0); red != nil {
		return 0, fmt.Errorf("%s: its tests fail as they are: %s\n%s", t.dir, strings.Join(red, ", "), log)
	}
	noticed := make([][]string, len(checks))
	var wg sync.WaitGroup
	next := make(chan int)
	for range max(jobs, 1) {
		wg.Go(func() {
			for i := range next {
				noticed[i], _ = tests(ctx, t, program, checks[i].id)
			}
		})
	}
	for i := range checks {
		next <- i
	}
	close(next)
	wg.Wait()
	excused := 0
	for i, c := range checks {
		verdict := "SURVIVED"
		switch red := noticed[i]; {
		case c.excused != "" && len(red) > 0: // the comment is not true, or is no reason any more
			return 0, fmt.Errorf("%s %s: %s: excused, and noticed by %s; remove the comment", t.dir, c.where, c.text, red[0])
		case c.excused != "":
			verdict = "cannot fail: " + c.excused
			excused++
		case len(red) > 2:
			verdict = fmt.Sprintf("%s, %s and %d more", red[0], red[1], len(red)-2)
		case len(red) > 0:
			verdict = strings.Join(red, ", ")
		default:
			survived++
		}
		fmt.Fprintf(out, "%-28s %-22s %-70s %s\n", c.where, c.in, c.text, verdict)
	}
	fmt.Fprintf(out, "%s: %d checks, %d cannot fail, %d survived, %.0f s\n\n", t.dir, len(checks), excused, survived, time.Since(began).Seconds())
	return survived, nil
}

// compile makes the test program of a package with its sources replaced.
func compile(ctx context.Context, dir, work, program string, sources map[string][]byte) error {
	overlay, err := writeOverlay(dir, work, sources)
	if err != nil {
		return err
	}
	c := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", overlay, "-o", program, ".")
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: compile with each check behind a switch: %w\n%s", dir, err, out)
	}
	return nil
}

// tests runs the tests with one check out (0: none) and gives those that failed, and what was printed. Nil: all passed.
func tests(ctx context.Context, t target, program string, id int) (red []string, log []byte) {
	c := exec.CommandContext(ctx, program, "-test.short", "-test.timeout", most.String(), "-test.run", t.run)
	c.Dir = t.dir
	c.Env = append(os.Environ(), fmt.Sprintf("%s=%d", variable, id))
	log, err := c.CombinedOutput()
	if err == nil {
		if bytes.Contains(log, []byte("no tests to run")) {
			return []string{"(there are no tests)"}, log
		}
		return nil, log
	}
	for _, m := range failed.FindAllSubmatch(log, -1) {
		red = append(red, string(m[1]))
	}
	// A test whose subtest failed says no more than that.
	red = slices.DeleteFunc(red, func(name string) bool {
		return slices.ContainsFunc(red, func(other string) bool { return strings.HasPrefix(other, name+"/") })
	})
	if len(red) == 0 {
		red = []string{"(" + err.Error() + ")"}
		if m := panicked.FindSubmatch(log); m != nil { // outside any test, or for time
			red = []string{"(" + string(m[1]) + ")"}
		}
	}
	return red, log
}

var failed = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

var panicked = regexp.MustCompile(`(?m)^panic: (.*)$`)
