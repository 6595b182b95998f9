package agent

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"wardlink/enroll"
)

// TestShownCertificate: one that has ended is shown for 72 hours by the hospital's time, since its CA may be down; and as long as the time
// is not known, since then nobody can say that it has ended.
func TestShownCertificate(t *testing.T) {
	end := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	wall := &handWall{end}
	a := &Agent{time: keeperAt(t, filepath.Join(t.TempDir(), "time"), 1, wall)}
	if _, _, err := a.shown(); !errors.Is(err, errNoIdentity) {
		t.Errorf("before the first certificate: %v", err)
	}
	a.identity = &enroll.Identity{Gateway: "gw-1", Certificate: tls.Certificate{Certificate: [][]byte{{1}}, Leaf: &x509.Certificate{NotAfter: end}}, NotAfter: end}
	wall.at = end.AddDate(1, 0, 0)
	a.time.raise(end.Add(100*time.Hour), "a hospital's clock that was wrong once")
	if _, gateway, err := a.shown(); err != nil || gateway != "gw-1" {
		t.Errorf("while the time is not known: %v", err)
	}
	for _, tc := range []struct {
		after time.Duration
		shown bool
	}{{-time.Hour, true}, {time.Hour, true}, {71 * time.Hour, true}, {72 * time.Hour, false}, {400 * 24 * time.Hour, false}} {
		if err := a.time.learn(end.Add(tc.after), a.time.mono(), a.time.mono(), "h:1"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := a.shown(); (err == nil) != tc.shown || err != nil && !errors.Is(err, errNoIdentity) {
			t.Errorf("%s after its end: %v", tc.after, err)
		}
	}
}
