package watch

import (
	"testing"
	"time"
)

func TestCertificateEnds(t *testing.T) {
	p := newPost(t)
	start := p.now()
	half := func(subject string, life time.Duration) Term {
		return Term{Subject: subject, NotBefore: start, NotAfter: start.Add(life), Warn: .5, Late: .75, Renewal: "wardlink-server rotate issuing"}
	}
	self := half("server ingest", 100*time.Hour)
	self.Warn, self.Late = .75, .9
	p.set(func() { p.terms = []Term{half("issuing CA", 100*time.Hour), half("root", 1000*time.Hour), self} })
	p.leap(49 * time.Hour)
	p.expect()
	p.leap(90 * time.Minute)
	p.expect("certificate-ends/issuing CA warning")
	p.leap(25 * time.Hour)
	p.expect("certificate-ends/issuing CA critical", "certificate-ends/server ingest warning")
	p.leap(15 * time.Hour)
	p.expect("certificate-ends/issuing CA critical", "certificate-ends/server ingest critical")
	p.leap(30 * time.Hour) // it has ended, and nobody did anything
	p.expect("certificate-ends/issuing CA critical", "certificate-ends/server ingest critical")
	p.set(func() {
		p.terms[0].NotBefore, p.terms[0].NotAfter = p.at, p.at.Add(100*time.Hour)
		p.terms[2].NotBefore, p.terms[2].NotAfter = p.at, p.at.Add(100*time.Hour)
	})
	p.pass(15 * time.Minute)
	p.expect()
}

func TestCAUnwellAndGrace(t *testing.T) {
	p := newPost(t)
	p.set(func() {
		p.ca = CA{Reason: "database: locked", Since: p.at}
		p.sessions = []string{"gw-1", "gw-2 under grace"}
	})
	p.pass(time.Minute)
	p.expect("ca-unwell/server critical", "grace-used/gw-2 warning")
	p.set(func() { p.ca, p.sessions = CA{Well: true}, []string{"gw-1", "gw-2"} })
	p.pass(3 * time.Minute)
	p.expect()
}
