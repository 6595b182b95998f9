package agent

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"wardlink/telemetry/seal"
)

// resident is how much of this program's own pages that cannot be written are in memory, in KB, and how many mappings of them the kernel may
// fill with pieces of 2 MB.
func resident(t *testing.T) (kb, huge int) {
	t.Helper()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	own := false
	for line := range strings.Lines(string(maps)) {
		f := strings.Fields(line)
		if len(f) > 1 && len(f[1]) == 4 && f[1][3] == 'p' {
			own = len(f) == 6 && f[5] == program && f[1][1] == '-'
		}
		if own && f[0] == "Rss:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			kb += n
		}
		if own && f[0] == "VmFlags:" && !slices.Contains(f, "nh") {
			huge++
		}
	}
	return kb, huge
}

// shared is data of the program that has been written to: it must survive.
var shared = []string{"before"}

func TestProgramsPagesAreGivenBack(t *testing.T) {
	program, err := os.ReadFile("/proc/self/exe") // into the kernel's cache, so that all of it can be mapped
	if err != nil {
		t.Fatal(err)
	}
	shared[0] = "after"
	_ = telemetryOnce(t)
	before, _ := resident(t)
	giveBack()
	after, huge := resident(t)
	if after >= before || before == 0 {
		t.Errorf("%d KB of %d before, %d KB after", before, len(program)>>10, after)
	}
	if _, err := os.Stat("/sys/kernel/mm/transparent_hugepage"); err == nil && huge > 0 { // else the kernel knows no such pieces
		t.Errorf("%d mappings of the program may come back in pieces of 2 MB", huge)
	}
	if shared[0] != "after" {
		t.Error("what was written is gone")
	}
}

// telemetryOnce runs a good part of the program.
func telemetryOnce(t *testing.T) *station {
	t.Helper()
	s := newStation(t, t.TempDir()+"/buffer", testKey(t))
	if err := s.in.accept(t.Context(), lineDelivery(t, `{"id":1,"observations":[]}`), true); err != nil {
		t.Fatal(err)
	}
	return s
}

func testKey(t *testing.T) seal.PrivateKey {
	t.Helper()
	key, err := seal.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}
