package ca

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkEnrol is gateways that want certificates, at the same time: an enrolment is attestation, a new account, order, challenge,
// certificate; a renewal is what follows an AK certificate that is still good, under an account that is there. TPM and TLS are this
// machine's, too: a part of the time is the clients'. Registry and journal are in memory.
func BenchmarkEnrol(b *testing.B) {
	const clients = 16
	h := newHospital(b, func(c *Config) { c.PerSource = 1 << 20 })
	client := h.server.Client()
	client.Transport.(*http.Transport).MaxIdleConnsPerHost = clients
	boards := make([]*softBoard, clients)
	for i := range boards {
		boards[i] = newSoftBoard(b, h.server.URL, client)
		h.registry.active[boards[i].hash()] = fmt.Sprintf("gw-%d", i)
	}
	run := func(b *testing.B, one func(*softBoard, string) error) {
		var left atomic.Int64
		left.Store(int64(b.N))
		var wg sync.WaitGroup
		for i, board := range boards {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					if err := one(board, fmt.Sprintf("gw-%d", i)); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certificates/s")
	}
	b.Run("enrolment", func(b *testing.B) {
		run(b, func(board *softBoard, name string) error {
			_, err := board.enrol(b.Context(), name)
			return err
		})
	})
	b.Run("renewal", func(b *testing.B) {
		var ready sync.Map
		run(b, func(board *softBoard, name string) error {
			c, ok := ready.Load(name)
			if !ok {
				chain, err := board.attest(b.Context())
				if err != nil {
					return err
				}
				client, err := board.client()
				if err != nil {
					return err
				}
				c = func() error { _, err := board.certify(b.Context(), client, name, chain); return err }
				ready.Store(name, c)
			}
			return c.(func() error)()
		})
	})
}
