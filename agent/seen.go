package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"wardlink/enroll"
)

// seenTime bounds the question; a slow TPM signs within the handshake.
const seenTime = 60 * time.Second

// seen asks the hospital when it saw this gateway's heartbeats, over a connection that proves the gateway's key.
func (a *Agent) seen(ctx context.Context) (enroll.Seen, error) {
	ctx, cancel := context.WithTimeout(ctx, seenTime)
	defer cancel()
	cert, gateway, err := a.credentials()
	if err != nil {
		return enroll.Seen{}, err
	}
	transport := transportTo(func(ctx context.Context) (net.Conn, error) { return a.secure(ctx, &cert) })
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+a.kit.Servers[0]+enroll.SeenPath, nil)
	if err != nil {
		return enroll.Seen{}, err
	}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return enroll.Seen{}, err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, enroll.MaxSeenBytes+1))
	if err != nil {
		return enroll.Seen{}, err
	}
	if answer.StatusCode != http.StatusOK {
		return enroll.Seen{}, fmt.Errorf("the server answers %s; is it of an older release?", answer.Status)
	}
	return enroll.ParseSeen(data, gateway)
}

// AskSeen has the running agent ask the hospital.
func AskSeen(ctx context.Context, cfg Config) (enroll.Seen, error) {
	var s struct {
		Seen  enroll.Seen `json:"seen"`
		Error string      `json:"error"`
	}
	if err := ask(ctx, cfg, seenTime+2*time.Second, http.MethodGet, "seen", "", &s); err != nil {
		return enroll.Seen{}, err
	}
	if s.Error != "" {
		return enroll.Seen{}, fmt.Errorf("the hospital does not say what it has seen: %s", s.Error)
	}
	return s.Seen, nil
}
