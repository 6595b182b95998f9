package watch

import (
	"testing"
	"time"
)

func TestRecoveryUnsure(t *testing.T) {
	p := newPost(t)
	p.set(func() { p.recovery = p.at })
	p.leap(23 * time.Hour)
	p.expect()
	p.leap(2 * time.Hour)
	p.expect("recovery-unsure/server warning")
	p.set(func() { p.recovery = time.Time{} })
	p.pass(5 * time.Minute)
	p.expect()
}
