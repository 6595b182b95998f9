package ingest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/registry"
)

const gatewayOne = "spiffe://" + domain + "/gateway/gw-1"

// ailing is a CA whose health a test sets.
type ailing struct {
	well  atomic.Bool
	since atomic.Int64
}

func (a *ailing) health() (bool, time.Time) { return a.well.Load(), time.Unix(0, a.since.Load()) }

func (a *ailing) set(well bool, since time.Time) {
	a.since.Store(since.UnixNano())
	a.well.Store(well)
}

// newest enters a certificate as the registry would hold it.
func (r *fakeRegistry) holds(gateway string, cert tls.Certificate) {
	r.change(func() { r.newest[gateway] = newestKey{spkiHash(cert.Leaf), cert.Leaf.SerialNumber.Text(16)} })
}

// graceBench is a server with a grace of 72 hours and a CA that is down, over real TLS.
func graceBench(t *testing.T) (*bench, *ailing) {
	t.Helper()
	b := &bench{t: t, ca: newAuthority(t), journal: newJournal(t), reg: newRegistry("gw-1")}
	ca := new(ailing)
	ca.set(false, time.Now())
	b.srv = New(Config{Journal: b.journal, Registry: b.reg, TrustDomain: domain, Roots: b.ca.pool(),
		Grace: Grace{For: 72 * time.Hour, CA: ca.health}})
	b.listen(b.srv)
	return b, ca
}

// try connects and gives the CONNACK's code, -1 when there was none.
func (b *bench) try(cert tls.Certificate) int {
	b.t.Helper()
	conn, err := tls.Dial("tcp", b.addr, &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"mqtt"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	})
	if err != nil {
		b.t.Fatal(err) // TLS 1.3: the client hears of a refused certificate only when it reads
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	c := &client{t: b.t, conn: conn}
	_, _ = conn.Write(connectPacket("gw-1", 60))
	h, body, err := c.packet()
	if err != nil || h.kind != kindConnack {
		return -1
	}
	return int(body[1])
}

// TestGrace: a certificate that has ended is admitted when everything else is right, and each thing that is not keeps it out.
func TestGrace(t *testing.T) {
	const shut = -1 // the handshake fails
	hours := func(n int) time.Time { return time.Now().Add(time.Duration(n) * time.Hour) }
	for _, tc := range []struct {
		name   string
		spoil  func(b *bench, ca *ailing, cert *tls.Certificate)
		code   int
		reason string // of the refusal, where it is journaled by itself
	}{
		{"all is right", func(*bench, *ailing, *tls.Certificate) {}, int(connackAccepted), ""},
		{"the CA is well", func(_ *bench, ca *ailing, _ *tls.Certificate) { ca.set(true, time.Now()) }, shut, ""},
		{"the policy is off", func(b *bench, _ *ailing, _ *tls.Certificate) { b.srv.grace.For = 0 }, shut, ""},
		{"nobody knows the CA's health", func(b *bench, _ *ailing, _ *tls.Certificate) { b.srv.grace.CA = nil }, shut, ""},
		{"it ended too long ago", func(b *bench, _ *ailing, c *tls.Certificate) {
			*c = b.ca.issue(gatewayOne, hours(-73))
			b.reg.holds("gw-1", *c)
		}, shut, ""},
		{"it ended long before", func(b *bench, _ *ailing, c *tls.Certificate) {
			*c = b.ca.issue(gatewayOne, hours(-71))
			b.reg.holds("gw-1", *c)
		}, int(connackAccepted), ""},
		{"it has not begun", func(b *bench, _ *ailing, c *tls.Certificate) {
			*c = b.ca.from("gw-1", hours(1))
			b.reg.holds("gw-1", *c)
		}, shut, ""},
		{"another root's", func(b *bench, _ *ailing, c *tls.Certificate) {
			*c = newAuthority(t).issue(gatewayOne, hours(-1))
			b.reg.holds("gw-1", *c)
		}, shut, ""},
		{"no TLS client", func(b *bench, _ *ailing, c *tls.Certificate) {
			*c = b.ca.serverOnly(gatewayOne, hours(-1))
			b.reg.holds("gw-1", *c)
		}, shut, ""},
		{"an operator's", func(b *bench, _ *ailing, c *tls.Certificate) {
			*c = b.ca.issue("spiffe://"+domain+"/operator/gw-1", hours(-1))
		}, shut, reasonKind},
		{"the root has ended", func(b *bench, _ *ailing, c *tls.Certificate) {
			old := endedAuthority(t)
			b.srv.roots.AddCert(old.cert)
			*c = old.issue(gatewayOne, old.cert.NotAfter)
			b.reg.holds("gw-1", *c)
		}, shut, ""},
		{"the gateway is revoked", func(b *bench, _ *ailing, _ *tls.Certificate) { b.reg.change(func() { b.reg.revoked["gw-1"] = true }) }, int(connackDenied), reasonRevoked},
		{"the gateway is not active", func(b *bench, _ *ailing, _ *tls.Certificate) { b.reg.change(func() { b.reg.inactive["gw-1"] = true }) }, int(connackDenied), reasonNotAdmitted},
		{"the gateway is unknown", func(b *bench, _ *ailing, _ *tls.Certificate) { b.reg.change(func() { delete(b.reg.lanes, "gw-1") }) }, int(connackDenied), reasonNotAdmitted},
		{"its key is not the newest", func(b *bench, _ *ailing, _ *tls.Certificate) { b.reg.holds("gw-1", b.ca.issue(gatewayOne, hours(-1))) }, int(connackDenied), reasonFormerKey},
		{"the registry never saw it", func(b *bench, _ *ailing, _ *tls.Certificate) { b.reg.change(func() { clear(b.reg.newest) }) }, int(connackDenied), reasonFormerKey},
		{"the registry cannot say", func(b *bench, _ *ailing, _ *tls.Certificate) {
			b.reg.change(func() { b.reg.unsure = errors.New("locked") })
		}, int(connackUnavailable), reasonRegistry},
		{"the journal takes nothing", func(b *bench, _ *ailing, _ *tls.Certificate) {
			b.journal.set(func() { b.journal.fail = errors.New("full") })
		}, int(connackUnavailable), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, ca := graceBench(t)
			cert := b.ca.issue(gatewayOne, hours(-1))
			b.reg.holds("gw-1", cert)
			tc.spoil(b, ca, &cert)
			if got := b.try(cert); got != tc.code {
				t.Fatalf("CONNACK %d, expected %d", got, tc.code)
			}
			opened, graced := b.journal.events(audit.SessionOpened), b.journal.events(audit.SessionGrace)
			if tc.code != int(connackAccepted) {
				if len(opened)+len(graced) != 0 {
					t.Errorf("a session was opened: %+v %+v", opened, graced)
				}
				if refused := b.journal.events(audit.Refused); tc.reason != "" && (len(refused) != 1 || refused[0].Reason != tc.reason) {
					t.Errorf("refused: %+v", refused)
				}
				return
			}
			if len(opened) != 1 || len(graced) != 1 || graced[0].Session != opened[0].ID || graced[0].Target != "gw-1" ||
				graced[0].Detail["not_after"] != cert.Leaf.NotAfter.UTC().Format(time.RFC3339) ||
				graced[0].Detail["until"] != cert.Leaf.NotAfter.Add(72*time.Hour).UTC().Format(time.RFC3339) {
				t.Errorf("opened %+v, grace %+v", opened, graced)
			}
		})
	}
}

// serverOnly is a certificate that is no TLS client's.
func (a *authority) serverOnly(id string, notAfter time.Time) tls.Certificate {
	a.t.Helper()
	a.usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	defer func() { a.usage = nil }()
	return a.issue(id, notAfter)
}

// endedAuthority is a root that ended an hour ago.
func endedAuthority(t *testing.T) *authority {
	t.Helper()
	return authorityUntil(t, time.Now().Add(-time.Hour))
}

// A session under grace ends with the grace; a second connection under it takes the first one's place as ever.
func TestSessionUnderGraceEndsWithIt(t *testing.T) {
	inBubble(t, Limits{Poll: time.Hour}, func(t *testing.T, b *pipeBench) {
		ca := new(ailing)
		ca.set(false, time.Now())
		b.srv.grace = Grace{For: 72 * time.Hour, CA: ca.health}
		cert := b.ca.issue(gatewayOne, time.Now().Add(-71*time.Hour))
		b.reg.holds("gw-1", cert)
		c := b.openWith(cert)
		c.send(connectPacket("gw-1", 0))
		c.expectConnack(connackAccepted)
		if s := b.srv.Sessions(); len(s) != 1 || !s[0].Grace || time.Until(s[0].NotAfter) > time.Hour {
			t.Errorf("%+v", s)
		}
		b.srv.limits.KeepAlive = 3 * time.Hour
		took, why := b.pinging(c)
		if took > 61*time.Minute || took < 59*time.Minute || why != endExpired { // one ping may come in the instant of its end
			t.Errorf("ended after %s (%s)", took, why)
		}
	})
}

// Once the CA is well again, its gateways have a quarter of an hour to renew; then the grace is over for those that came under it, and
// for nobody else.
func TestGraceEndsWhenTheCAIsWell(t *testing.T) {
	inBubble(t, Limits{}, func(t *testing.T, b *pipeBench) {
		ca := new(ailing)
		ca.set(false, time.Now())
		b.srv.grace = Grace{For: 72 * time.Hour, CA: ca.health}
		cert := b.ca.issue(gatewayOne, time.Now().Add(-time.Hour))
		b.reg.holds("gw-1", cert)
		late, other := b.openWith(cert), b.session("gw-2", 10*time.Hour, 0)
		late.send(connectPacket("gw-1", 0))
		late.expectConnack(connackAccepted)
		ca.set(true, time.Now())
		took, why := b.pinging(late)
		if took < relapse || took > relapse+time.Minute || why != endExpired {
			t.Errorf("ended after %s (%s)", took, why)
		}
		if _, err := other.conn.Write([]byte{0xc0, 0}); err == nil {
			other.expect(kindPingresp)
		}
		for _, ev := range b.journal.events(audit.SessionClosed) {
			if ev.Target != "gw-1" && ev.Reason == endExpired {
				t.Errorf("another one's session ended too: %+v", ev)
			}
		}
	})
}

func TestRefusedHandshakeSaysExpired(t *testing.T) {
	b, ca := graceBench(t)
	ca.set(true, time.Now())
	cert := b.ca.issue(gatewayOne, time.Now().Add(-time.Hour))
	err := b.srv.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert.Leaf}})
	var verification *tls.CertificateVerificationError
	if !errors.As(err, &verification) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("%v", err)
	}
	if err := b.srv.VerifyConnection(tls.ConnectionState{}); err != nil {
		t.Errorf("a peer without a certificate: %v", err)
	}
}

// TestAdmittedBesideMQTT: what gateways ask over HTTP is judged as their sessions are, the board included, and without the grace.
func TestAdmittedBesideMQTT(t *testing.T) {
	b, _ := graceBench(t)
	now := time.Now()
	cert, ended := b.ca.gateway("gw-1"), b.ca.issue(gatewayOne, now.Add(-time.Hour))
	b.reg.holds("gw-1", ended)
	if g, proven, err := b.srv.Admitted(t.Context(), b.ca.state(cert), now); g != "gw-1" || !proven || err != nil {
		t.Errorf("%q, %t, %v", g, proven, err)
	}
	if g, proven, err := b.srv.Admitted(t.Context(), b.ca.state(ended), now); g != "" || proven || err == nil {
		t.Errorf("under the grace: %q, %t, %v", g, proven, err)
	}
	b.reg.change(func() { b.reg.retired[spkiHash(cert.Leaf)] = "gw-1" })
	if g, proven, err := b.srv.Admitted(t.Context(), b.ca.state(cert), now); g != "" || !proven || !errors.Is(err, registry.ErrNotActive) {
		t.Errorf("a former board: %q, %t, %v", g, proven, err)
	}
}
