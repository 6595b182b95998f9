package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"wardlink/agent/source"
	"wardlink/agent/uplink"
	"wardlink/buffer"
)

// Status is what a running agent says of itself: no patient, no value, no key.
type Status struct {
	Gateway   string                  `json:"gateway"`  // "" until enrolled
	Identity  string                  `json:"identity"` // "enrolled", "waiting for approval", "revoked by the hospital: ...", or what is in the way
	Waiting   string                  `json:"waiting,omitempty"`
	Revoked   bool                    `json:"revoked"` // the hospital has cut this gateway off; what is taken in is kept
	NotAfter  *time.Time              `json:"not_after,omitempty"`
	Kit       string                  `json:"kit"`
	Epoch     string                  `json:"epoch"`
	Started   time.Time               `json:"started"`
	ConfigSet uint64                  `json:"config_version"`
	Sources   map[string]source.Stats `json:"sources"`
	Intake    Counts                  `json:"intake"`
	Buffer    buffer.Stats            `json:"buffer"`
	Uplink    uplink.Status           `json:"uplink"`
}

func (a *Agent) status() Status {
	s := Status{
		Identity: "enrolled", Kit: a.kit.ShortFingerprint(), Epoch: a.intake.epoch.String(), Started: a.started,
		ConfigSet: a.config.inForce().Version, Sources: map[string]source.Stats{}, Intake: a.intake.counters(),
		Buffer: a.buf.Stats(), Uplink: a.link.Status(),
	}
	for i, m := range a.sources {
		s.Sources[a.cfg.Sources[i].ID] = m.Stats()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.identity != nil {
		s.Gateway, s.NotAfter = a.identity.Gateway, &a.identity.NotAfter
	}
	switch {
	case a.revoked != "":
		s.Identity, s.Revoked = a.revoked, true
	case a.identity != nil:
	case a.waiting != "":
		s.Identity, s.Waiting = "waiting for approval", a.waiting
	case a.tpmState != "":
		s.Identity = a.tpmState
	default:
		s.Identity = "enrolling"
	}
	return s
}

// serveStatus answers on a Unix socket that only the agent's own user can open.
func (a *Agent) serveStatus(ctx context.Context) error {
	path := a.cfg.Socket()
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("status socket: %w", err)
	}
	// The buffer's lock shows that no other agent runs on this state, so a socket that was there is a dead one's.
	ln, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("status socket: %w; 'state:' must be a directory with a path of at most 90 characters", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(fmt.Errorf("status socket: %w", err), ln.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(a.status()); err != nil {
			a.log.Debug("status answer", "error", err)
		}
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { srv.Close() })
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("status socket: %w", err)
	}
	return nil
}

// AskStatus asks the agent that runs on this configuration.
func AskStatus(ctx context.Context, cfg Config) (Status, error) {
	client := &http.Client{
		Timeout: 5 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", cfg.Socket())
		}},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return Status{}, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return Status{}, fmt.Errorf("no agent answers on %s: %w; is it running ('systemctl status wardlink-agent')?", cfg.Socket(), err)
	}
	defer resp.Body.Close()
	var s Status
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&s); err != nil {
		return Status{}, fmt.Errorf("status answer: %w", err)
	}
	return s, nil
}
