package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"wardlink/enroll"
	"wardlink/server/records"
	"wardlink/server/registry"
)

// seen answers GET /seen on the gateways' port: an active gateway, known by its certificate, is told when its heartbeats were seen. It
// tells nothing of any other.
func (s *Server) seen(w http.ResponseWriter, r *http.Request) {
	var gateway string
	proven, err := false, errors.New("no TLS")
	if r.TLS != nil {
		gateway, proven, err = s.ingest.Admitted(r.Context(), *r.TLS, time.Now())
	}
	switch {
	case err == nil:
	case !proven:
		s.refused(r.RemoteAddr, "seen: no gateway's certificate")
		http.Error(w, "a gateway's certificate is needed", http.StatusUnauthorized)
		return
	default:
		status := http.StatusServiceUnavailable
		if errors.Is(err, registry.ErrNotActive) || errors.Is(err, registry.ErrUnknown) {
			status = http.StatusForbidden
		}
		http.Error(w, "not admitted", status)
		return
	}
	beats, err := records.NewStore(s.db, s.keys.Pseudonym).Heartbeats(r.Context(), gateway)
	if err != nil {
		s.log.Error("heartbeats cannot be told", "gateway", gateway, "error", err)
		http.Error(w, "the server cannot tell now", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(enroll.Seen{Gateway: gateway, First: beats.First, Last: beats.Last, Epoch: beats.Epoch})
}
