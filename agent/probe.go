package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"wardlink/agent/egress"
	"wardlink/enroll"
	"wardlink/enroll/tpm"
	"wardlink/internal/spiffe"
)

// The areas of findings that a probe makes.
const (
	AreaTPM           = "TPM"
	AreaAuthorisation = "authorisation"
)

// slowSignature is where a TPM's signature begins to be felt: a handshake needs one, and the server waits a minute for it.
const slowSignature = 5 * time.Second

// JudgeTPM says how a TPM fails: in the words of a state that is known from the field, with its mend, or in the error's own, with mend.
func JudgeTPM(what string, err error, mend string) Finding {
	f := Finding{Area: AreaTPM, Level: Stops, Found: what + ": " + err.Error(), Mend: mend}
	var known *tpm.Trouble
	switch {
	case errors.Is(err, tpm.ErrCleared):
		f.Mend = "start the agent, or start it again: it makes new keys by itself, and signs with them what waits"
	case errors.Is(err, tpm.ErrForeign):
		f.Mend = "put the disk into the board that it was with; or start the agent and have an operator give the gateway this board " +
			"('wardlink gateway replace'), which signs what waits. If the TPM was cleared, the agent makes new keys by itself"
	case errors.As(err, &known):
		f.Found, f.Mend = fmt.Sprintf("%s: %s (%v)", what, known.What, known.Err), known.Mend
	}
	return f
}

// ProbeTPM looks at a TPM and, where there is an identity, makes a signature with its key. A TPM has one user at a time, so while an
// agent runs it is the agent that does this. It is over when ctx ends, even if the TPM never answers.
func ProbeTPM(ctx context.Context, dev *tpm.TPM, signer crypto.Signer) []Finding {
	well := func(found string, args ...any) Finding {
		return Finding{Area: AreaTPM, Level: Well, Found: fmt.Sprintf(found, args...)}
	}
	ek, err := dev.EK(ctx)
	if err != nil {
		return []Finding{JudgeTPM("its endorsement key cannot be read", err, "see the vendor's notes for this TPM; a firmware update, or clearing it in the firmware setup, makes the endorsement key anew")}
	}
	out := []Finding{well("%s opens; EK SHA-256 %s, fingerprint %s, %s", dev.Path(), hex.EncodeToString(ek.Hash[:]), enroll.Fingerprint(ek.Hash), certified(ek))}
	l, err := dev.Lockout(ctx)
	if err != nil {
		return append(out, JudgeTPM("its lockout state cannot be read", err, "see the vendor's notes for this TPM"))
	}
	out = append(out, judgeLockout(l))
	if signer == nil {
		if err := dev.Usable(ctx); err != nil {
			out = append(out, JudgeTPM("it makes no keys", err, "see the vendor's notes for this TPM"))
		}
		return out
	}
	took, err := probeSignature(ctx, signer)
	switch {
	case err != nil:
		return append(out, JudgeTPM("it does not sign with the device key", tpm.Explain(dev.Path(), err), "see the vendor's notes for this TPM"))
	case took > slowSignature:
		out = append(out, Finding{Area: AreaTPM, Level: Warning, Found: fmt.Sprintf("a signature takes %s; each connection needs one", took.Round(time.Millisecond)),
			Mend: "see whether another program keeps the TPM busy"})
	default:
		out = append(out, well("a signature with the device key takes %s", took.Round(time.Millisecond)))
	}
	return out
}

// probeSignature makes one signature, unless ctx ends before it is there.
func probeSignature(ctx context.Context, signer crypto.Signer) (took time.Duration, err error) {
	// A purpose of its own keeps this signature from being good for anything else.
	nonce := make([]byte, 16)
	rand.Read(nonce)
	digest := sha256.Sum256(append([]byte("wardlink/probe/1\x00"), nonce...))
	began, done := time.Now(), make(chan error, 1)
	go func() {
		_, err := signer.Sign(rand.Reader, digest[:], crypto.SHA256)
		done <- err
	}()
	select {
	case err = <-done:
	case <-ctx.Done():
		err = fmt.Errorf("no signature in time: %w", ctx.Err())
	}
	return time.Since(began), err
}

func certified(ek tpm.EK) string {
	if ek.Certificate != nil {
		return "with its maker's certificate"
	}
	return "without a maker's certificate: the registry must know the hash"
}

func judgeLockout(l tpm.Lockout) Finding {
	f := Finding{Area: AreaTPM, Level: Well, Found: fmt.Sprintf("not locked; %d of %d wrong authorisations count", l.Failures, l.Most)}
	mend := "another program on this machine gives it wrong passwords: find and stop it; our own keys are outside this defence and go on working"
	switch {
	case l.Locked:
		f.Level, f.Mend = Warning, mend
		f.Found = fmt.Sprintf("it has locked itself after %d wrong authorisations", l.Failures)
	case l.Failures > 0 && l.Most > 0 && l.Failures*2 >= l.Most:
		f.Level, f.Mend = Warning, mend
		f.Found = fmt.Sprintf("%d of %d wrong authorisations count; then it locks itself", l.Failures, l.Most)
	}
	return f
}

// ProbeAuthorisation shows the gateway's certificate to each server, over HTTP: an MQTT session would take the place of the running
// agent's. It tells whether the server believes the certificate, not whether the registry admits the gateway to MQTT.
func ProbeAuthorisation(ctx context.Context, way *egress.Way, kit enroll.Kit, cert tls.Certificate) []Finding {
	out := make([]Finding, len(kit.Servers))
	var wg sync.WaitGroup
	for i, server := range kit.Servers {
		wg.Go(func() {
			out[i] = Finding{Area: AreaAuthorisation, Name: server, Level: Well, Found: "the server believes this gateway's certificate; whether the registry admits it, the running agent knows"}
			if err := showCertificate(ctx, way, server, kit, cert); err != nil {
				out[i] = judgeRefusal(server, err)
			}
		})
	}
	wg.Wait()
	return out
}

// showCertificate makes one request on a connection that proves the gateway's key.
func showCertificate(ctx context.Context, way *egress.Way, server string, kit enroll.Kit, cert tls.Certificate) error {
	// Whether the server believes us is asked here; its own dates are looked at elsewhere, and a clock at 1970 must not hide the answer.
	conf := spiffe.ServerTLSAt(kit.Pool(), spiffe.ID{TrustDomain: kit.TrustDomain, Kind: spiffe.Service, Name: "ingest"}, "http/1.1",
		func() spiffe.Moment { return spiffe.Moment{Time: kit.Since(), Floor: true} })
	conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
	transport := transportTo(func(ctx context.Context) (net.Conn, error) { return asConn(way.Secure(ctx, server, conf)) })
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+server+"/acme/attest/directory", nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	return nil // whatever it answers, it has let us ask
}

func judgeRefusal(server string, err error) Finding {
	f := Finding{Area: AreaAuthorisation, Name: server, Level: Stops, Found: fmt.Sprintf("the gateway's certificate could not be shown: %v", err)}
	var alert tls.AlertError
	var op *net.OpError
	refused := errors.As(err, &alert) || errors.As(err, &op) && op.Op == "remote error"
	switch {
	case refused:
		f.Found = fmt.Sprintf("the server refuses this gateway's certificate: %v", err)
		f.Mend = "compare the clocks and see 'wardlink gateway show': a gateway that is revoked or suspended stays cut off until it is resumed"
	case errors.Is(err, context.DeadlineExceeded):
		f.Found, f.Mend = "no answer in time when the gateway showed its certificate", "see the steps to this server, and the latency of the TPM"
	default:
		f.Level, f.Mend = Warning, "see the steps to this server"
	}
	return f
}

// probe is what the running agent finds where only it can look: the TPM that it holds, and what that TPM's key opens.
func (a *Agent) probe(ctx context.Context) []Finding {
	a.mu.Lock()
	dev, id, state := a.dev, a.identity, a.tpmState
	a.mu.Unlock()
	if dev == nil {
		return []Finding{{Area: AreaTPM, Level: Stops, Found: state, Mend: "until it can be opened, telemetry is buffered and the certificate is not renewed"}}
	}
	var out []Finding
	var shown []Finding
	var wg sync.WaitGroup
	if id != nil {
		wg.Go(func() { shown = ProbeAuthorisation(ctx, a.way, a.kit, id.Certificate) })
		out = ProbeTPM(ctx, dev, id.Signer())
	} else {
		out = ProbeTPM(ctx, dev, nil)
	}
	wg.Wait()
	return append(out, shown...)
}
