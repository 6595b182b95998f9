package buffer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"wardlink/internal/child"
	"wardlink/internal/syscalltest"
)

// The test binary runs itself as a child where a process must die, or might.
func TestMain(m *testing.M) {
	syscalltest.Main()
	switch os.Getenv("BUFFER_CHILD") {
	case "":
		os.Exit(m.Run())
	case "write":
		childWrite(os.Getenv("BUFFER_DIR"), os.Getenv("BUFFER_ARG"))
	case "evict":
		childEvict(os.Getenv("BUFFER_DIR"))
	case "damage":
		childDamage(os.Getenv("BUFFER_DIR"))
	case "damage-one":
		childDamageOne(os.Getenv("BUFFER_DIR"), os.Getenv("BUFFER_ARG"))
	case "torn":
		childTorn(os.Getenv("BUFFER_DIR"), os.Getenv("BUFFER_ARG"))
	case "mapped":
		childMapped(os.Getenv("BUFFER_DIR"), os.Getenv("BUFFER_ARG"))
	}
	os.Exit(0)
}

// itself is the test binary as a child, in one of the modes of TestMain.
func itself(t *testing.T, mode, dir, arg string) *exec.Cmd {
	// A child that hangs is killed with the test's own time still left to say so.
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), "BUFFER_CHILD="+mode, "BUFFER_DIR="+dir, "BUFFER_ARG="+arg)
	cmd.Stderr = os.Stderr
	return cmd
}

func childDie(err error) {
	fmt.Fprintln(os.Stderr, "child:", err)
	os.Exit(3)
}

// childWrite appends in three goroutines, one of them over two lanes, and drains in a fourth, until it is killed. A line "+ lane
// number" follows the Append that made it durable, a line "- ..." precedes its Ack. One write(2) a line: what was said was said.
func childWrite(dir, epoch string) {
	c := testConfig(dir)
	c.Cap = 1 << 30
	b, err := open(c)
	if err != nil {
		childDie(err)
	}
	e, err := strconv.Atoi(epoch)
	if err != nil {
		childDie(err)
	}
	var mu sync.Mutex // numbers of a lane must ascend, so writers of one lane take turns in numbering and appending
	next := map[uint8]uint64{}
	write := func(lanes []uint8, size int) {
		for {
			mu.Lock()
			var items []Item
			for _, lane := range lanes {
				items = append(items, itemOf(e, lane, next[lane], size+int(next[lane]%7)*300))
				next[lane]++
			}
			err := b.Append(items)
			mu.Unlock()
			if err != nil {
				childDie(err)
			}
			for _, it := range items {
				fmt.Printf("+ %d %d\n", it.ID.Lane, it.ID.Number)
			}
		}
	}
	go write([]uint8{1}, 200)
	go write([]uint8{0, 1}, 3000)
	go write([]uint8{2}, 60_000)
	for {
		got, err := b.Take(5)
		if err != nil {
			childDie(err)
		}
		for _, g := range got {
			if g.ID.Number%3 == 0 {
				fmt.Printf("- %x %d %d\n", g.ID.Epoch, g.ID.Lane, g.ID.Number)
				b.Ack(g.ID)
			}
		}
		<-b.Changed()
	}
}

// TestKill kills a writer with SIGKILL at random moments and wants everything it said was durable, and nothing that does not verify.
func TestKill(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	dir := filepath.Join(t.TempDir(), "buffer")
	c := testConfig(dir)
	c.Cap = 1 << 30
	if err := Create(c); err != nil {
		t.Fatal(err)
	}
	durable, maybe := map[ID]bool{}, map[ID]bool{}
	const rounds = 24
	for round := range rounds {
		err := child.Killed(itself(t, "write", dir, strconv.Itoa(round)), 1+rng.IntN(40), time.Duration(rng.IntN(8000))*time.Microsecond, func(line string) {
			var id ID
			var lane, epoch int
			if _, err := fmt.Sscanf(line, "+ %d %d", &lane, &id.Number); err == nil {
				id.Lane, id.Epoch = uint8(lane), epochOf(round)
				durable[id] = true
				return
			}
			var hex []byte
			if _, err := fmt.Sscanf(line, "- %x %d %d", &hex, &lane, &id.Number); err != nil {
				t.Fatalf("line %q", line)
			}
			copy(id.Epoch[:], hex)
			fmt.Sscanf(string(id.Epoch[:]), "epoch %d", &epoch)
			id.Lane = uint8(lane)
			maybe[id] = true
		})
		if err != nil {
			t.Fatal(err)
		}
		if r := mustCheck(t, dir); !r.OK() {
			t.Fatalf("round %d: %+v", round, r)
		}
		b, err := open(c)
		if err != nil {
			t.Fatal(err)
		}
		got := map[ID]bool{}
		for _, g := range takeAll(t, b) {
			if got[g.ID] {
				t.Fatalf("round %d: %s given out twice", round, g.ID)
			}
			got[g.ID] = true
		}
		for id := range durable {
			if !got[id] && !maybe[id] {
				t.Fatalf("round %d: %s was durable and is lost", round, id)
			}
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(durable) < rounds*5 {
		t.Fatalf("only %d batches were written in %d rounds; the test tests nothing", len(durable), rounds)
	}
	t.Logf("%d batches durable, %d acknowledged", len(durable), len(maybe))
}
