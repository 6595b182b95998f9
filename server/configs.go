package server

import (
	"context"
	"sync"
	"time"

	"wardlink/server/api"
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
		DB: s.db, Outbox: s.outbox, Registry: s.registry, Key: s.keys.Config, Now: time.Now, Changed: s.pushes.add,
		States: func(ctx context.Context, gateway string) (map[string]records.ConfigState, error) {
			return s.records.ConfigStates(ctx, gateway)
		},
	}
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
	return out, err
}
