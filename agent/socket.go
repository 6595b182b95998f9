package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// statusRetry is how long after a failure the status socket is made again.
const statusRetry = 10 * time.Second

// maxAnswers is how many connections of a socket are answered at a time; more wait until one has ended, at their deadline at the latest.
const maxAnswers = 8

// serveStatus answers on a Unix socket that only the agent's own user can open.
func (a *Agent) serveStatus(ctx context.Context) error {
	return a.serveSocket(ctx, a.cfg.Socket(), a.cfg.listenStatus, "")
}

// serveSocket answers on a Unix socket, every request or only one. A socket that cannot be made, most often for want of room on the disk, must
// not end the agent: it is tried again.
func (a *Agent) serveSocket(ctx context.Context, path string, listen func() (net.Listener, error), only string) error {
	for {
		err := a.serveOnce(ctx, listen, only)
		if ctx.Err() != nil {
			return nil
		}
		a.log.Error("a socket of the agent's own cannot be served; it is tried again", "path", path, "retry_in", statusRetry, "error", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(statusRetry):
		}
	}
}

func (c Config) listenStatus() (net.Listener, error) {
	path := c.Socket()
	// The buffer's lock shows that no other agent runs on this state, so a socket that was there is a dead one's.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, ln.Close())
	}
	return ln, nil
}

func (a *Agent) serveOnce(ctx context.Context, listen func() (net.Listener, error), only string) error {
	ln, err := listen()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	defer ln.Close()
	var open sync.WaitGroup
	defer open.Wait()
	places := make(chan struct{}, maxAnswers)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		conn, err := ln.Accept()
		if err != nil {
			return err
		}
		open.Go(func() {
			defer func() { <-places }()
			defer conn.Close()
			hung := context.AfterFunc(ctx, func() { conn.Close() })
			defer hung()
			if err := a.answer(ctx, conn, only); err != nil {
				a.log.Debug("status answer", "error", err)
			}
		})
	}
}

// answer takes one request of a connection and answers it. That is all of HTTP/1.1 that the socket needs: a whole HTTP server would be
// a tenth of a megabyte of the gateway's program.
func (a *Agent) answer(ctx context.Context, conn net.Conn, only string) error {
	if err := conn.SetDeadline(time.Now().Add(seenTime + 5*time.Second)); err != nil {
		return err
	}
	req, err := http.ReadRequest(bufio.NewReader(io.LimitReader(conn, 8<<10)))
	if err != nil {
		return err
	}
	resp := http.Response{StatusCode: http.StatusOK, ProtoMajor: 1, ProtoMinor: 1, Close: true, Header: http.Header{"Content-Type": {"application/json"}}}
	var said any
	asked := req.Method + " " + req.URL.Path
	if only != "" && asked != only {
		asked = ""
	}
	switch asked {
	case toldMetrics:
		resp.Header.Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		return respond(conn, &resp, a.describe().metrics(time.Now()))
	case "POST /clock/reset":
		token, err := io.ReadAll(req.Body) // no longer than the limit above
		if err == nil {
			err = a.resetClock(string(token))
		}
		if said = a.time.facts(); err != nil {
			resp.StatusCode, said = http.StatusConflict, map[string]string{"error": err.Error()}
		}
	case "GET /status":
		said = a.describe()
	case "GET /seen":
		if s, err := a.seen(ctx); err != nil {
			said = map[string]string{"error": err.Error()}
		} else {
			said = map[string]any{"seen": s}
		}
	case "GET /probe":
		limited, cancel := context.WithTimeout(ctx, probeTime)
		defer cancel()
		said = a.probe(limited)
	default:
		resp.StatusCode, said = http.StatusNotFound, map[string]string{"error": "the agent's own socket answers GET /status, /metrics, /seen and /probe, and POST /clock/reset; the metrics socket GET /metrics"}
	}
	text, err := json.Marshal(said)
	if err != nil {
		return err
	}
	return respond(conn, &resp, append(text, '\n'))
}

func respond(conn net.Conn, resp *http.Response, text []byte) error {
	resp.ContentLength = int64(len(text))
	resp.Body = io.NopCloser(bytes.NewReader(text))
	return resp.Write(conn)
}

// probeTime bounds what the running agent looks at for a doctor.
const probeTime = 8 * time.Second

// ErrNoAgent is what AskStatus and AskProbe wrap when no agent answers.
var ErrNoAgent = errors.New("no agent answers")

// AskStatus asks the agent that runs on this configuration.
func AskStatus(ctx context.Context, cfg Config) (Status, error) {
	var s Status
	return s, ask(ctx, cfg, 5*time.Second, http.MethodGet, "status", "", &s)
}

// AskProbe has the running agent look at its TPM and show its certificate to the servers: while it runs, only it can.
func AskProbe(ctx context.Context, cfg Config) ([]Finding, error) {
	var f []Finding
	return f, ask(ctx, cfg, probeTime+2*time.Second, http.MethodGet, "probe", "", &f)
}

// ResetClock hands the running agent a token that sets its floor back, and gives what it knows of the time then.
func ResetClock(ctx context.Context, cfg Config, token string) (ClockFacts, error) {
	var f ClockFacts
	return f, ask(ctx, cfg, 10*time.Second, http.MethodPost, "clock/reset", token, &f)
}

func ask(ctx context.Context, cfg Config, limit time.Duration, method, what, body string, into any) error {
	client := &http.Client{
		Timeout: limit,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", cfg.Socket())
		}},
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://agent/"+what, strings.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	var cause *url.Error
	if errors.As(err, &cause) {
		err = cause.Err // which names the socket; the URL is of nobody's interest
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w on %s: %w; run this as root or as the agent's user", ErrNoAgent, cfg.Socket(), err)
	case err != nil:
		return fmt.Errorf("%w on %s: %w; is it running ('systemctl status wardlink-agent')? 'wardlink-agent doctor' looks for what is wrong", ErrNoAgent, cfg.Socket(), err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusConflict {
		var no struct{ Error string }
		if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&no); err != nil {
			return fmt.Errorf("%s answer: %w", what, err)
		}
		return errors.New(no.Error)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answer: %s; the agent that runs is of another release: restart it", what, resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(into); err != nil {
		return fmt.Errorf("%s answer: %w", what, err)
	}
	return nil
}
