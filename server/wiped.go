package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"wardlink/audit"
	"wardlink/enroll/wipe"
	"wardlink/internal/spiffe"
	"wardlink/server/ingest"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

// wipedTime bounds how long a gateway's word waits for database and journal.
const wipedTime = 20 * time.Second

// wiped takes a gateway's signed word that it has wiped itself. Its certificate and its key are gone by then, so that the signature alone
// counts. 204 once the event is in the journal; 403 for a word that is about no order or nobody's; 503 tries again.
func (s *Server) wiped(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), wipedTime)
	defer cancel()
	word, err := io.ReadAll(http.MaxBytesReader(w, r.Body, wipe.MaxDocument))
	if err == nil {
		err = s.registry.Confirm(ctx, s.gatewayActor, r.RemoteAddr, word)
	} else {
		err = registry.ErrNotOrdered
	}
	switch {
	case err == nil:
		w.WriteHeader(http.StatusNoContent)
	case errors.Is(err, registry.ErrNotOrdered):
		s.refused(r.RemoteAddr, "wiped: not a gateway's word about an order")
		http.Error(w, "no such wipe was ordered, or not by this word's signer", http.StatusForbidden)
	default:
		s.log.Error("a gateway's word that it has wiped itself cannot be kept now", "error", err)
		w.Header().Set("Retry-After", "30")
		http.Error(w, "try again later", http.StatusServiceUnavailable)
	}
}

func (s *Server) gatewayActor(gateway string) audit.Actor {
	return audit.Actor{ID: spiffe.ID{TrustDomain: s.cfg.TrustDomain, Kind: spiffe.Gateway, Name: gateway}.String()}
}

// signOrder signs an order to wipe with the config key.
func (s *Server) signOrder(o wipe.Order) ([]byte, error) { return wipe.Sign(o, s.keys.Config) }

// wipeOrder is the order of a gateway that drains, as a document for it.
func (s *Server) wipeOrder(ctx context.Context, gateway string) ([]ingest.Document, error) {
	end, err := s.registry.End(ctx, gateway)
	if err != nil || end == nil {
		return nil, err
	}
	return []ingest.Document{{Doc: telemetry.DocWipe, Body: end.Order}}, nil
}
