package main

import (
	"strings"
	"testing"

	"wardlink/audit"
	"wardlink/e2e/load"
	"wardlink/server/journal"
	"wardlink/telemetry/seal"
)

// entriesOf is a journal in memory.
type entriesOf []journal.Entry

func (e entriesOf) Read(from uint64, max int) ([]journal.Entry, error) {
	if from > uint64(len(e)) {
		return nil, nil
	}
	return e[from-1:], nil
}

// TestWhatTheJournalMustHold: each acknowledged batch once, whole, with its audit row; anything else refuses the figure.
func TestWhatTheJournalMustHold(t *testing.T) {
	epoch := [16]byte{1}
	row := func(number uint64) audit.Row {
		return audit.Row{ID: audit.EventID{1}, Session: audit.EventID{2}, Gateway: load.Name(0), Epoch: epoch, Number: number, Received: 1,
			Serial: "ab", Peer: "127.1.0.1:5", Verdict: audit.Accepted, Frame: seal.FrameHash([]byte("frame"))}
	}
	entry := func(r audit.Row) journal.Entry {
		head, err := audit.EncodeRow(r)
		if err != nil {
			t.Fatal(err)
		}
		return journal.Entry{Kind: journal.KindPublish, Head: head, Blob: []byte("frame")}
	}
	bare, torn := row(1), row(1)
	bare.Session = audit.EventID{}
	torn.Frame = seal.FrameHash([]byte("another"))
	for _, c := range []struct {
		name string
		in   []journal.Entry
		want string
	}{
		{"all", []journal.Entry{entry(row(0)), entry(row(1)), {Kind: journal.KindEvent}}, ""},
		{"none", nil, "not in the journal"},
		{"one is missing", []journal.Entry{entry(row(1))}, "not in the journal"},
		{"one twice", []journal.Entry{entry(row(0)), entry(row(1)), entry(row(1))}, "twice"},
		{"one that was not acknowledged", []journal.Entry{entry(row(0)), entry(row(1)), entry(row(2))}, "never acknowledged"},
		{"no session", []journal.Entry{entry(row(0)), entry(bare)}, "which session"},
		{"another frame", []journal.Entry{entry(row(0)), entry(torn)}, "its frame"},
		{"no row", []journal.Entry{{Kind: journal.KindPublish, Head: []byte{1}}}, "its row of the audit"},
	} {
		for i := range c.in {
			c.in[i].Seq = uint64(i + 1)
		}
		_, err := kept(entriesOf(c.in), []load.Batch{{Gateway: 0, Epoch: epoch, Acked: 2}})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v; expected %q", c.name, err, c.want)
		}
	}
}

func TestSyncsAreCountedWhereTheyCount(t *testing.T) {
	const trace = `12 fdatasync(9</srv/journal/1.seg>) = 0
13 fsync(9</srv/journal/1.seg> <unfinished ...>
13 <... fsync resumed>) = 0
12 fdatasync(4</srv/log/tile>) = 0
12 pwrite64(7</srv/journal/sync.blk>, ""..., 40, 0) = 40
12 pwrite64(8</srv/journal/lazy.blk>, ""..., 40, 0) = 40
12 write(5<socket:[123]>, ""..., 40) = 40
`
	opened := func(path string) bool { return strings.HasSuffix(path, "sync.blk") }
	if n := syncs(strings.NewReader(trace), "/srv/journal", opened); n != 3 {
		t.Errorf("%d syncs; expected 3", n)
	}
}

// TestTheChecksBite: a server that stores nothing passes none of the checks that the figure of ours depends on. The run itself shows it again.
func TestTheChecksBite(t *testing.T) {
	if err := audited(entriesOf{}, t.TempDir(), []load.Batch{{Gateway: 0, Epoch: [16]byte{1}, Acked: 1}}); err == nil || !strings.Contains(err.Error(), "not in the journal") {
		t.Errorf("a journal without what was acknowledged: %v", err)
	}
	if err := audited(entriesOf{}, t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "the log has") {
		t.Errorf("a server without a log: %v", err)
	}
}
