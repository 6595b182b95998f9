package node

import (
	"log/slog"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path"
	"strings"

	"wardlink/server/ca"
)

// maxPassed bounds the body of a gateway's request; what the server behind takes is less.
const maxPassed = 1 << 20

// Proxy passes the requests of gateways on to the server: enrolment, the list of revoked certificates, the time, what was seen, a gateway's word that it is wiped. The
// request keeps its Host, since enrolment's URLs are made of it. What concerns nodes is passed on for nobody.
func (c *Client) Proxy() http.Handler {
	p := &httputil.ReverseProxy{
		Transport: byPath{c},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "https", Host: "server"})
			r.Out.Host = r.In.Host
			r.Out.Header.Del("Forwarded")
			r.Out.Header.Set(peerHeader, r.In.RemoteAddr)
			r.Out.Header.Del(chainHeader)
			if chain := formatChain(r.In.TLS); chain != "" {
				r.Out.Header.Set(chainHeader, chain)
			}
		},
		ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			c.Log.Debug("a gateway's request is not passed on", "error", err)
			w.Header().Set("Retry-After", "10")
			http.Error(w, "this node cannot reach its server now", http.StatusServiceUnavailable)
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(path.Clean("/"+r.URL.Path)+"/", prefix) {
			http.NotFound(w, r)
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxPassed)
		p.ServeHTTP(w, r)
	})
}

// byPath sends enrolment, and who asks for the list of revoked certificates, to the processes that hold the CA, and the rest to the server.
type byPath struct{ c *Client }

// RoundTrip implements http.RoundTripper.
func (b byPath) RoundTrip(r *http.Request) (*http.Response, error) {
	if at := path.Clean("/" + r.URL.Path); strings.HasPrefix(at, "/acme/") || strings.HasPrefix(at, "/attestation/") || at == ca.ListPath {
		return b.c.enrol.Transport.RoundTrip(r)
	}
	return b.c.http.Transport.RoundTrip(r)
}
