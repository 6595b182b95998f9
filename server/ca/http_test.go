package ca

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/enroll/verify"
)

// TestHangingUpKeepsNoRefusalOutOfTheLog: the one who is refused must not decide whether that is recorded.
func TestHangingUpKeepsNoRefusalOutOfTheLog(t *testing.T) {
	var got []audit.Event
	c := &CA{cfg: Config{
		Now: time.Now, Log: slog.New(slog.DiscardHandler),
		Events: func(ctx context.Context, ev audit.Event) error {
			if err := ctx.Err(); err != nil { // as the journal's Append does
				return err
			}
			got = append(got, ev)
			return nil
		},
	}}
	ctx, hangUp := context.WithCancel(context.Background())
	hangUp()
	c.denied(ctx, audit.Event{Target: "ABCD", Reason: "gateway is not active"})
	if len(got) != 1 || got[0].Type != audit.Refused || got[0].Outcome != audit.Denied {
		t.Errorf("journaled: %+v", got)
	}
}

// TestPlacesOfOneSource: who takes places and sends nothing has some of them, and the others find theirs.
func TestPlacesOfOneSource(t *testing.T) {
	one, other := source("192.0.2.7:1"), source("192.0.2.8:1")
	for _, row := range []struct{ n, each, most, left int }{{maxLong, maxLongOfOne, maxLongOfOne, maxLongOfOne}, {64, 64, 48, 12}, {1, 1, 1, 0}} {
		p := newPlaces(row.n, row.each)
		for i := range row.most + 3 {
			if got := p.take(one); got != (i < row.most) {
				t.Errorf("%+v: place %d of one source: %t", row, i+1, got)
			}
		}
		others := 0
		for p.take(other) {
			others++
		}
		if others != row.left {
			t.Errorf("%+v: %d for another source", row, others)
		}
		for range row.most {
			p.leave(one)
		}
		for range others {
			p.leave(other)
		}
		if len(p.of) != 0 || p.free != row.n {
			t.Errorf("%+v: %v is kept of those that have left, %d are free", row, p.of, p.free)
		}
	}
}

// TestPlacesOfAll: beyond maxConcurrent requests at a time, whatever their sources, the next one is told when to come back; and gets in once one has left.
func TestPlacesOfAll(t *testing.T) {
	h := hospitalOf(t, nil)
	entered, held := make(chan struct{}, maxConcurrent+1), make(chan struct{})
	h.ca.cfg.Registry = &asked{registryFake: h.registry, by: func(context.Context) {
		entered <- struct{}{}
		<-held
	}}
	board := newSoftBoard(t, "", nil)
	v, err := verify.Attestation(&board.Request, h.ca.trust(), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	row, err := encodeChallenged(v)
	if err != nil {
		t.Fatal(err)
	}
	// ask answers the n-th challenge of a board, from an address of its own.
	ask := func(n int) *httptest.ResponseRecorder {
		plain := fmt.Appendf(nil, "secret %d", n)
		if err := h.ca.authority.Load().store.AddPending(t.Context(), sha256.Sum256(plain), row); err != nil {
			t.Error(err)
		}
		r := httptest.NewRequest(http.MethodPost, secretPath, strings.NewReader(`{"secret": "`+base64.StdEncoding.EncodeToString(plain)+`"}`))
		r.RemoteAddr = fmt.Sprintf("192.0.2.%d:1", n)
		w := httptest.NewRecorder()
		h.ca.ServeHTTP(w, r)
		return w
	}
	var asks sync.WaitGroup
	for n := range maxConcurrent {
		asks.Go(func() {
			if got := ask(n); got.Code == http.StatusServiceUnavailable {
				t.Errorf("request %d: %s", n, got.Body)
			}
		})
	}
	for range maxConcurrent {
		<-entered
	}
	one := make(chan *httptest.ResponseRecorder, 1)
	go func() { one <- ask(maxConcurrent) }()
	select {
	case got := <-one:
		if got.Code != http.StatusServiceUnavailable || got.Header().Get("Retry-After") == "" || !strings.Contains(got.Body.String(), "busy") {
			t.Errorf("one more: %d %v %s", got.Code, got.Header(), got.Body)
		}
	case <-entered:
		t.Error("one more is let in")
	}
	close(held)
	asks.Wait()
	if got := ask(maxConcurrent + 1); got.Code == http.StatusServiceUnavailable {
		t.Errorf("when all have left: %s", got.Body)
	}
}
