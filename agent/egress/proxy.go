package egress

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"wardlink/internal/secret"
)

// Proxy is the hospital's HTTP proxy, which is asked by CONNECT (RFC 9110, 9.3.6) for a tunnel to each server. What goes through it is
// TLS from end to end: it sees which server is spoken to, how much and when.
type Proxy struct {
	Address string // host:port
	// Credentials names a file of mode 0600 whose one line is user:password, for Basic (RFC 7617); "": the proxy asks for none. It is
	// read again for every tunnel, so a changed password needs no restart.
	Credentials string
}

const (
	maxCredentials = 1 << 10
	maxAnswer      = 16 << 10 // bytes of a proxy's answer to CONNECT
)

// ParseProxy checks what a configuration says of a proxy. Its errors never show the URL, which may hold a password by mistake.
func ParseProxy(text, credentials string) (*Proxy, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("url: expected http://host:port, such as http://proxy.hospital.example:3128")
	case u.User != nil:
		return nil, errors.New("url: user and password do not belong into it; put user:password into a file of mode 0600 and name it under credentials")
	case u.Scheme != "http":
		return nil, fmt.Errorf("url: scheme %q; expected http: the gateway asks the proxy by CONNECT, and what goes through is TLS", u.Scheme)
	case u.Hostname() == "" || u.Port() == "":
		return nil, errors.New("url: host or port is missing; expected http://host:port, such as http://proxy.hospital.example:3128")
	case credentials != "" && !strings.HasPrefix(credentials, "/"):
		return nil, errors.New("credentials: expected the absolute path of a file")
	}
	return &Proxy{Address: net.JoinHostPort(u.Hostname(), u.Port()), Credentials: credentials}, nil
}

// ProxyError is a tunnel that could not be had: the fault lies on this side of the server.
type ProxyError struct {
	Proxy string // its address
	Found string // what is wrong
	Mend  string
	Err   error // the cause; may be nil
}

func (e *ProxyError) Error() string {
	text := "proxy " + e.Proxy + ": " + e.Found + "; " + e.Mend
	if e.Err != nil {
		text += " (" + e.Err.Error() + ")"
	}
	return text
}

func (e *ProxyError) Unwrap() error { return e.Err }

// tunnel asks for a tunnel to server on a connection to the proxy.
func (p *Proxy) tunnel(ctx context.Context, conn net.Conn, server string) error {
	fail := func(err error, found, mend string) error { return &ProxyError{p.Address, found, mend, err} }
	credentials, err := p.authorization()
	if err != nil {
		return fail(err, "its credentials cannot be used", "mend the file "+p.Credentials)
	}
	began := time.Now()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	header := "CONNECT " + server + " HTTP/1.1\r\nHost: " + server + "\r\n" + credentials + "\r\n"
	if _, err = io.WriteString(conn, header); err != nil {
		return fail(err, "it ends the connection before it is asked", "see the proxy's log")
	}
	answer, err := readAnswer(conn)
	switch {
	case ctx.Err() != nil:
		return fail(ctx.Err(), fmt.Sprintf("it does not answer within %s", time.Since(began).Round(100*time.Millisecond)), "the proxy is slow, or cannot reach "+server+": see its log")
	case err != nil:
		return fail(err, "what answers there is no HTTP proxy, or it hung up", "check proxy.url in the configuration, and the proxy's log")
	}
	if found, mend := p.judge(answer, server); found != "" {
		return fail(nil, found, mend)
	}
	if !stop() {
		return fail(ctx.Err(), "it answered too late", "see the proxy's log")
	}
	return nil
}

// readAnswer reads the proxy's answer and nothing behind it: what is behind belongs to the server.
func readAnswer(conn io.Reader) (*http.Response, error) {
	in := bufio.NewReaderSize(io.LimitReader(conn, maxAnswer), maxAnswer)
	answer, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	if err != nil {
		return nil, err
	}
	// In TLS it is the gateway that speaks first.
	if answer.StatusCode/100 == 2 && in.Buffered() > 0 {
		return nil, errors.New("bytes follow its answer before the gateway has said anything")
	}
	return answer, nil
}

// judge says why a tunnel was not granted; "" when it was.
func (p *Proxy) judge(answer *http.Response, server string) (found, mend string) {
	status := fmt.Sprintf("%q", answer.Status) // as it came, made printable
	switch code := answer.StatusCode; {
	case code/100 == 2:
		return "", ""
	case code == http.StatusProxyAuthRequired && !offersBasic(answer):
		return "it asks for a kind of authentication that this agent does not speak (" + status + ")", "have the proxy's operators allow Basic for this gateway, or exempt its address"
	case code == http.StatusProxyAuthRequired && p.Credentials == "":
		return "it asks for user and password (" + status + ")", "put user:password into a file of mode 0600, and name it under proxy.credentials in the configuration"
	case code == http.StatusProxyAuthRequired:
		return "it does not accept user and password (" + status + ")", "check the line user:password in " + p.Credentials + " with the proxy's operators"
	case code == http.StatusForbidden, code == http.StatusMethodNotAllowed, code == http.StatusUnavailableForLegalReasons:
		return "it does not let connections to " + server + " through (" + status + ")", "have its operators allow CONNECT to " + server
	case code == http.StatusBadGateway, code == http.StatusServiceUnavailable, code == http.StatusGatewayTimeout:
		return "it cannot reach " + server + " (" + status + ")", "see whether the server runs, its name and port in the kit, and the way from the proxy to it"
	default:
		return "it answers " + status + " to CONNECT " + server, "check that proxy.url names an HTTP proxy, and see its log"
	}
}

// offersBasic also holds where a proxy names no scheme at all.
func offersBasic(answer *http.Response) bool {
	offers := answer.Header.Values("Proxy-Authenticate")
	for _, o := range offers {
		for part := range strings.SplitSeq(o, ",") {
			if scheme, _, _ := strings.Cut(strings.TrimSpace(part), " "); strings.EqualFold(scheme, "Basic") {
				return true
			}
		}
	}
	return len(offers) == 0
}

// authorization is the header line that shows who asks; "" when the proxy does not want to know.
func (p *Proxy) authorization() (string, error) {
	if p.Credentials == "" {
		return "", nil
	}
	line, err := readCredentials(p.Credentials)
	if err != nil {
		return "", err
	}
	defer line.Wipe()
	return "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString(line) + "\r\n", nil
}

// readCredentials reads user:password from a file that nobody else can read. Errors hold nothing of its content.
func readCredentials(path string) (secret.Bytes, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is no file", path)
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s has mode %#o, so others than its owner may read it: chmod 600 %s, and change the password", path, info.Mode().Perm(), path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxCredentials+1))
	if err != nil {
		return nil, err
	}
	return parseCredentials(data, path)
}

func parseCredentials(data []byte, path string) (secret.Bytes, error) {
	line := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	user, password, ok := strings.Cut(line, ":")
	if len(data) > maxCredentials || !ok || user == "" || password == "" || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, fmt.Errorf("%s does not hold one line user:password of at most %d bytes", path, maxCredentials)
	}
	return secret.Bytes(line), nil
}
