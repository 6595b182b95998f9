package e2e

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestStateFaults empties, cuts, zeroes and garbles every file of an enrolled agent's state in turn, its segments aside (TestPageFaults has them).
// The agent takes a message and delivers it; or it takes it and says which file keeps it from delivering; or it refuses to start and names the
// file. With the file put back as it was, all that was ever acknowledged is delivered, once.
func TestStateFaults(t *testing.T) {
	t.Parallel()
	f := newFaultWard(t)
	f.proc = f.program(t, nil, "server", "wardlink-server", "run", "--dir", f.server())
	defer func() { f.proc.Stop() }()
	rng := rand.New(rand.NewPCG(5, 6))
	ways := []struct {
		name string
		do   func([]byte) []byte
	}{
		{"emptied", func([]byte) []byte { return nil }},
		{"cut", func(raw []byte) []byte { return raw[:len(raw)/2] }},
		{"zeroed", func(raw []byte) []byte { return make([]byte, len(raw)) }},
		{"garbled", func(raw []byte) []byte {
			out := slices.Clone(raw)
			for i := range out {
				out[i] = byte(rng.Uint32())
			}
			return out
		}},
	}
	type fileCase struct {
		file string
		way  int
	}
	var cases []fileCase
	err := filepath.WalkDir(f.box.state(), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasSuffix(path, ".seg") {
			for w := range ways {
				cases = append(cases, fileCase{path, w})
			}
		}
		return err
	})
	if err != nil || len(cases) < 40 {
		t.Fatalf("%d cases, %v", len(cases), err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, of %d cases", seed, len(cases))
	rand.New(rand.NewPCG(seed, 0)).Shuffle(len(cases), func(i, k int) { cases[i], cases[k] = cases[k], cases[i] })
	if !wholeFaults {
		cases = cases[:max(2, someFaults()/5)]
	}
	tally := map[string]int{}
	passed := 0
	for _, c := range cases {
		name, _ := filepath.Rel(f.box.state(), c.file)
		if t.Run(ways[c.way].name+" "+name, func(t *testing.T) { tally[f.fileFault(t, c.file, ways[c.way].do)]++ }) {
			passed++
		}
	}
	report(t, fmt.Sprintf("files of the agent's state: %d cases, %d passed: %v\n", len(cases), passed, tally))
}

// fileFault is one case; it returns what became of it.
func (f *faultWard) fileFault(t *testing.T, path string, do func([]byte) []byte) (what string) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return "set aside by a former case, and not made again yet"
	}
	if err := os.WriteFile(path, do(raw), 0o600); err != nil {
		t.Fatal(err)
	}
	control := fmt.Sprintf("S%d", f.sent)
	from := f.agentWords()
	// The names of a pair's two files begin alike.
	name := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(path), ".a"), ".b")
	named := func() bool {
		words := f.agentWords()[len(from):]
		return strings.Contains(words, filepath.Dir(path)) && strings.Contains(words, name)
	}
	acked := f.carries(t, control, f.sent+1, func(took time.Duration) bool { return took > 6*time.Second && named() || took > time.Minute })
	count, _ := f.observations()
	if acked && count == f.sent+1 {
		f.sent++
		return "goes on"
	}
	if !named() {
		t.Errorf("it does not name %s:\n%s", path, f.agentWords()[len(from):])
	}
	what = "takes, and says why it does not deliver"
	if !acked {
		what = "refuses to start"
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	f.sent++
	if !f.carries(t, control, f.sent, func(took time.Duration) bool { return took > 3*time.Minute }) {
		t.Fatalf("with %s put back the agent takes nothing:\n%s", path, f.agentWords()[len(from):])
	}
	if count, err := f.observations(); count != f.sent {
		t.Fatalf("with %s put back FHIR shows %d of %d observations (%v):\n%s", path, count, f.sent, err, f.agentWords()[len(from):])
	}
	return what
}

func (f *faultWard) agentWords() string {
	words, _ := os.ReadFile(filepath.Join(f.hospital.dir, "box", "agent.log"))
	return string(words)
}

// carries starts the agent, has it take a message, waits until FHIR shows it or enough says that it took long enough, and stops the agent. It tells whether the message was
// acknowledged. An agent may refuse to start and must not end later.
func (f *faultWard) carries(t *testing.T, control string, want int, enough func(took time.Duration) bool) (acked bool) {
	t.Helper()
	f.box.agent = f.program(t, nil, "box/agent", "wardlink-agent", "run", "--config", f.box.config())
	defer f.box.agent.Stop()
	for began := time.Now(); !enough(time.Since(began)); time.Sleep(20 * time.Millisecond) {
		if f.box.agent.Ended() {
			if acked {
				t.Errorf("the agent has ended after it took a message:\n%s", f.agentWords())
			}
			return acked
		}
		if !acked {
			answer, err := exchangeOnce(f.box.mllp, vitals(control))
			acked = err == nil && strings.Contains(answer, "MSA|CA|"+control)
		}
		if count, err := f.observations(); acked && err == nil && count >= want {
			return acked
		}
	}
	return acked
}
