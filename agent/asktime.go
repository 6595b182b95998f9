package agent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"time"

	"wardlink/enroll"
	"wardlink/internal/build"
	"wardlink/internal/spiffe"
	"wardlink/telemetry"
)

// The waits between two requests for the time.
const (
	askAgain    = time.Hour // once it is known: the boot clock drifts by some seconds a day
	askFirst    = time.Second
	askLongest  = 5 * time.Minute
	askShortest = 100 * time.Millisecond
	askTimeout  = 60 * time.Second // connection, TLS and answer
	// askDoubt is how long there is no session until the time is asked again although it is known: it may have come from a server whose
	// clock was wrong, and then every certificate is refused for its dates until the right time is told.
	askDoubt = time.Minute
	askLook  = time.Second // how often it is looked whether the wall clock was set, and whether there is a session
)

// runTime asks the hospital for the time until ctx ends: at once, with full jitter while it fails, and now and then once it is known.
func (a *Agent) runTime(ctx context.Context) error {
	for failures := 0; ; {
		err := a.askTime(ctx)
		if ctx.Err() != nil {
			return nil
		}
		wait := askAgain - rand.N(askAgain/10)
		if err == nil {
			failures = 0
			a.timeKnown()
		} else {
			if failures == 0 {
				a.log.Warn("the hospital's time is not known yet; data is kept and sent all the same", "error", err)
			}
			a.time.failed(err)
			wait = askShortest + rand.N(min(askFirst<<min(failures, 10), askLongest))
			failures++
		}
		if !a.pauseTime(ctx, wait, err == nil) {
			return nil
		}
	}
}

// pauseTime waits until the time is to be asked again; false when ctx ends.
func (a *Agent) pauseTime(ctx context.Context, wait time.Duration, known bool) bool {
	over, look := time.NewTimer(wait), time.NewTicker(askLook)
	defer over.Stop()
	defer look.Stop()
	doubt := askDoubt + rand.N(askDoubt) // a fleet does not ask at once
	began := time.Now()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-over.C:
			return true
		case <-a.askNow:
			return true
		case now := <-look.C:
			a.time.look()
			if s := a.link.Status(); known && !s.Connected && now.Sub(began) >= doubt && now.Sub(s.Since) >= doubt {
				return true
			}
		}
	}
}

// resetClock sets the floor back by a token of the hospital's, and asks for the time at once. A certificate that begins after the token's time
// was issued while the hospital's clock was ahead: it would raise the floor again at the next start, so another is asked for.
func (a *Agent) resetClock(token string) error {
	_, gateway, err := a.credentials()
	if err != nil {
		return fmt.Errorf("a token names a gateway, and this one is %w yet; the hospital tells it the time at the next connection", err)
	}
	at, err := a.time.reset(token, a.kit.ConfigKey, gateway)
	if err != nil {
		return err
	}
	a.raiseKnown()
	a.mu.Lock()
	if a.identity.NotBefore.After(at) && a.renew != nil {
		a.renew()
	}
	a.mu.Unlock()
	select {
	case a.askNow <- struct{}{}:
	default: // it is asked already
	}
	return nil
}

// timeKnown looks at what could not be judged without the time: a certificate that ended while the gateway was off is renewed at once.
func (a *Agent) timeKnown() {
	now := a.time.best()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.identity != nil && a.renew != nil && now.After(a.identity.NotAfter) {
		a.renew()
	}
}

// askTime asks the servers in their order until one tells the time.
func (a *Agent) askTime(ctx context.Context) error {
	return a.way.Try(ctx, a.servers(), askTimeout, a.askServer)
}

// askServer is one exchange. The peer's chain and identity are checked and its dates are not: the answer is signed by the config key for
// this one request, so whoever carries it cannot change it, and a gateway whose floor was once raised too far still learns the time.
func (a *Agent) askServer(ctx context.Context, server string) error {
	gateway := ""
	if _, name, err := a.credentials(); err == nil {
		gateway = name
	}
	request := enroll.NewTimeRequest(gateway)
	body, err := request.Marshal()
	if err != nil {
		return err
	}
	var sent time.Duration // the time of TCP and TLS is not that of the answer
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent = a.time.mono() }})
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+server+enroll.TimePath, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", enroll.TimeType)
	r.Header.Set(telemetry.HelloHeader, telemetry.OwnHello(build.Version).String())
	anyDate := func() spiffe.Moment { return spiffe.Moment{Time: a.kit.Since(), Floor: true} }
	transport := transportTo(func(ctx context.Context) (net.Conn, error) {
		return asConn(a.way.Secure(ctx, server, spiffe.ServerTLSAt(a.kit.Pool(), a.serverID(), "http/1.1", anyDate)))
	})
	defer transport.CloseIdleConnections()
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	doc, err := io.ReadAll(io.LimitReader(answer.Body, enroll.MaxTimeBytes+1))
	received := a.time.mono()
	switch {
	case err != nil:
		return err
	case answer.StatusCode == http.StatusServiceUnavailable:
		return fmt.Errorf("%w: it does not vouch for its own clock; on the server: wardlink clock", errNoTime)
	case answer.StatusCode == http.StatusUpgradeRequired:
		return fmt.Errorf("%w: it speaks none of this agent's protocol versions %s but, as it says, %.80q; install the agent of its release, or of one of the two before it", errNoTime, telemetry.Spoken(), answer.Header.Get(telemetry.ServerHeader))
	case answer.StatusCode != http.StatusOK:
		return fmt.Errorf("%w: it answered %s; is it of an older release?", errNoTime, answer.Status)
	}
	at, err := enroll.VerifyTime(doc, a.kit.ConfigKey, request)
	if err != nil {
		return err
	}
	return a.time.learn(at, sent, received, server)
}
