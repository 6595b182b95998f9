package doctor

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"wardlink/agent"
	"wardlink/agent/egress"
	"wardlink/enroll"
	"wardlink/internal/spiffe"
)

// The longest that each step to a server may take. Together they stay below the whole examination's.
const (
	nameTime = 2500 * time.Millisecond
	dialTime = 3 * time.Second
	tlsTime  = 3 * time.Second
	httpTime = 2 * time.Second
)

// AreaServer is the area of the steps to a server.
const AreaServer = "server"

// reach is how far a connection to one server came, without any opinion.
type reach struct {
	server string
	proxy  string // its address where there is one: name and TCP are its, then

	addresses []netip.Addr
	nameErr   error
	nameTook  time.Duration

	peer     string // the address that took the connection
	dialErr  error
	dialTook time.Duration

	tunnelErr  error // the proxy's answer
	tunnelTook time.Duration

	state   *tls.ConnectionState // nil when there was no handshake
	tlsErr  error
	tlsTook time.Duration

	asked   bool // over HTTP, which is done only after the server has proven itself
	date    time.Time
	ahead   time.Duration // of the server's clock, against ours when the answer came
	took    time.Duration
	httpErr error
}

// probe walks to a server: name, TCP, the proxy's answer where there is one, TLS, one HTTP request. The handshake believes any certificate, so that it can be told whose it
// was; nothing is said on a connection whose server has not proven itself.
func probe(ctx context.Context, way *egress.Way, server string, kit enroll.Kit) reach {
	r := reach{server: server, proxy: way.Proxy()}
	host, _, err := net.SplitHostPort(server)
	if err != nil {
		r.nameErr = err
		return r
	}
	hop, _, err := net.SplitHostPort(way.Hop(server))
	if err != nil {
		r.nameErr = err
		return r
	}
	if r.resolve(ctx, hop); r.nameErr != nil {
		return r
	}
	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, dialTime)
	conn, err := way.Reach(limited, server)
	cancel()
	r.dialTook, r.dialErr = time.Since(began), err
	if err != nil {
		return r
	}
	defer conn.Close()
	r.peer = conn.RemoteAddr().String()
	limited, cancel = context.WithTimeout(ctx, dialTime)
	began, r.tunnelErr = time.Now(), way.Tunnel(limited, conn, server)
	cancel()
	if r.tunnelTook = time.Since(began); r.tunnelErr != nil {
		return r
	}
	secured := r.handshake(ctx, conn, host)
	if secured == nil || spiffe.VerifyServer(*r.state, kit.Pool(), serverID(kit), r.state.PeerCertificates[0].NotBefore) != nil ||
		r.state.NegotiatedProtocol != "http/1.1" {
		return r
	}
	r.ask(secured, server)
	return r
}

func (r *reach) resolve(ctx context.Context, host string) {
	if addr, err := netip.ParseAddr(host); err == nil {
		r.addresses = []netip.Addr{addr}
		return
	}
	ctx, cancel := context.WithTimeout(ctx, nameTime)
	defer cancel()
	began := time.Now()
	r.addresses, r.nameErr = net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	r.nameTook = time.Since(began)
	if r.nameErr == nil && len(r.addresses) == 0 {
		r.nameErr = errors.New("the name has no address")
	}
}

// handshake offers what an agent offers, and an older TLS besides, so that whoever is in the way can be seen.
func (r *reach) handshake(ctx context.Context, conn net.Conn, host string) *tls.Conn {
	ctx, cancel := context.WithTimeout(ctx, tlsTime)
	defer cancel()
	var seen *tls.ConnectionState
	secured := tls.Client(conn, &tls.Config{
		ServerName: host, NextProtos: []string{"http/1.1"}, SessionTicketsDisabled: true,
		// Nothing is believed of the peer here: what it shows is judged afterwards, by the agent's own rule.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { seen = &cs; return nil },
	})
	began := time.Now()
	r.tlsErr = secured.HandshakeContext(ctx)
	r.tlsTook = time.Since(began)
	if r.tlsErr != nil {
		r.state = seen
		return nil
	}
	state := secured.ConnectionState()
	r.state = &state
	return secured
}

// ask makes one request, for the server's time.
func (r *reach) ask(conn net.Conn, server string) {
	r.asked = true
	began := time.Now()
	r.httpErr = func() error {
		if err := conn.SetDeadline(began.Add(httpTime)); err != nil {
			return err
		}
		req, err := http.NewRequest(http.MethodGet, "https://"+server+"/acme/attest/directory", nil)
		if err != nil {
			return err
		}
		req.Close = true
		if err := req.Write(conn); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), req)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if r.date, err = http.ParseTime(resp.Header.Get("Date")); err != nil {
			return fmt.Errorf("its answer has no date: %w", err)
		}
		// The header's second is cut off, so its middle is the best guess.
		r.ahead = r.date.Add(500 * time.Millisecond).Sub(began.Add(time.Since(began) / 2))
		return nil
	}()
	r.took = time.Since(began)
}

func serverID(kit enroll.Kit) spiffe.ID {
	return spiffe.ID{TrustDomain: kit.TrustDomain, Kind: spiffe.Service, Name: "ingest"}
}

// judge says what the steps came to. It stops at the first that failed: what is behind it was not reached.
func (r reach) judge(kit enroll.Kit, now time.Time) []agent.Finding {
	var out []agent.Finding
	step := func(level agent.Level, name, mend, found string, args ...any) {
		out = append(out, agent.Finding{Area: AreaServer, Name: r.server, Step: name, Level: level, Found: fmt.Sprintf(found, args...), Mend: mend})
	}
	whose, source := "", "the name in the kit"
	if r.proxy != "" {
		whose, source = "proxy "+r.proxy+": ", "proxy.url in the configuration"
	}
	if r.nameErr != nil {
		step(agent.Stops, "name", "check "+source+", and this gateway's DNS servers (/etc/resolv.conf)", "%sit cannot be resolved: %v", whose, r.nameErr)
		return out
	}
	step(agent.Well, "name", "", "%s%s%s", whose, joined(r.addresses), took(r.nameTook))
	if r.dialErr != nil {
		found, mend := explainDial(r.dialErr)
		if r.proxy != "" {
			mend = "check proxy.url in the configuration, the network to the proxy, and whether it runs"
		}
		step(agent.Stops, "TCP", mend, "%s%s", whose, found)
		return out
	}
	step(agent.Well, "TCP", "", "connected to %s%s%s", whose, r.peer, took(r.dialTook))
	var refused *egress.ProxyError
	switch {
	case errors.As(r.tunnelErr, &refused):
		found := whose + refused.Found
		if refused.Err != nil {
			found += ": " + refused.Err.Error()
		}
		step(agent.Stops, "proxy", refused.Mend, "%s", found)
		return out
	case r.proxy != "":
		step(agent.Well, "proxy", "", "it lets this gateway through to %s%s", r.server, took(r.tunnelTook))
	}
	if r.tlsErr != nil && (r.state == nil || len(r.state.PeerCertificates) == 0) {
		found, mend := explainTLS(r.tlsErr)
		step(agent.Stops, "TLS", mend, "%s", found)
		return out
	}
	if found, mend := r.imposter(kit, now); found != "" {
		step(agent.Stops, "TLS", mend, "%s", found)
		return out
	}
	if r.tlsErr != nil {
		found, mend := explainTLS(r.tlsErr)
		step(agent.Stops, "TLS", mend, "%s", found)
		return out
	}
	if r.state.Version < tls.VersionTLS13 {
		step(agent.Stops, "TLS", "something between this gateway and the server takes TLS apart, or the server is very old: have it pass this connection through untouched",
			"the server's certificate is right, but only %s is spoken; TLS 1.3 is needed", tls.VersionName(r.state.Version))
		return out
	}
	step(agent.Well, "TLS", "", "%s with %s%s", tls.VersionName(r.state.Version), serverID(kit), took(r.tlsTook))
	if r.state.NegotiatedProtocol != "http/1.1" {
		step(agent.Stops, "ALPN", "a TLS terminating balancer or proxy in between does not pass ALPN on: let it pass TCP through untouched",
			"the server did not choose http/1.1, but %q", r.state.NegotiatedProtocol)
		return out
	}
	step(agent.Well, "ALPN", "", "http/1.1 is chosen; MQTT shares the port")
	if r.httpErr != nil {
		step(agent.Warning, "HTTP", "see the server's log; enrolment and renewal go this way", "it does not answer a request: %v", r.httpErr)
	} else if r.asked {
		step(agent.Well, "HTTP", "", "it answers%s", took(r.took))
	}
	return out
}

// imposter tells who it is that does not prove to be the kit's server; "" when it does.
func (r reach) imposter(kit enroll.Kit, now time.Time) (found, mend string) {
	err := spiffe.VerifyServer(*r.state, kit.Pool(), serverID(kit), now)
	if err == nil {
		return "", ""
	}
	leaf := r.state.PeerCertificates[0]
	id, idErr := spiffe.FromCertificate(leaf)
	if r.trusted(kit, leaf.NotBefore) {
		switch {
		case idErr != nil || id != serverID(kit):
			return fmt.Sprintf("another service of this hospital answers there: %v", err), "check address and port in the kit against 'wardlink provision kit'"
		case now.After(leaf.NotAfter):
			return fmt.Sprintf("the server's certificate ended %s, by this gateway's clock", leaf.NotAfter.UTC().Format(time.RFC3339)),
				"compare this gateway's clock with the true time first; then restart the server, which renews its certificate"
		default:
			return fmt.Sprintf("the server's certificate begins %s, after this gateway's time", leaf.NotBefore.UTC().Format(time.RFC3339)),
				"set this gateway's clock, and have NTP keep it"
		}
	}
	issuer := nameOf(leaf)
	switch {
	case idErr == nil && id == serverID(kit):
		return fmt.Sprintf("the server names itself %s, but its root is not in this kit (issuer %s)", id, issuer),
			"the hospital's root was made anew, or another system uses the same trust domain: put a fresh kit from 'wardlink provision kit' on this gateway"
	case idErr == nil:
		return fmt.Sprintf("the wardlink server of another hospital answers: %s (issuer %s)", id, issuer),
			"the kit belongs to one hospital and the address to another: check both"
	}
	// Public authorities sign web servers; whoever signs for this name without being one of them is in the way.
	_, public := leaf.Verify(x509.VerifyOptions{Intermediates: r.intermediates(), CurrentTime: leaf.NotBefore.Add(time.Second)})
	if public == nil {
		return fmt.Sprintf("a public web server answers there (certificate of %s, issued by %s), no wardlink server", subjectOf(leaf), issuer),
			"check address and port in the kit; a captive portal or a reverse proxy that ends TLS looks like this too"
	}
	what := "something inspects TLS on the way"
	if vendor := inspector(r.state.PeerCertificates); vendor != "" {
		what = "a TLS-inspecting proxy (" + vendor + ") is on the way"
	}
	return fmt.Sprintf("%s: the certificate shown for %s was issued by %s, which the kit does not know", what, subjectOf(leaf), issuer),
		fmt.Sprintf("have the network's operators exempt %s from inspection; mutual TLS cannot pass through it", r.server)
}

// trusted tells whether the chain ends in the kit's roots, whatever the time.
func (r reach) trusted(kit enroll.Kit, at time.Time) bool {
	_, err := r.state.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: kit.Pool(), Intermediates: r.intermediates(), CurrentTime: at.Add(time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err == nil
}

func (r reach) intermediates() *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range r.state.PeerCertificates[1:] {
		pool.AddCert(c)
	}
	return pool
}

// inspectors are words in the names of authorities that inspecting products make certificates with.
var inspectors = []struct{ word, product string }{
	{"zscaler", "Zscaler"}, {"fortinet", "Fortinet"}, {"fortigate", "Fortinet"}, {"palo alto", "Palo Alto Networks"}, {"netskope", "Netskope"},
	{"sophos", "Sophos"}, {"blue coat", "Symantec ProxySG"}, {"bluecoat", "Symantec ProxySG"}, {"cisco umbrella", "Cisco Umbrella"},
	{"check point", "Check Point"}, {"checkpoint", "Check Point"}, {"barracuda", "Barracuda"}, {"forcepoint", "Forcepoint"}, {"watchguard", "WatchGuard"},
	{"sonicwall", "SonicWall"}, {"mcafee", "Skyhigh"}, {"skyhigh", "Skyhigh"}, {"squid", "Squid"}, {"mitmproxy", "mitmproxy"}, {"kaspersky", "Kaspersky"},
	{"eset", "ESET"}, {"untangle", "Untangle"}, {"smoothwall", "Smoothwall"}, {"iboss", "iboss"},
}

func inspector(chain []*x509.Certificate) string {
	for _, c := range chain {
		name := strings.ToLower(c.Issuer.String())
		for _, i := range inspectors {
			if strings.Contains(name, i.word) {
				return i.product
			}
		}
	}
	return ""
}

// nameOf is an issuer as a person would look for it.
func nameOf(leaf *x509.Certificate) string {
	if leaf.Issuer.String() == "" {
		return "nobody (the issuer has no name)"
	}
	if bytes.Equal(leaf.RawIssuer, leaf.RawSubject) {
		return fmt.Sprintf("%q, itself", leaf.Issuer.String())
	}
	return fmt.Sprintf("%q", leaf.Issuer.String())
}

func subjectOf(leaf *x509.Certificate) string {
	switch {
	case leaf.Subject.CommonName != "":
		return fmt.Sprintf("%q", leaf.Subject.CommonName)
	case len(leaf.DNSNames) > 0:
		return fmt.Sprintf("%q", leaf.DNSNames[0])
	}
	return "an unnamed subject"
}

func explainDial(err error) (found, mend string) {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens there: " + err.Error(), "see whether the server runs, and whether the port in the kit is its gateways' port"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "there is no way to it: " + err.Error(), "check cable, VLAN, and this gateway's address and route (ip addr, ip route)"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), isTimeout(err):
		return "no answer within " + dialTime.String(), "a firewall drops the packets, or the server is off: ask for this address and port to be opened"
	}
	return err.Error(), "check the network between this gateway and the server"
}

func explainTLS(err error) (found, mend string) {
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &record) && bytes.HasPrefix(record.RecordHeader[:], []byte("HTTP/")):
		return "plain HTTP answers there: a captive portal, or a web server",
			"log this network in, or have the portal exempt the gateway; else check the port in the kit"
	case errors.As(err, &record):
		return fmt.Sprintf("what answers there speaks no TLS (its first bytes are %q)", record.RecordHeader[:]), "check the port in the kit"
	case isTimeout(err), errors.Is(err, context.DeadlineExceeded):
		return "the connection stands, but no TLS comes back within " + tlsTime.String(),
			"a firewall lets the connection through and drops what is said on it, or the server hangs: see its log"
	case errors.Is(err, syscall.ECONNRESET), strings.HasSuffix(err.Error(), "EOF"):
		return "the connection is cut as soon as TLS begins: " + err.Error(),
			"a firewall that inspects connections cuts it, or the server takes no more handshakes from this network: see both logs"
	}
	return "TLS fails: " + err.Error(), "see the server's log"
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}

func joined(addrs []netip.Addr) string {
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.Unmap().String())
	}
	return strings.Join(texts, ", ")
}

func took(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return fmt.Sprintf(" (%s)", d.Round(100*time.Microsecond))
}
