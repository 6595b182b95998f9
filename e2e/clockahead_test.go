package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/enroll"
	"wardlink/internal/child"
	"wardlink/internal/durable"
	"wardlink/internal/spiffe"
	"wardlink/server/keys"
)

// ahead is the hospital's server as it would be with its clock so far ahead, and an operator who said that it is right: it shows its service's
// certificate, made by that clock, signs the time with the hospital's own key, and issues nothing, since its CA has ended. The machine's
// clock is not a test's to set, so this stands in for the real server, which is stopped meanwhile.
func (h *hospital) ahead(by time.Duration) (stop func()) {
	h.t.Helper()
	k, err := keys.Open(h.server())
	if err != nil {
		h.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		h.t.Fatal(err)
	}
	id, err := url.Parse(spiffe.ID{TrustDomain: "ward.example", Kind: spiffe.Service, Name: "ingest"}.String())
	if err != nil {
		h.t.Fatal(err)
	}
	// Its issuing CA lives for a year, so the last certificate that it made ends with it.
	leaf, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "ingest"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: k.Issuing.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, URIs: []*url.URL{id},
	}, k.Issuing, key.Public(), k.IssuingKey)
	if err != nil {
		h.t.Fatal(err)
	}
	ln, err := net.Listen("tcp", h.gateways)
	if err != nil {
		h.t.Fatal(err)
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(io.LimitReader(r.Body, enroll.MaxTimeBytes))
			request, perr := enroll.ParseTimeRequest(body)
			if r.URL.Path != enroll.TimePath || err != nil || perr != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			doc, err := enroll.SignTime(request, time.Now().Add(by), k.Config)
			if err != nil {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			_, _ = w.Write(doc)
		}),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"},
			Certificates: []tls.Certificate{{Certificate: [][]byte{leaf, k.Issuing.Raw}, PrivateKey: key}}},
	}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(ln, "", "") }()
	return func() {
		_ = server.Close()
		<-done
	}
}

// vouched is the server's word for the clock, as it is kept for its next start.
func (h *hospital) vouched(at time.Time) {
	h.t.Helper()
	kept, _, err := durable.OpenAB(filepath.Join(h.server(), "clock"), 8)
	if err != nil {
		h.t.Fatal(err)
	}
	if err := kept.Store(binary.BigEndian.AppendUint64(nil, uint64(at.UnixMilli()))); err != nil {
		h.t.Fatal(err)
	}
}

// token is the hospital's token for a gateway's challenge.
func (h *hospital) token(gateway, challenge string) (string, error) {
	out, err := child.Output(context.Background(), program("wardlink"), "--operator", h.operator(), "clock", "token", gateway, challenge)
	return strings.TrimSpace(string(out)), err
}

// TestAServerTenYearsAhead and then right again. An operator had said that its clock is right, so the gateway's floor is ten years ahead: a start
// refuses the server's certificate, keeps what its monitors send, and once the server vouches for the right time it delivers, without
// anybody at the gateway. The floor that stays is set back by a token, once.
func TestAServerTenYearsAhead(t *testing.T) {
	t.Parallel()
	const years = 10 * 365 * 24 * time.Hour
	h := newHospital(t)
	b := h.newBox("box", h.kit())
	b.reportsOften()
	b.deliverAs("icu-7")
	b.agent.Stop()
	h.proc.Stop()

	stop := h.ahead(years)
	b.start()
	b.await("the wrong time", func(ctx context.Context) (bool, error) {
		_, err := b.status(ctx)
		return err == nil && b.clock().Trusted, nil
	})
	wrong := b.clock()
	if off := wrong.Now.Sub(time.Now().Add(years)).Abs(); off > time.Minute || wrong.LearntFrom != h.gateways || wrong.Kept == nil || time.Until(*wrong.Kept) < years-time.Hour {
		t.Fatalf("%+v; expected a gateway that trusts a time ten years ahead, and keeps it", wrong)
	}
	b.send("W1")
	b.agent.Stop()
	stop()

	// Right again; what it vouched for last is ten years from there, so it vouches for nothing.
	h.vouched(time.Now().Add(years))
	h.run()
	b.start()
	b.send("W2")
	b.await("a refusal", func(ctx context.Context) (bool, error) {
		s, err := b.status(ctx)
		return err == nil && strings.Contains(s.Uplink.LastError, "certificate"), nil
	})
	c := b.clock()
	if c.Trusted || time.Until(c.Floor) < years-time.Hour || !c.Behind {
		t.Errorf("%+v; expected a floor ten years ahead", c)
	}
	if s, err := b.status(context.Background()); err != nil || s.waiting() == 0 {
		t.Errorf("%d batches wait, %v: something was delivered or deleted", s.waiting(), err)
	}
	if out := string(b.must("wardlink-agent", "clock", "--config", b.config())); !strings.Contains(out, "wardlink clock token GATEWAY "+c.Challenge) {
		t.Errorf("the clock says nothing of a token:\n%s", out)
	}
	if _, err := h.token("icu-7", c.Challenge); err == nil || !strings.Contains(err.Error(), "clock confirm") {
		t.Errorf("a server in doubt makes a token: %v", err)
	}

	h.must("wardlink", "--operator", h.operator(), "clock", "confirm")
	b.awaitIdle()
	if c = b.clock(); !c.Trusted || time.Until(c.Now).Abs() > time.Minute || !c.Ahead {
		t.Errorf("%+v; expected the right time, and a floor that is still ahead", c)
	}

	b.setBackFloor("icu-7", c.Challenge)
	b.agent.Stop()
	b.start()
	b.send("W3")
	b.awaitIdle()
	if c = b.clock(); time.Until(c.Floor) > time.Minute || c.Ahead {
		t.Errorf("the next start: %+v", c)
	}
	b.hospital.balanced(t, "icu-7")
	out := h.must("wardlink", "audit", "list", "--json", "--dir", h.server(), "--type", "clock.token")
	if n := strings.Count(string(out), `"clock.token"`); n != 2 || !strings.Contains(string(out), "denied") || !strings.Contains(string(out), "icu-7") {
		t.Errorf("%d events of tokens:\n%s", n, out)
	}
}

// setBackFloor: the floor goes back by a token for this gateway's challenge, once, and by no other.
func (b *box) setBackFloor(gateway, challenge string) {
	b.t.Helper()
	text, err := b.token(gateway, challenge)
	if err != nil {
		b.t.Fatal(err)
	}
	reset := func(token string) error {
		_, err := child.Output(context.Background(), program("wardlink-agent"), "clock", "reset", "--token", token, "--config", b.config())
		return err
	}
	for what, wrong := range map[string]string{"half of it": text[:70], "another": strings.Repeat("A", len(text)), "none": "x"} {
		if err := reset(wrong); err == nil || !strings.Contains(err.Error(), "clock token") {
			b.t.Errorf("%s: %v", what, err)
		}
	}
	if err := reset(strings.ToLower(text)); err != nil {
		b.t.Fatal(err)
	}
	if err := reset(text); err == nil {
		b.t.Error("the token counts twice")
	}
	b.await("the time", func(context.Context) (bool, error) { return b.clock().Trusted, nil })
	if c := b.clock(); time.Until(c.Floor) > time.Minute || c.Ahead || time.Until(c.Now).Abs() > time.Minute {
		b.t.Errorf("after the token: %+v", c)
	}
}
