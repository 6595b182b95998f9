package agent

import (
	"log/slog"
	"sync"
	"time"

	"wardlink/buffer"
	"wardlink/telemetry"
)

// resendPause is the least time between two walks that the hospital asks for; the last question within it counts once it is over.
const resendPause = 5 * time.Second

// resender brings what a restored hospital asks for again. The document is not signed, since ingest, which may not be what it was, can bring about
// nothing by it but that sealed batches are sent to it once more; how much of that there is has an end: allowance bytes a day.
type resender struct {
	buf       *buffer.Buffer
	log       *slog.Logger
	allowance int64 // bytes a day: twice the buffer's cap
	now       func() time.Time

	mu     sync.Mutex
	next   *telemetry.Resend // asked for and not begun
	walk   *buffer.Delivered // nil: nothing is brought
	begun  time.Time
	before uint64    // brought before this walk
	day    time.Time // since when spent counts
	spent  int64
	status ResendStatus
	gone   []buffer.Held
}

// ResendStatus says what the hospital asked for again since the start.
type ResendStatus struct {
	Asked   uint64 `json:"asked"`             // times
	Brought uint64 `json:"brought"`           // batches handed to the network once more
	Gone    uint64 `json:"gone"`              // numbers of batches that it lacks and this gateway holds no more, of the last question
	Working bool   `json:"working"`           // there is more to bring
	Limited bool   `json:"limited,omitempty"` // the day's allowance is used up
}

// ask takes a document of the server.
func (r *resender) ask(body []byte) error {
	doc, err := telemetry.DecodeResend(body)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = &doc
	r.status.Asked++
	return nil
}

// again is uplink.Config.Again.
func (r *resender) again(max int) ([]buffer.Batch, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if age := now.Sub(r.day); age >= 24*time.Hour || age < 0 {
		r.day, r.spent, r.status.Limited = now, 0, false
	}
	if age := now.Sub(r.begun); r.next != nil && (age >= resendPause || age < 0) {
		r.begin(*r.next, now)
		r.next = nil
	}
	if r.walk == nil {
		return nil, nil
	}
	if r.spent >= r.allowance {
		if !r.status.Limited {
			r.log.Warn("the hospital asks for so much again that the rest waits until tomorrow", "bytes", r.spent)
		}
		r.status.Limited = true
		return nil, nil
	}
	batches, err := r.walk.Next(max)
	if err != nil {
		return nil, err
	}
	if len(batches) == 0 {
		r.walk, r.status.Working = nil, false
		if n := r.status.Brought - r.before; n > 0 {
			r.log.Info("what the hospital asked for again is sent", "batches", n, "gone", r.status.Gone)
		}
		return nil, nil
	}
	for _, b := range batches {
		r.spent += int64(len(b.Frame))
		r.status.Brought++
	}
	return batches, nil
}

func (r *resender) begin(doc telemetry.Resend, now time.Time) {
	var held []buffer.Held
	for _, h := range doc.Held {
		one := buffer.Held{Epoch: h.Epoch, Lane: uint8(h.Lane)}
		for _, s := range h.Runs {
			one.Runs = append(one.Runs, buffer.Run{First: s.First, Last: s.Last})
		}
		held = append(held, one)
	}
	r.walk, r.begun = r.buf.Delivered(held), now
	r.before, r.gone = r.status.Brought, nil
	former := r.status.Gone
	r.status.Gone, r.status.Working = 0, true
	for _, g := range r.walk.Gone() {
		if telemetry.Lane(g.Lane) == telemetry.LaneSelf { // reports that newer ones took the place of
			continue
		}
		r.gone = append(r.gone, g)
		for _, run := range g.Runs {
			r.status.Gone += run.Last - run.First + 1
		}
	}
	if r.status.Gone > former {
		r.log.Error("the hospital has lost batches that this gateway delivered and holds no more", "batches", r.status.Gone)
	}
}

// state is for the status.
func (r *resender) state() ResendStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.status
}

// lost adds to accounts of the buffer what neither the hospital nor this gateway has any more.
func (r *resender) lost(accounts []buffer.Account) []buffer.Account {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.gone {
		known := false
		for i := range accounts {
			if a := &accounts[i]; a.Epoch == g.Epoch && a.Lane == g.Lane {
				a.Lost, known = buffer.Join(append(a.Lost, g.Runs...)), true
			}
		}
		if !known {
			accounts = append(accounts, buffer.Account{Epoch: g.Epoch, Lane: g.Lane, Next: g.Runs[len(g.Runs)-1].Last + 1, Lost: g.Runs})
		}
	}
	return accounts
}
