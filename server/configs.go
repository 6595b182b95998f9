package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"wardlink/audit"
	"wardlink/server/alerts/watch"
	"wardlink/server/api"
	"wardlink/server/api/client"
	"wardlink/server/ingest"
	"wardlink/server/records"
	"wardlink/telemetry"
)

// pusher sends the documents of gateways anew that have changed, in the background and one gateway after the other: a site's
// configuration may be for a thousand.
type pusher struct {
	mu   sync.Mutex
	due  map[string]bool
	wake chan struct{} // one place
}

func newPusher() *pusher { return &pusher{due: make(map[string]bool), wake: make(chan struct{}, 1)} }

// add says whose documents have changed. It does not block.
func (p *pusher) add(gateways []string) {
	p.mu.Lock()
	for _, g := range gateways {
		p.due[g] = true
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *pusher) next() (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for g := range p.due {
		delete(p.due, g)
		return g, true
	}
	return "", false
}

// runPushes pushes until ctx ends. One that fails is not tried again: the gateway gets its documents when it subscribes the next time.
func (s *Server) runPushes(ctx context.Context) error {
	for {
		gateway, some := s.pushes.next()
		if some && ctx.Err() == nil {
			if err := s.ingest.Push(ctx, gateway); err != nil {
				s.log.Error("a changed configuration is not pushed; the gateway gets it at its next connection", "gateway", gateway, "error", err)
			}
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.pushes.wake:
		}
	}
}

// openConfigs makes the issuer of configurations.
func (s *Server) openConfigs() {
	s.pushes = newPusher()
	s.configs = &api.Configs{
		DB: s.db, Outbox: s.outbox, Registry: s.registry, Key: s.keys.Config, Log: s.successor(), Now: time.Now, Changed: s.configured,
		States: func(ctx context.Context, gateway string) (map[string]records.ConfigState, error) {
			return s.records.ConfigStates(ctx, gateway)
		},
	}
}

// configured has the documents of gateways sent anew, at this process and at every node.
func (s *Server) configured(gateways []string) {
	s.pushes.add(gateways)
	s.nodes.changes.Add(gateways)
}

// documents are what a gateway is sent at its SUBSCRIBE and when they change.
func (s *Server) documents(ctx context.Context, gateway string) ([]ingest.Document, error) {
	out, err := s.resend(ctx, gateway)
	if err != nil { // it must not keep the configuration back
		s.log.Error("a gateway is not asked for what a restore lost; it is asked at its next connection", "gateway", gateway, "error", err)
	}
	orders, err := s.wipeOrder(ctx, gateway)
	if err != nil {
		return out, err
	}
	out = append(out, orders...)
	docs, err := s.configs.Documents(ctx, gateway)
	for _, d := range docs {
		out = append(out, ingest.Document{Doc: telemetry.DocConfig, Body: d})
	}
	// Behind the configuration, which names the key of a log that a restore began. Gateways keep the checkpoint, so that they can tell.
	signed, lerr := os.ReadFile(filepath.Join(logDir(s.dir), audit.CheckpointFile))
	if lerr != nil {
		return out, errors.Join(err, lerr)
	}
	return append(out, ingest.Document{Doc: telemetry.DocCheckpoint, Body: signed}), err
}

// successor is the key of this server's log if a restore began it: gateways' kits name the first one's.
func (s *Server) successor() string {
	name, _, _ := strings.Cut(s.keys.LogVerifier, "+")
	if _, n, err := audit.OriginNumber(name); err != nil || n <= 1 {
		return ""
	}
	return s.keys.LogVerifier
}

// watchedConfigs is what the watchers see of configurations.
func (s *Server) watchedConfigs(ctx context.Context) (out []watch.Configuration, err error) {
	all, err := s.configs.All(ctx)
	add := func(gateway, document string, p client.ConfigPart) {
		state := watch.ConfigUnderWay
		switch p.State {
		case "confirmed", "none":
			state = watch.ConfigSettled
		case "reverted":
			state = watch.ConfigTakenBack
		}
		out = append(out, watch.Configuration{
			Gateway: gateway, Document: document, Wanted: p.Wanted, InForce: p.InForce, Issued: p.Issued, State: state, Reason: p.Reason,
		})
	}
	for _, g := range all {
		add(g.Gateway, "own", g.Own)
		if g.OfSite != nil {
			add(g.Gateway, "site "+g.Site, *g.OfSite)
		}
	}
	return out, err
}
