package ca

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"wardlink/enroll/verify"
)

// One address that floods is refused; the others and, after a while, it are not. Memory stays bounded whatever addresses come.
func TestSources(t *testing.T) {
	c := &clock{at: time.Now()}
	s := newSources(c.now, 2)
	took := func(peer string) (n int) {
		for s.allow(peer) {
			n++
		}
		return n
	}
	if n := took("192.0.2.1:1"); n != 2*perEnrolment*burstTime {
		t.Errorf("%d at once", n)
	}
	if s.allow("192.0.2.1:2") || s.allow("[::ffff:192.0.2.1]:3") {
		t.Error("another port is another source")
	}
	if !s.allow("192.0.2.2:1") {
		t.Error("another address is the same source")
	}
	took("[2001:db8::1]:1")
	if s.allow("[2001:db8::2]:1") || !s.allow("[2001:db8:0:1::1]:1") {
		t.Error("expected the /64 to be the source")
	}
	c.pass(-time.Hour)
	if s.allow("192.0.2.1:1") {
		t.Error("a clock that goes back gives tokens")
	}
	c.pass(time.Second)
	if n := took("192.0.2.1:1"); n != 2*perEnrolment {
		t.Errorf("%d after a second", n)
	}
	// Who floods from many addresses is hardly in anybody's way.
	for i := range 16 {
		took(fmt.Sprintf("10.0.0.%d:1", i))
	}
	refused := 0
	for i := range 1000 {
		if !s.allow(fmt.Sprintf("203.0.%d.%d:1", i>>8, i&255)) {
			refused++
		}
	}
	if refused > 20 {
		t.Errorf("%d of 1000 honest addresses are refused", refused)
	}
}

// TestFloodOfAccounts: an address that makes accounts without end is told to wait, with the status upon which clients do.
func TestFloodOfAccounts(t *testing.T) {
	now := time.Now() // the bucket stays as it is, however long this takes
	h := hospitalOf(t, func(c *Config) {
		c.PerSource = 1
		c.Now = func() time.Time { return now }
	})
	board := newSoftBoard(t, h.server.URL, h.server.Client())
	for i := 0; ; i++ {
		client, err := board.newClient()
		if err != nil {
			t.Fatal(err)
		}
		if _, err = client.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); err == nil {
			if i >= perEnrolment*burstTime {
				t.Fatalf("%d accounts", i+1)
			}
			continue
		}
		refusedWith(t, "the account beyond", err, "rateLimited")
		if problem, ok := err.(*acme.Error); !ok || problem.StatusCode != http.StatusTooManyRequests {
			t.Errorf("%v", err)
		}
		break
	}
	var challenge verify.Challenge
	if err := board.Post(t.Context(), "/attestation/attest", board.Request, &challenge); err == nil || !strings.Contains(err.Error(), "429") {
		t.Errorf("a challenge for an address that floods: %v", err)
	}
}
