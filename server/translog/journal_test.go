package translog

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
)

// TestRealJournal drains the journal that the server has, across a restart of both.
func TestRealJournal(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	jc := journal.Config{Dir: filepath.Join(base, "journal"), Node: 7, Consumers: []string{consumer}}
	if err := journal.Create(jc); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "log")
	create(t, testConfig(t, dir, nil))
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	for range 2 {
		j, err := journal.Open(jc)
		if err != nil {
			t.Fatal(err)
		}
		l, stop := start(t, testConfig(t, dir, j))
		for n := range uint64(100) {
			if n%10 == 0 {
				ev := audit.Event{Type: audit.ServerStarted, Actor: audit.Actor{ID: "server"}, Outcome: audit.Success}
				if err := journal.AppendEvent(ctx, j, ev); err != nil {
					t.Fatal(err)
				}
				continue
			}
			row := makeRow(n)
			row.ID = j.NextID()
			head, err := audit.EncodeRow(row)
			if err != nil {
				t.Fatal(err)
			}
			if err := j.Append(ctx, journal.Entry{ID: row.ID, Kind: journal.KindPublish, Head: head, Blob: []byte(canary)}); err != nil {
				t.Fatal(err)
			}
		}
		waitFor(t, l, 50)
		stop()
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, vkey := testKey()
	r, err := audit.Verify(dir, vkey)
	if err != nil || r.Events != 20 || r.Rows != 180 {
		t.Errorf("Verify: %+v, %v", r, err)
	}
	noCanary(t, dir)
}
