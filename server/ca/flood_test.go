package ca

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/crypto/acme"
)

// from is an HTTP client at an address of its own.
func (h *hospital) from(ip string, conns int) *http.Client {
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	return &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, MaxIdleConnsPerHost: conns,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // whose certificate it is does not matter here
}

// TestRenewalsGoOnInAFlood: one address posts right requests to /attest without end, over as many connections as it likes, and shakes hands and hangs up; gateways
// at another renew meanwhile: a flood waits for itself.
func TestRenewalsGoOnInAFlood(t *testing.T) {
	h := hospitalOf(t, func(c *Config) {
		c.PerSource = 1
		c.Log = slog.New(slog.DiscardHandler) // of each refusal
	})
	honest := h.from("127.0.0.1", 4)
	type gateway struct {
		board  *softBoard
		client *acme.Client
		name   string
	}
	var gateways []gateway
	for i := range 2 {
		board := newSoftBoard(t, h.server.URL, honest)
		client, err := board.newClient()
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("gw-%d", i)
		h.registry.active[board.Hash()] = name
		gateways = append(gateways, gateway{board, client, name})
	}
	request, err := json.Marshal(gateways[0].board.Request)
	if err != nil {
		t.Fatal(err)
	}
	const (
		conns = maxConcurrent + 32
		tries = 3 // a disk that is busy with others may make a database wait for too long
	)
	ctx, stop := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	defer flood.Wait()
	defer stop()
	flooder := h.from("127.0.0.9", conns)
	full := make(chan struct{})
	reached := sync.OnceFunc(func() { close(full) })
	var taken, refused, faults, shaken atomic.Int64
	for range conns {
		flood.Go(func() {
			for ctx.Err() == nil {
				answer, err := flooder.Post(h.server.URL+"/attestation/attest", "application/json", bytes.NewReader(request))
				if err != nil {
					continue
				}
				_, _ = io.Copy(io.Discard, answer.Body) // else each request would shake hands
				_ = answer.Body.Close()
				switch answer.StatusCode {
				case http.StatusOK:
					taken.Add(1)
				case http.StatusTooManyRequests, http.StatusServiceUnavailable:
					refused.Add(1)
					reached()
				default:
					faults.Add(1)
				}
			}
		})
	}
	for range 2 {
		flood.Go(func() {
			for ctx.Err() == nil {
				if conn, err := tls.Dial("tcp", address(h), &tls.Config{InsecureSkipVerify: true}); err == nil {
					shaken.Add(1)
					_ = conn.Close()
				}
			}
		})
	}
	<-full
	var renewals sync.WaitGroup
	for _, g := range gateways {
		renewals.Go(func() {
			var err error
			for range tries {
				var chain [][]byte
				if chain, err = g.board.Attest(ctx); err == nil {
					_, err = g.board.Certify(ctx, g.client, g.name, chain)
				}
				if err == nil {
					return
				}
			}
			t.Errorf("%s: %v", g.name, err)
		})
	}
	renewals.Wait()
	stop()
	flood.Wait()
	if faults.Load() != 0 || taken.Load() == 0 || shaken.Load() == 0 {
		t.Errorf("taken %d, refused %d, otherwise answered %d, handshakes %d", taken.Load(), refused.Load(), faults.Load(), shaken.Load())
	}
	t.Logf("the flood: %d challenges, %d refusals, %d handshakes", taken.Load(), refused.Load(), shaken.Load())
}
