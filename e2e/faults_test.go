package e2e

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"text/tabwriter"
	"time"

	"wardlink/internal/syscalltest"
	"wardlink/telemetry/seal"
)

// wholeFaults makes the tests of faults run every case ('make faults'); without it each runs a sample of someFaults beyond what it runs
// always, and prints the seed.
var wholeFaults = os.Getenv("WARDLINK_FAULTS") == "all"

func someFaults() int {
	if n, err := strconv.Atoi(os.Getenv("WARDLINK_FAULTS")); err == nil {
		return n
	}
	return 5
}

// fault is what a call meets.
type fault struct {
	name    string
	verdict syscalltest.Verdict
	lasting bool // until the fault is lifted, from that call on, every call of its name on any file
}

var oneFault = []fault{
	{"EIO", syscalltest.Verdict(syscall.EIO), false},
	{"ENOSPC", syscalltest.Verdict(syscall.ENOSPC), false},
	{"SIGKILL", syscalltest.Kill, false},
}

var lastingFault = []fault{
	{"EIO lasting", syscalltest.Verdict(syscall.EIO), true},
	{"ENOSPC lasting", syscalltest.Verdict(syscall.ENOSPC), true},
}

// point is one call of a life: its name, the file, and how many like it came before.
type point struct {
	call, file string
	nth        int
}

func (p point) String() string { return fmt.Sprintf("%s %s #%d", p.call, p.file, p.nth) }

// passing is the random part of a temporary file's name.
var passing = regexp.MustCompile(`\.tmp\d+$`)

// points counts the calls of one life on the files below dir.
type points struct {
	dir    string
	norm   func(file string) string // what a file is called in every life; nil: as it is
	wanted func(file string) bool   // nil: all

	mu   sync.Mutex
	seen map[point]int // by name and file
	all  []point       // as they came
}

func (p *points) note(c *syscalltest.Call) (point, bool) {
	file, ok := strings.CutPrefix(c.Path, p.dir)
	if !ok {
		return point{}, false
	}
	file = passing.ReplaceAllString(strings.TrimPrefix(file, "/"), ".tmp")
	if p.wanted != nil && !p.wanted(file) {
		return point{}, false
	}
	if p.norm != nil {
		file = p.norm(file)
	}
	at := point{call: c.Name, file: file}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[at]++
	at.nth = p.seen[at]
	p.all = append(p.all, at)
	return at, true
}

func (p *points) met() []point {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.all)
}

// injector gives one point its fault. The zero point has none.
type injector struct {
	points
	at point
	fault
	fired  bool
	lifted bool
}

func newInjector(dir string, at point, f fault) *injector {
	return &injector{points: points{dir: dir, seen: map[point]int{}}, at: at, fault: f}
}

func (i *injector) decide(c *syscalltest.Call) syscalltest.Verdict {
	p, ok := i.note(c)
	if !ok {
		return syscalltest.Pass
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if p == i.at || i.lasting && i.fired && !i.lifted && p.call == i.at.call {
		i.fired = true
		return i.verdict
	}
	return syscalltest.Pass
}

func (i *injector) lift() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.lifted = true
}

func (i *injector) isLifted() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.lifted
}

func (i *injector) hit() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fired
}

// live is the life that the matrix goes through: a first start in an empty directory, messages of two lanes, a SIGKILL of the test's own, a
// start that recovers what it left, a stop in order, another start.
func live(l *lone) {
	l.t.Helper()
	l.start()
	for i := range 3 {
		l.deliver(fmt.Sprint("V", i), vitals(fmt.Sprint("V", i)))
	}
	l.deliver("A0", alarm("A0"))
	l.agent.Kill()
	l.start()
	l.deliver("V3", vitals("V3"))
	l.deliver("V0", vitals("V0")) // its acknowledgement was lost on the way, say
	l.agent.Stop()
	l.start()
	l.deliver("A1", alarm("A1"))
	l.agent.Stop()
}

// TestGatewayFaults: every system call by which the agent changes a file of its state, each time it makes it in the course of a life,
// meets EIO, ENOSPC or SIGKILL. What a monitor was told is kept is in the files, as read without the agent's own code and opened with the
// hospital's key; the agent does not die of an error, acknowledges again once the disk works, starts after each kill; the check of the
// buffer finds nothing and nothing was set aside, for no disk lost a byte.
func TestGatewayFaults(t *testing.T) {
	t.Parallel()
	key, kit := loneKit(t)
	pilot := gatewayLife(t, key, kit, point{}, fault{})
	runMatrix(t, pilot.met(), false, func(t *testing.T, at point, f fault) bool { return gatewayLife(t, key, kit, at, f).hit() })
}

func gatewayLife(t *testing.T, key seal.PrivateKey, kit []byte, at point, f fault) *injector {
	l := newLone(t, key, kit)
	i := newInjector(l.state(), at, f)
	l.watch = &syscalltest.Watch{Decide: i.decide}
	l.refused = func(n int) {
		if n >= 2 {
			i.lift()
		}
	}
	killed := false // once
	l.mayDie = func() bool {
		former := killed
		killed = killed || f.verdict == syscalltest.Kill && i.hit()
		return killed && !former
	}
	live(l)
	l.holds()
	if c := l.check(); len(c.Findings) > 0 || len(c.Damaged) > 0 {
		t.Errorf("buffer check: %+v", c)
	}
	if t.Failed() {
		t.Logf("%s %s; the agent says\n%s", f.name, at, l.words())
	}
	return i
}

// matrixCase is one point with one fault.
type matrixCase struct {
	at point
	fault
}

// runMatrix runs all points with all faults, or a sample: the first of each call, and some more. run reports whether the point was met: where
// two lanes run side by side a life may take another course, and then a case says nothing. A sample of a slow life is a few cases, and what
// lasts. It prints call, fault, occurrences, passed.
func runMatrix(t *testing.T, all []point, slow bool, run func(t *testing.T, at point, f fault) bool) {
	t.Helper()
	cases := matrixCases(t, all, slow)
	var mu sync.Mutex
	type row struct{ call, fault string }
	type tally struct{ cases, met, passed int }
	table := map[row]*tally{}
	began, done := time.Now(), 0
	t.Run("case", func(t *testing.T) {
		for _, c := range cases {
			t.Run(c.fault.name+" "+c.at.String(), func(t *testing.T) {
				t.Parallel()
				met := false
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					r := row{c.at.call, c.fault.name}
					if table[r] == nil {
						table[r] = &tally{}
					}
					table[r].cases++
					if met {
						table[r].met++
					}
					if met && !t.Failed() {
						table[r].passed++
					}
					if done++; wholeFaults && done%100 == 0 {
						fmt.Fprintf(os.Stderr, "%d of %d cases, %v\n", done, len(cases), time.Since(began).Round(time.Second))
					}
				}()
				met = run(t, c.at, c.fault)
			})
		}
	})
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "call\tfault\toccurrences\tmet\tpassed")
	met, ran := 0, 0
	for _, r := range slices.SortedFunc(maps.Keys(table), func(a, b row) int { return cmp.Or(cmp.Compare(a.call, b.call), cmp.Compare(a.fault, b.fault)) }) {
		n := table[r]
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\n", r.call, r.fault, n.cases, n.met, n.passed)
		met, ran = met+n.met, ran+n.cases
	}
	w.Flush()
	report(t, b.String())
	if !slow && met*10 < ran*9 || met*2 < ran {
		t.Errorf("%d of %d cases met their call", met, ran)
	}
}

func matrixCases(t *testing.T, all []point, slow bool) (cases []matrixCase) {
	t.Helper()
	if len(all) < 20 {
		t.Fatalf("a life without faults makes %d calls: %v", len(all), all)
	}
	first := map[string]bool{}
	var rest []matrixCase
	for _, at := range all {
		if slow && at.nth > repeats {
			continue
		}
		for _, f := range oneFault {
			if first[at.call] {
				rest = append(rest, matrixCase{at, f})
			} else {
				cases = append(cases, matrixCase{at, f})
			}
		}
		// What lasts is told from its beginning: once for each file, at the first call of each name.
		if (at.nth == 1 || slow && at.nth == repeats) && strings.HasSuffix(at.file, ".seg") || !first[at.call] {
			for _, f := range lastingFault {
				// A lock that is refused for good with a disk's words: EIO is a file that cannot be read, which a journal sets aside in the end, and
				// ENOSPC a full disk, on which a buffer evicts. That is what they do, and no local file system says it of a lock.
				if at.call != "flock" || slow && f.verdict == syscalltest.Verdict(syscall.ENOSPC) {
					rest = append(rest, matrixCase{at, f})
				}
			}
		}
		first[at.call] = true
	}
	if wholeFaults {
		return append(cases, spread(rest, slow)...)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, of %d cases", seed, len(cases)+len(rest))
	rng := rand.New(rand.NewPCG(seed, 0))
	rng.Shuffle(len(rest), func(i, k int) { rest[i], rest[k] = rest[k], rest[i] })
	if !slow { // of each call one fault at its first time, and some of all others
		rng.Shuffle(len(cases), func(i, k int) { cases[i], cases[k] = cases[k], cases[i] })
		tried := map[string]bool{}
		var some []matrixCase
		for _, c := range cases {
			if tried[c.at.call] {
				rest = append(rest, c)
			} else {
				tried[c.at.call], some = true, append(some, c)
			}
		}
		return append(some, rest[:min(someFaults(), len(rest))]...)
	}
	rest = append(rest, cases...)
	for i, c := range rest { // what lasts from a start on, and from a commit on
		if c.lasting && c.at.call == "fdatasync" && strings.HasSuffix(c.at.file, ".seg") {
			to := min(c.at.nth-1, 1)
			rest[to], rest[i] = rest[i], rest[to]
		}
	}
	return rest[:min(max(2, someFaults()/5), len(rest))]
}

// repeats is how many like calls of a slow life are gone through: how many more a life makes depends on how long it waits.
const repeats = 24

// spread leaves of a slow life's cases the flush of each commit, and of each other call, file and fault two early ones and two by chance.
func spread(all []matrixCase, slow bool) (some []matrixCase) {
	if !slow {
		return all
	}
	rand.Shuffle(len(all), func(i, k int) { all[i], all[k] = all[k], all[i] })
	more := map[matrixCase]int{}
	for _, c := range all {
		kind := c
		kind.at.nth = 0
		commit := c.at.call == "fdatasync" && strings.HasSuffix(c.at.file, ".seg")
		if more[kind]++; commit || c.at.nth <= 2 || more[kind] <= 2 {
			some = append(some, c)
		}
	}
	return some
}

// report shows a table: in the test's log, and to whoever asked for the faults.
func report(t *testing.T, table string) {
	t.Helper()
	t.Logf("\n%s", table)
	if os.Getenv("WARDLINK_FAULTS") != "" {
		fmt.Fprintf(os.Stderr, "%s\n%s", t.Name(), table)
	}
}

// TestASecondAgent: a second agent on the same state says who is there and ends; the first one goes on.
func TestASecondAgent(t *testing.T) {
	t.Parallel()
	key, kit := loneKit(t)
	l := newLone(t, key, kit)
	l.start()
	l.deliver("V0", vitals("V0"))
	second := *l
	second.mllp = freeAddr(t)
	text, err := os.ReadFile(l.config())
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(l.dir, "second.yaml")
	if err := os.WriteFile(config, []byte(strings.Replace(string(text), l.mllp, second.mllp, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := runFor(10*time.Second, "wardlink-agent", "run", "--config", config)
	if err == nil || !strings.Contains(out, "buffer is in use by another process") {
		t.Errorf("the second agent: %v\n%s", err, out)
	}
	l.deliver("V1", vitals("V1"))
	l.agent.Kill()
	l.start()
	l.deliver("V2", vitals("V2"))
	l.agent.Stop()
	l.holds()
	if c := l.check(); len(c.Findings) > 0 || len(c.Damaged) > 0 {
		t.Errorf("buffer check: %+v", c)
	}
}
