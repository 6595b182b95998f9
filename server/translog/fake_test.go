package translog

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"wardlink/audit"
	"wardlink/server/journal"
)

// canary stands in every frame; no file of the log may hold it.
const canary = "CANARY-1f0c-frame-bytes"

// fakeJournal is a journal in memory, stricter than a real one: it refuses a cursor that goes back or past the end, deletes what
// the cursor has passed at once when told to forget, and gives every reader its own bytes and scribbles over those it gave before.
type fakeJournal struct {
	mu      sync.Mutex
	entries []journal.Entry
	first   uint64 // position of entries[0]
	cursor  uint64
	forget  bool // delete entries below the cursor, except the one at it
	grown   chan struct{}
	given   [][]byte
	failSet error  // next SetCursor fails with it
	lost    uint64 // entries that cut took out
}

func newFakeJournal() *fakeJournal { return &fakeJournal{first: 1, grown: make(chan struct{})} }

func (j *fakeJournal) ReadHeads(from uint64, max int) ([]journal.Entry, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if from == 0 || max <= 0 {
		return nil, fmt.Errorf("fake journal: ReadHeads(%d, %d)", from, max)
	}
	for _, b := range j.given {
		clear(b)
	}
	j.given = nil
	var out []journal.Entry
	for _, e := range j.entries {
		if e.Seq >= from && len(out) < max {
			e.Head, e.Blob = slices.Clone(e.Head), nil
			j.given = append(j.given, e.Head)
			out = append(out, e)
		}
	}
	return out, nil
}

func (j *fakeJournal) Wait(ctx context.Context, after uint64) error {
	for {
		j.mu.Lock()
		last, grown := j.end(), j.grown
		j.mu.Unlock()
		if last > after {
			return nil
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (j *fakeJournal) Cursor(name string) uint64 {
	if name != "log" {
		panic("unknown consumer " + name)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.cursor
}

func (j *fakeJournal) Resume(name string) (uint64, error) { return j.Cursor(name), nil }

func (j *fakeJournal) SetCursor(name string, seq uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.failSet; err != nil {
		j.failSet = nil
		return err
	}
	if name != "log" || seq < j.cursor || seq > j.end() {
		return fmt.Errorf("fake journal: cursor %s from %d to %d", name, j.cursor, seq)
	}
	j.cursor = seq
	for j.forget && j.first < seq {
		j.entries, j.first = j.entries[1:], j.first+1
	}
	return nil
}

// append adds entries made by makeEntry and gives the last position.
func (j *fakeJournal) append(t testing.TB, n int) uint64 {
	t.Helper()
	j.mu.Lock()
	defer j.mu.Unlock()
	for range n {
		j.entries = append(j.entries, makeEntry(t, j.end()+1))
	}
	close(j.grown)
	j.grown = make(chan struct{})
	return j.end()
}

// end is the last position given out. Under mu.
func (j *fakeJournal) end() uint64 { return j.first + uint64(len(j.entries)) + j.lost - 1 }

func entryID(seq uint64) audit.EventID {
	var id audit.EventID
	id[3] = 7
	binary.BigEndian.PutUint64(id[8:], seq)
	return id
}

// isEvent says which positions of a fake journal are events; the others are publishes.
func isEvent(seq uint64) bool { return seq%5 == 0 || seq%17 == 3 }

// makeEntry is the journal's entry at seq: the same whoever asks, so that a killed process's journal can be made again.
func makeEntry(t testing.TB, seq uint64) journal.Entry {
	t.Helper()
	e := journal.Entry{Seq: seq, ID: entryID(seq), Kind: journal.KindPublish, Blob: []byte(canary)}
	var err error
	if isEvent(seq) {
		e.Kind = journal.KindEvent
		if seq%2 == 1 {
			e.Kind = journal.KindSealing
		}
		e.Head, err = audit.EncodeEvent(audit.Event{
			ID: e.ID, Type: audit.SessionOpened, Time: firstTime + 1000*int64(seq), Outcome: audit.Success,
			Actor:  audit.Actor{ID: "spiffe://ward.example/gateway/gw-1", Serial: "0a"},
			Detail: map[string]string{"seq": strconv.FormatUint(seq, 10)},
		})
	} else {
		e.Head, err = audit.EncodeRow(makeRow(seq))
	}
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func makeRow(seq uint64) audit.Row {
	return audit.Row{
		ID: entryID(seq), Session: entryID(5), Gateway: "gw-1", Epoch: [16]byte{1}, Lane: 1, Number: seq,
		Frame: sha256.Sum256([]byte(canary)), Received: firstTime + 1000*int64(seq), Serial: "0a", Peer: "192.0.2.7:40000", Verdict: "accepted",
	}
}

// firstTime and one second per position: the time of a fake journal's acts in Unix milliseconds.
const firstTime = 1_700_000_000_000

const testOrigin = "ward.example/log/1"

// testKey is one key for the whole test binary, so that a child process signs with its parent's.
var testKey = sync.OnceValues(func() (skey, vkey string) {
	skey, vkey, err := NewKey(testOrigin)
	if err != nil {
		panic(err)
	}
	return skey, vkey
})

func signer(t testing.TB, skey string) note.Signer {
	t.Helper()
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testConfig(t testing.TB, dir string, j Journal) Config {
	t.Helper()
	skey, _ := testKey()
	return Config{Dir: dir, Origin: testOrigin, Signer: signer(t, skey), Journal: j, Interval: 20 * time.Millisecond, Drain: 20 * time.Second}
}

// start creates the log if dir has none, opens and runs it. stop ends it and fails the test unless it drained.
func start(t testing.TB, cfg Config) (l *Log, stop func()) {
	t.Helper()
	l = open(t, cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	stopped := false
	stop = func() {
		t.Helper()
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return l, stop
}

func open(t testing.TB, cfg Config) *Log {
	t.Helper()
	l, err := Open(cfg)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return l
}

func create(t testing.TB, cfg Config) {
	t.Helper()
	if err := Create(cfg); err != nil {
		t.Fatalf("Create: %v", err)
	}
}

func waitFor(t testing.TB, l *Log, seq uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := l.WaitFor(ctx, seq); err != nil {
		t.Fatal(err)
	}
}

// verify runs the offline verifier and compares the log with the journal's first last positions: each exactly once.
func verify(t testing.TB, dir string, last uint64) audit.Report {
	t.Helper()
	_, vkey := testKey()
	report, err := audit.Verify(dir, vkey)
	if err != nil {
		t.Fatalf("Verify: %v", err)
	}
	times := timesInLog(t, dir)
	for seq := uint64(1); seq <= last; seq++ {
		if n := times[entryID(seq)]; n != 1 {
			t.Errorf("journal entry %d is %d times in the log", seq, n)
		}
	}
	if len(times) != int(last) {
		t.Errorf("the log holds %d acts, the journal %d", len(times), last)
	}
	return report
}

// timesInLog says how often each event and each row of a publish is in a log.
func timesInLog(t testing.TB, dir string) map[audit.EventID]int {
	t.Helper()
	times := map[audit.EventID]int{}
	for it, err := range audit.List(dir, audit.Filter{Publishes: true}) {
		if err != nil {
			t.Fatal(err)
		}
		if it.Row != nil {
			times[it.Row.ID]++
		} else {
			times[it.Event.ID]++
		}
	}
	return times
}
