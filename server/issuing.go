package server

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/server/ca"
	"wardlink/server/keys"
)

// How often the server looks whether another issuing CA was prepared, and at every which look whether its CA could issue.
const (
	preparedInterval = 5 * time.Second
	probeEach        = 6
)

// runCA looks after the CA until ctx ends.
func (s *Server) runCA(ctx context.Context) error {
	tick := time.NewTicker(preparedInterval)
	defer tick.Stop()
	for looks := 0; ; looks++ {
		if next, err := keys.Prepared(s.dir); looks%probeEach == 0 || err == nil && next != nil {
			s.lookAfterCA(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// watchHospital reads the hospital's certificate again when it is another, until ctx ends.
func (s *Server) watchHospital(ctx context.Context) error {
	tick := time.NewTicker(preparedInterval * probeEach)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.readHospital(); err != nil {
			s.log.Error("the hospital's certificate cannot be read again; the one in use goes on", "error", err)
		}
	}
}

// lookAfterCA takes up an issuing CA that was prepared, and has the CA look at itself. Nothing here ends the server.
func (s *Server) lookAfterCA(ctx context.Context) {
	s.takeUpIssuing(ctx)
	was := s.ca.Health()
	now := s.ca.Probe(ctx)
	switch {
	case was.Well && !now.Well:
		s.log.Error("the CA cannot issue certificates", "reason", now.Reason, "expired_grace", s.cfg.ExpiredGrace.String())
	case !was.Well && now.Well:
		s.log.Info("the CA issues certificates again")
	}
}

func (s *Server) takeUpIssuing(ctx context.Context) {
	if err := s.adoptIssuing(ctx); err != nil {
		s.log.Error("the prepared issuing CA cannot be taken up; the present one goes on", "error", err)
	}
}

// adoptIssuing takes up an issuing CA that was prepared in this directory, or that another process with the service, or who copies its files here, has
// put in the present one's place.
func (s *Server) adoptIssuing(ctx context.Context) error {
	former := s.ca.Issuer()
	cert, key, err := keys.AdoptIssuing(s.dir, s.keys.Root, func(c *x509.Certificate, k crypto.Signer) error { return s.ca.CheckIssuer(c, k) })
	if err == nil && cert == nil {
		cert, key, err = keys.Issuing(s.dir)
	}
	if err != nil || cert.Equal(former) {
		return err
	}
	if err := s.ca.SetIssuer(cert, key); err != nil {
		return err
	}
	s.log.Info("another issuing CA is in use", "serial", ca.Serial(cert), "not_after", cert.NotAfter.UTC().Format(time.RFC3339))
	detail := certificateDetail(cert)
	detail["former"] = ca.Serial(former)
	s.own(ctx, audit.Event{Type: audit.CARotated, Target: cert.Subject.CommonName, Detail: detail})
	return nil
}

// issuingNeeds is what the CA asks of others before it hands out a certificate: an event in the journal. The registry's row is in the database in which the
// CA's own tables are, and whether that takes writes the CA's probe tells.
func (s *Server) issuingNeeds(context.Context) error {
	if err := s.journal.Health(); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

func certificateDetail(cert *x509.Certificate) map[string]string {
	spki := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return map[string]string{
		"serial": ca.Serial(cert), "spki_sha256": hex.EncodeToString(spki[:]),
		"not_before": cert.NotBefore.UTC().Format(time.RFC3339), "not_after": cert.NotAfter.UTC().Format(time.RFC3339),
	}
}

// PrepareIssuing has the root sign the next issuing CA and puts it beside the present one, where a running server takes it up within a
// minute and any other at its next start. It needs the passphrase of the recovery file, and runs beside a server or without. Its event
// is in the database before the files exist.
func PrepareIssuing(ctx context.Context, dir, passphrase string) (*x509.Certificate, error) {
	c, err := LoadConfig(dir)
	if err != nil {
		return nil, err
	}
	next, err := keys.MakeIssuing(dir, c.TrustDomain, passphrase, time.Now())
	if err != nil {
		return nil, err
	}
	detail := certificateDetail(next.Certificate)
	detail["by"] = "wardlink-server rotate issuing"
	if err := leave(ctx, dir, audit.Event{Type: audit.CAMade, Target: next.Certificate.Subject.CommonName, Detail: detail}, nil); err != nil {
		return nil, fmt.Errorf("the issuing CA is withheld, its event cannot be kept: %w", err)
	}
	return next.Certificate, next.Store()
}

// AwaitIssuing waits until a running server has taken the prepared issuing CA up; false when ctx ends first.
func AwaitIssuing(ctx context.Context, dir string) (bool, error) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		next, err := keys.Prepared(dir)
		if err != nil || next == nil {
			return err == nil, err
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-tick.C:
		}
	}
}
