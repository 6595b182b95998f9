package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/audit"
	"wardlink/internal/build"
	"wardlink/internal/sdnotify"
	"wardlink/internal/spiffe"
	"wardlink/server/ca"
	"wardlink/server/ingest"
	"wardlink/server/keys"
	"wardlink/server/node"
)

// apiIdentityFile is key and certificate of the operators' port, service/api, in a directory whose process with the service api does not hold the
// CA's keys: by it the processes that do know who asks. It is renewed at half of its life, of 7 days; after a longer rest
// 'wardlink-server rotate api' makes another.
const apiIdentityFile = "keys/api/api.pem"

// holdAttestation keeps the attestation CA of this directory as it is while this process runs, and makes a new one before when it is time: in the
// server's own directory, for all processes with the service must have one and the same, and the others have copies of it.
func (s *Server) holdAttestation() error {
	if _, err := os.Stat(filepath.Join(s.dir, keys.RecoveryFile)); err != nil {
		return nil
	}
	held, renewed, due, err := keys.HoldAttestation(s.dir, s.cfg.TrustDomain, time.Now())
	if held != nil {
		s.closers = append(s.closers, held.Close)
	}
	if renewed {
		s.log.Info("the attestation CA was past half of its life and is a new one")
	}
	if due {
		s.log.Warn("the attestation CA is past half of its life and another process uses it; end every process with the service ca on this directory, then start them again", "dir", s.dir)
	}
	return err
}

// openAuthority opens the CA, or the way to the processes that hold it.
func (s *Server) openAuthority() error {
	if s.parts.Has(ServiceCA) {
		return s.openCA()
	}
	if _, err := s.apiIdentity(); err != nil {
		return err
	}
	s.remote = node.NewAuthority(node.AuthorityConfig{
		TrustDomain: s.cfg.TrustDomain, Root: s.keys.Root, Addresses: s.cfg.CA, Own: s.apiIdentity, Log: s.log,
	})
	s.authority = s.remote
	return nil
}

// apiIdentity reads apiIdentityFile, anew each time: it is renewed through the connections that are made by it.
func (s *Server) apiIdentity() (*tls.Certificate, error) {
	path := filepath.Join(s.dir, apiIdentityFile)
	cert, err := tls.LoadX509KeyPair(path, path)
	if err == nil && !time.Now().Before(cert.Leaf.NotAfter) {
		err = fmt.Errorf("%s ended at %s", path, cert.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	if err != nil {
		return nil, fmt.Errorf("the api's identity towards the processes with the service ca: %w; make one with 'wardlink-server rotate api --dir %s' where the CA's keys are", err, s.dir)
	}
	return &cert, nil
}

// MakeAPIIdentity makes the identity of the process with the service api, of a directory in which the CA's keys are. Its event is in the database
// before the file exists.
func MakeAPIIdentity(ctx context.Context, dir string) (*x509.Certificate, error) {
	c, err := LoadConfig(dir)
	if err != nil {
		return nil, err
	}
	k, err := keys.OpenOf(dir, ServiceCA)
	if err != nil {
		return nil, err
	}
	made, err := issue(k, spiffe.ID{TrustDomain: c.TrustDomain, Kind: spiffe.Service, Name: "api"}, c.Names, serviceLife, time.Now())
	if err != nil {
		return nil, err
	}
	detail := certificateDetail(made.leaf)
	detail["by"] = "wardlink-server rotate api"
	if err := leave(ctx, dir, audit.Event{Type: audit.CertIssued, Target: made.leaf.URIs[0].String(), Detail: detail}, nil); err != nil {
		return nil, fmt.Errorf("the api's identity is withheld, its event cannot be kept: %w", err)
	}
	return made.leaf, keys.WritePrivate(dir, apiIdentityFile, append(made.chain, made.key...))
}

// openEnrolment makes what a process that is the CA and nothing else serves.
func (s *Server) openEnrolment() error {
	s.nodes = newFleet()
	s.ingest = ingest.New(ingest.Config{
		Journal: s.journal, Registry: s.registry, TrustDomain: s.cfg.TrustDomain, Roots: s.roots(), Log: s.log, Limits: s.cfg.Limits.ingest(),
	})
	s.handshakes = newHandshakes(s.cfg.Limits.handshakes())
	return s.openCA()
}

// runEnrolment serves enrolment until ctx ends.
func (s *Server) runEnrolment(ctx context.Context) error {
	if err := s.outbox.Flush(ctx); err != nil {
		s.log.Error("events of the former run wait in the database", "error", err)
	}
	s.own(ctx, audit.Event{Type: audit.ServerStarted, Detail: map[string]string{"version": build.Version, "services": s.parts.String()}})
	s.log.Info("server started", "trust_domain", s.cfg.TrustDomain, "services", s.parts.String(), "gateways", s.listeners.gateways.Addr().String())
	s.takeUpIssuing(ctx)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.serveGateways(gctx) })
	g.Go(func() error { return s.ingest.Run(gctx) }) // the refusals
	g.Go(func() error { return s.flushOutbox(gctx) })
	g.Go(func() error { return s.runAuthority(gctx) })
	g.Go(func() error { return s.db.Warden(gctx, s.log) })
	g.Go(func() error {
		sdnotify.Run(gctx, sdnotify.Service{Log: s.log, Alive: func(ctx context.Context) (string, error) {
			if h := s.ca.Health(); !h.Well {
				return "not well: " + h.Reason, s.journal.Alive(ctx)
			}
			return "enrols", s.journal.Alive(ctx)
		}})
		return nil
	})
	err := g.Wait()
	s.log.Info("server stops")
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	return errors.Join(err, s.event(stop, audit.ServerStopped))
}

// runAuthority looks after the CA, or asks those who have it, until ctx ends.
func (s *Server) runAuthority(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if s.remote != nil {
		g.Go(func() error { return s.remote.Run(ctx) })
		g.Go(func() error { return s.renewIdentity(ctx) })
		return g.Wait()
	}
	g.Go(func() error { return s.runCA(ctx) })
	g.Go(func() error { return s.ca.Run(ctx) })
	return g.Wait()
}

// renewIdentity renews apiIdentityFile in time whether or not operators come.
func (s *Server) renewIdentity(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		if _, err := s.cert("api").get(); err != nil {
			s.log.Error("the api's certificate is not renewed", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// openCA makes the CA of this process.
func (s *Server) openCA() error {
	makers, err := ca.OpenTrustDir(ekTrustDir(s.dir), s.log)
	if err != nil {
		return err
	}
	s.ca, err = ca.New(ca.Config{
		TrustDomain: s.cfg.TrustDomain, DNSNames: s.cfg.Names, Roots: []*x509.Certificate{s.keys.Root},
		Issuing: s.keys.Issuing, IssuingKey: s.keys.IssuingKey, Attestation: s.keys.Attestation, AttestationKey: s.keys.AttestationKey,
		DB: s.db, EKTrust: makers.Trust, Registry: s.askedByCA(), Withdrawn: s.withdrawn, Log: s.log,
		Events: s.caEvent, Needs: s.issuingNeeds,
		Refused: s.refused,
	})
	if err != nil {
		return err
	}
	s.authority = s.ca
	s.closers = append(s.closers, s.ca.Close)
	removeFormerCAStore(s.dir, s.log)
	return nil
}

// removeFormerCAStore removes what servers before schema "ca 1" kept of enrolments under way, in a store of smallstep's own. Nothing in it is
// worth moving (decisions/0035): what was issued is in the registry and in the log, and a gateway that was at it enrols again.
func removeFormerCAStore(dir string, log *slog.Logger) {
	former := filepath.Join(dir, "ca")
	files, err := filepath.Glob(filepath.Join(former, "acme.db*")) // and what was set aside as damaged
	if err != nil || len(files) == 0 {
		return
	}
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	if err = errors.Join(err, os.Remove(former)); err != nil {
		log.Warn("the CA's former store is not wholly removed; nothing in it is needed", "path", former, "error", err)
		return
	}
	log.Info("the CA's former store is removed: what it held of enrolments under way is in the database now", "path", former)
}
