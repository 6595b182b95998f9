package alerts

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardlink/internal/build"
)

// facilities are those that fit a service (RFC 5424, section 6.2.1).
var facilities = map[string]int{
	"": 3, "daemon": 3, "auth": 4, "authpriv": 10, "local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20, "local5": 21,
	"local6": 22, "local7": 23,
}

func facilityOf(name string) (int, error) {
	f, ok := facilities[name]
	if !ok {
		return 0, fmt.Errorf("facility: %.40q; expected daemon, auth, authpriv or local0 to local7", name)
	}
	return f, nil
}

// syslogSender writes one message to one connection and closes it. Syslog over TCP acknowledges nothing, and what is written to a
// connection that the other side has left is lost without an error; one that is opened for the message and closed in order is as near
// to a receipt as it comes. Over UDP there is none at all.
type syslogSender struct {
	network, addr string
	facility      int
	host          string
	tls           *tls.Config
}

func newSyslog(t Target, _ string, conf *tls.Config) (*syslogSender, error) {
	network, addr, err := splitSyslog(t.Syslog)
	if err != nil {
		return nil, err
	}
	facility, err := facilityOf(t.Facility)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "-"
	}
	if network == "tls" {
		conf.ServerName, _, err = net.SplitHostPort(addr)
	}
	return &syslogSender{network: network, addr: addr, facility: facility, host: host, tls: conf}, err
}

func (s *syslogSender) String() string {
	if s.network == "unix" {
		return "unix:" + s.addr
	}
	return s.network + "://" + s.addr
}

func (s *syslogSender) send(ctx context.Context, m *message) (string, error) {
	var p payload
	if err := json.Unmarshal(m.body, &p); err != nil {
		return "", &failure{text: "message cannot be read", ours: true}
	}
	if s.network == "unix" {
		return s.local(ctx, p, m.id)
	}
	text := s.format(p, m.id, true)
	if s.network == "udp" {
		return s.datagram(ctx, p, m.id, text)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if at, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(at)
	}
	var end interface{ CloseWrite() error } = conn.(*net.TCPConn)
	if s.network == "tls" {
		secure := tls.Client(conn, s.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return "", err
		}
		conn, end = secure, secure
	}
	// Octet counting: RFC 6587, section 3.4.1, and RFC 5425, section 4.3.
	if _, err := fmt.Fprintf(conn, "%d %s", len(text), text); err != nil {
		return "", err
	}
	return hangUp(conn, end)
}

const hangUpTime = 2 * time.Second

// hangUp ends our half and waits a moment for the other half's end: a reset says that the message was not read.
func hangUp(conn net.Conn, end interface{ CloseWrite() error }) (string, error) {
	if err := end.CloseWrite(); err != nil {
		return "", err
	}
	_ = conn.SetReadDeadline(time.Now().Add(hangUpTime))
	_, err := io.Copy(io.Discard, io.LimitReader(conn, maxAnswer))
	var timeout net.Error
	if err != nil && !(errors.As(err, &timeout) && timeout.Timeout()) {
		return "", err
	}
	return "written and closed in order; syslog acknowledges nothing", nil
}

// maxDatagram is what every receiver should take (RFC 5426, section 3.2).
const maxDatagram = 2048

func (s *syslogSender) datagram(ctx context.Context, p payload, id, text string) (string, error) {
	if len(text) > maxDatagram {
		text = s.format(p, id, false)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", s.addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	return "sent; UDP acknowledges nothing", nil
}

// local writes to the machine's own syslog, in the form that C's syslog() has there and that both journald and rsyslog read.
func (s *syslogSender) local(ctx context.Context, p payload, id string) (string, error) {
	at, _ := time.Parse(time.RFC3339Nano, p.Timestamp)
	text := fmt.Sprintf("<%d>%s wardlink[%d]: %s %s", s.priority(p), at.Local().Format(time.Stamp), os.Getpid(), p.Type, sentence(p))
	for _, kv := range params(p, id) {
		text += " " + kv[0] + "=" + strconv.Quote(kv[1])
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unixgram", s.addr)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if at, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(at)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	return "written", nil
}

// priority is facility and severity (RFC 5424, section 6.2.1): critical 2, warning 4, else notice 5.
func (s *syslogSender) priority(p payload) int {
	severity := 5
	if p.Data.State == "open" {
		switch p.Data.Severity {
		case Critical.String():
			severity = 2
		case Warning.String():
			severity = 4
		}
	}
	return s.facility*8 + severity
}

func sentence(p payload) string {
	switch p.Type {
	case msgResolved:
		return fmt.Sprintf("%s %s is resolved.", p.Data.Alert, p.Data.Subject)
	case msgTest:
		return p.Data.Meaning
	}
	return fmt.Sprintf("%s %s: %s", p.Data.Alert, p.Data.Subject, p.Data.Meaning)
}

// params are names and values in a fixed order. Details come last, their names kept apart from ours.
func params(p payload, id string) [][2]string {
	out := [][2]string{
		{"message", id}, {"id", p.Data.ID}, {"type", string(p.Data.Alert)}, {"subject", p.Data.Subject}, {"severity", p.Data.Severity},
		{"state", p.Data.State}, {"count", strconv.FormatInt(p.Data.Count, 10)}, {"server", p.Data.Server},
	}
	for _, k := range slices.Sorted(maps.Keys(p.Data.Detail)) {
		out = append(out, [2]string{"detail." + k, p.Data.Detail[k]})
	}
	return out
}

// sdID has the enterprise number that RFC 5612 keeps for examples: there is none of ours.
const sdID = "wardlink@32473"

// format is RFC 5424, section 6. full adds details and the mend.
func (s *syslogSender) format(p payload, id string, full bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "<%d>1 %s %s wardlink %d %s [%s", s.priority(p), name(p.Timestamp, 64), name(s.host, 255), os.Getpid(), name(p.Type, 32), sdID)
	for _, kv := range params(p, id) {
		if full || !strings.HasPrefix(kv[0], "detail.") {
			fmt.Fprintf(&b, " %s=\"%s\"", name(kv[0], 32), escape(kv[1]))
		}
	}
	fmt.Fprintf(&b, "][origin software=\"wardlink\" swVersion=\"%s\"] \ufeff%s", escape(cut(build.Version, 32)), sentence(p))
	if full && p.Data.State == "open" {
		b.WriteString(" " + p.Data.Mend)
	}
	return b.String()
}

// name keeps printable US-ASCII, and none of what ends a PARAM-NAME (RFC 5424, section 6.3.3).
func name(text string, n int) string {
	text = strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f || strings.ContainsRune(`="]`, r) {
			return '_'
		}
		return r
	}, text)
	if text == "" {
		return "-"
	}
	return text[:min(n, len(text))]
}

// escape is for a PARAM-VALUE (RFC 5424, section 6.3.3).
func escape(text string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, `]`, `\]`).Replace(text)
}
