package agent

import (
	"errors"
	"testing"
)

func never() bool { return false }

// TestAFailedCopyIsNotAcknowledgedForItsPredecessor: copy 2 fails to become durable, so its resend must not be answered by copy 1.
func TestAFailedCopyIsNotAcknowledgedForItsPredecessor(t *testing.T) {
	c := newCopies()
	key := [32]byte{1}
	first, r := c.begin(key, never)
	if r != lead {
		t.Fatalf("role %d", r)
	}
	number := first.number
	c.end(first, nil)
	c.acknowledged(key)
	second, r := c.begin(key, never)
	if r != lead || second.number == number {
		t.Fatalf("role %d, number %d after %d: expected a new message", r, second.number, number)
	}
	failing := second.number
	if _, r := c.begin(key, never); r != follow {
		t.Errorf("the same bytes while the copy is under way: role %d; expected to share its outcome", r)
	}
	c.end(second, errors.New("disk"))
	again, r := c.begin(key, never)
	if r != lead || again.number != failing {
		t.Errorf("after the failure: role %d, number %d; expected to lead with %d again", r, again.number, failing)
	}
	c.end(again, nil)
	if _, r := c.begin(key, never); r != resent {
		t.Errorf("not acknowledged yet: role %d; expected a resend", r)
	}
}

func TestCopiesAreBounded(t *testing.T) {
	c := newCopies()
	for i := range 3 * maxCopies {
		e, r := c.begin([32]byte{byte(i), byte(i >> 8), byte(i >> 16)}, never)
		if r != lead {
			t.Fatal(r)
		}
		if i%2 == 0 {
			c.end(e, errors.New("never acknowledged"))
		} else {
			c.end(e, nil)
		}
	}
	if len(c.byKey) > maxCopies || c.seen.Len() != len(c.byKey) {
		t.Errorf("%d remembered, %d listed; the bound is %d", len(c.byKey), c.seen.Len(), maxCopies)
	}
	// A message that comes all the time does not push out the others.
	c = newCopies()
	quiet, busy := [32]byte{1}, [32]byte{2}
	e, _ := c.begin(quiet, never)
	c.end(e, nil)
	c.acknowledged(quiet)
	for range 3 * maxCopies {
		e, r := c.begin(busy, never)
		if r != lead {
			t.Fatal(r)
		}
		c.end(e, nil)
		c.acknowledged(busy)
	}
	if _, r := c.begin(quiet, func() bool { return true }); r != lead {
		t.Errorf("the quiet message is forgotten: role %d", r)
	}
}
