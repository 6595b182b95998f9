package records_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/records"
	"wardlink/server/sqldb"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

var operator = audit.Actor{ID: "spiffe://ward.example/operator/jane", Serial: "07"}

// bounded opens records whose room for frames is small.
func (f *fixture) bounded(gateway, all int64) *records.Records {
	f.t.Helper()
	outbox, err := sqldb.NewOutbox(f.db, f.journal, nil)
	if err != nil {
		f.t.Fatal(err)
	}
	r, err := records.New(records.Config{
		DB: f.db, Outbox: outbox, Journal: f.journal, Registry: f.keys, Key: f.key, Pseudonym: pseudonym,
		Log: slog.New(slog.NewTextHandler(&f.log, nil)), Now: f.clock.Now, GatewayRoom: gateway, Room: all,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func (f *fixture) dead(r *records.Records, filter records.BatchFilter) []records.DeadBatch {
	f.t.Helper()
	list, err := r.Dead(f.ctx, filter, 1000)
	if err != nil || list.Total != int64(len(list.Batches)) {
		f.t.Fatalf("%d of %d listed: %v", len(list.Batches), list.Total, err)
	}
	return list.Batches
}

// panicsOn is a decoder with a fault: it dies of batches that have text in them.
func panicsOn(text string) func([]byte) (telemetry.Batch, error) {
	return func(plain []byte) (telemetry.Batch, error) {
		b, err := telemetry.Decode(plain)
		for _, m := range b.Messages {
			if m.ControlID == text {
				panic("a fault of the decoder")
			}
		}
		return b, err
	}
}

// spoil changes a byte of the ciphertext and makes the hash behind it fit, as a broken ingest could.
func spoil(frame []byte) []byte {
	frame = bytes.Clone(frame)
	frame[len(frame)-40] ^= 1
	sum := sha(frame[:len(frame)-32])
	return append(frame[:len(frame)-32], sum[:]...)
}

// Whatever a batch dies of, its neighbours do not notice, and each can be seen and opened again by itself.
func TestEachKindOfDeadBatchDiesAlone(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	stranger := f.gateway("gw-2").enrol()
	other, err := seal.GenerateKey() // a gateway whose kit is of another hospital
	if err != nil {
		t.Fatal(err)
	}
	if stranger.period, err = seal.NewPeriod(other.Public(), stranger.epoch, f.clock.Now()); err != nil {
		t.Fatal(err)
	}
	stranger.bring("gw-2")
	good := 0
	next := func() {
		good++
		g.publish("gw-1", g.sealBatch(message("p1", good, fmt.Sprint(good))))
	}
	next()
	g.publish("gw-1", g.seal([]byte("no batch")))
	next()
	g.publish("gw-1", spoil(g.sealBatch(message("p1", 100, "0"))))
	next()
	stranger.publish("gw-2", stranger.sealBatch(message("p2", 1, "61")))
	next()
	g.publish("gw-1", g.sealBatch(message("p1", 666, "bug")))
	next()
	r := f.open()
	r.SetDecode(panicsOn("666"))
	f.settleWith("four dead, all others stored", r, func(s records.Stats) bool { return s.Dead == 4 && s.Batches == int64(good) && s.Pending == 0 })
	if got := f.values("p1", 100); !slices.Equal(got, []string{"5", "4", "3", "2", "1"}) {
		t.Error(got)
	}
	var reasons []string
	for _, d := range f.dead(r, records.BatchFilter{}) {
		if d.Attempts != 3 || !d.Kept || d.Bytes == 0 || d.Received == 0 || d.Frame == [32]byte{} {
			t.Errorf("%+v", d)
		}
		reasons = append(reasons, d.Gateway+": "+d.Reason)
	}
	if want := []string{
		"gw-1: its contents cannot be decoded", "gw-1: its seal does not open", "gw-1: opening it panics",
		"gw-2: its sealing record does not open with this records key",
	}; !slices.Equal(reasons, want) {
		t.Errorf("%q", reasons)
	}
	if got := f.dead(r, records.BatchFilter{Gateway: "gw-1", Reason: "panics"}); len(got) != 1 || got[0].ID.Number != 6 {
		t.Errorf("by reason: %+v", got)
	}

	// The fault is mended: all of gw-1 is tried again. One is stored, two are what they are.
	r = f.open()
	done, err := r.Reopen(f.ctx, operator, "10.0.0.9:1", records.BatchFilter{Gateway: "gw-1"})
	if err != nil || done.Batches != 3 || done.Pending != 3 {
		t.Fatalf("%+v %v", done, err)
	}
	f.settleWith("tried again", r, func(s records.Stats) bool { return s.Dead == 3 && s.Batches == int64(good+1) && s.Pending == 0 })
	now, err := r.Reopening(f.ctx, done.ID)
	if err != nil || now.Stored != 1 || now.Dead != 2 || now.Pending != 0 || len(now.Outcomes) != 2 {
		t.Errorf("%+v %v", now, err)
	}
	if got := f.values("p1", 100); len(got) != good+1 {
		t.Error(got)
	}
	evs := f.journal.Events(t)
	i := slices.IndexFunc(evs, func(ev audit.Event) bool { return ev.Type == audit.BatchReopened })
	if i < 0 || evs[i].Actor != operator || evs[i].Count != 3 || evs[i].Target != "gw-1" || evs[i].Peer == "" {
		t.Errorf("%+v", evs)
	}
	if _, err := r.Reopen(f.ctx, operator, "", records.BatchFilter{Gateway: "gw-9"}); err != records.ErrNoBatch {
		t.Error(err)
	}
	if _, err := r.Reopening(f.ctx, done.ID+1); err != records.ErrNotFound {
		t.Error(err)
	}
}

// A gateway that sends nothing but dead batches fills its room and no other's, and nothing of it is thrown away: what found no room
// is in the journal, and is opened from there once there is room.
func TestDeadBatchesAreBoundedAndNotLost(t *testing.T) {
	f := setup(t)
	g, other := f.gateway("gw-1").enrol().bring("gw-1"), f.gateway("gw-2").enrol().bring("gw-2")
	for n := range 20 {
		g.publish("gw-1", g.sealBatch(message("p1", n, strings.Repeat("7", 500))))
	}
	bug := func([]byte) (telemetry.Batch, error) { panic("a fault of the decoder") }
	r := f.bounded(3000, 1<<20)
	r.SetDecode(bug)
	f.settleWith("all dead", r, func(s records.Stats) bool { return s.Dead == 20 && s.Pending == 0 })
	other.publish("gw-2", other.sealBatch(message("p2", 1, "61")))
	f.settleWith("the other's too", r, func(s records.Stats) bool { return s.Dead == 21 && s.Pending == 0 })
	s, err := r.Stats(f.ctx)
	if err != nil || s.DeadUnkept == 0 || s.DeadUnkept > 19 || s.KeptBytes == 0 || s.KeptBytes > 3000+2000 {
		t.Fatalf("%+v %v", s, err)
	}
	if d := f.dead(r, records.BatchFilter{Gateway: "gw-2"}); len(d) != 1 || !d[0].Kept {
		t.Errorf("another gateway's batch: %+v", d)
	}
	told := 0
	for _, ev := range f.journal.Events(t) {
		if ev.Type == audit.BatchDead && strings.HasPrefix(ev.Detail["frame"], "in the journal only") {
			told++
		}
	}
	if int64(told) != s.DeadUnkept {
		t.Errorf("%d events say that the room is full, %d batches are not kept", told, s.DeadUnkept)
	}

	// The fault is mended. Each reopening stores what has room, and makes room.
	r = f.bounded(3000, 1<<20)
	for round := int64(0); len(f.dead(r, records.BatchFilter{Gateway: "gw-1"})) > 0; round++ {
		if round == 20 {
			t.Fatalf("still dead: %+v", f.dead(r, records.BatchFilter{Gateway: "gw-1"}))
		}
		if _, err := r.Reopen(f.ctx, operator, "", records.BatchFilter{Gateway: "gw-1"}); err != nil {
			t.Fatal(err)
		}
		f.settleWith("reopened", r, func(s records.Stats) bool { return s.Pending == 0 })
	}
	if got := f.values("p1", 100); len(got) != 20 {
		t.Errorf("%d values", len(got))
	}
	if s, err := r.Stats(f.ctx); err != nil || s.DeadUnkept != 0 || s.KeptBytes > 2000 {
		t.Errorf("%+v %v", s, err)
	}
}

// A batch whose key never comes does not wait for ever, and one whose key comes late is opened by itself.
func TestBatchThatWaitsForItsKeyTooLong(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1")
	g.publish("gw-1", g.sealBatch(message("p1", 1, "70")))
	f.until("pending", func(s records.Stats) bool { return s.Pending == 1 })
	f.clock.add(8 * 24 * time.Hour)
	f.until("dead", func(s records.Stats) bool { return s.Dead == 1 && s.Pending == 0 })
	g.enrol().bring("gw-1")
	f.until("stored", stored(1))
	if got := f.journal.Lines(t); !slices.Equal(got, []string{"batch.dead gw-1 failed", "batch.reopened gw-1 success"}) {
		t.Error(got)
	}
}
