package alerts

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// line is a syslog message taken apart by RFC 5424's grammar, without the writer's code.
type line struct {
	pri, pid         int
	at               time.Time
	host, app, msgID string
	data             map[string]map[string]string
	text             string
}

var header = regexp.MustCompile(`^<(\d{1,3})>1 (\S+) ([!-~]{1,255}) ([!-~]{1,48}) (\d+|-) ([!-~]{1,32}) `)

func parseLine(text string) (line, error) {
	h := header.FindStringSubmatch(text)
	if h == nil {
		return line{}, errors.New("header")
	}
	l := line{host: h[3], app: h[4], msgID: h[6], data: make(map[string]map[string]string)}
	l.pri, _ = strconv.Atoi(h[1])
	l.pid, _ = strconv.Atoi(h[5])
	var err error
	if l.at, err = time.Parse(time.RFC3339Nano, h[2]); err != nil {
		return l, err
	}
	rest := text[len(h[0]):]
	for strings.HasPrefix(rest, "[") {
		var id string
		var params map[string]string
		if id, params, rest, err = parseElement(rest[1:]); err != nil {
			return l, err
		}
		l.data[id] = params
	}
	msg, ok := strings.CutPrefix(rest, " \xef\xbb\xbf")
	if !ok {
		return l, fmt.Errorf("message without BOM: %q", rest)
	}
	l.text = msg
	return l, nil
}

func parseElement(s string) (id string, params map[string]string, rest string, err error) {
	end := strings.IndexAny(s, " ]")
	if end < 1 {
		return "", nil, "", errors.New("SD-ID")
	}
	id, s, params = s[:end], s[end:], make(map[string]string)
	for strings.HasPrefix(s, " ") {
		name, value, ok := strings.Cut(s[1:], `="`)
		if !ok || strings.ContainsAny(name, ` =]"`) || len(name) > 32 {
			return "", nil, "", fmt.Errorf("PARAM-NAME %q", name)
		}
		var b strings.Builder
		i := 0
		for ; i < len(value) && value[i] != '"'; i++ {
			switch value[i] {
			case ']':
				return "", nil, "", errors.New("bare ] in a value")
			case '\\':
				i++
			}
			b.WriteByte(value[i])
		}
		if i == len(value) {
			return "", nil, "", errors.New("value without end")
		}
		params[name], s = b.String(), value[i+1:]
	}
	rest, ok := strings.CutPrefix(s, "]")
	if !ok {
		return "", nil, "", errors.New("element without end")
	}
	return id, params, rest, nil
}

const nasty = `a "quoted" ]bracket\ and ü`

func nastyMessage(t *testing.T) *message {
	p := testPayload("ward.example", time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	p.Type, p.Data.Alert, p.Data.Subject, p.Data.Severity = msgRaised, DiskLow, "journal", "critical"
	p.Data.Detail = map[string]string{"where": nasty, "od d=]\"": "x"}
	return &message{id: "msg_X_1", body: encode(p)}
}

func checkLine(t *testing.T, text string) {
	t.Helper()
	l, err := parseLine(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	p := l.data[sdID]
	if l.pri != 16*8+2 || l.app != "wardlink" || l.msgID != msgRaised || l.pid != os.Getpid() || l.at.UTC().Format(time.RFC3339) != "2026-03-01T12:00:00Z" {
		t.Errorf("%+v", l)
	}
	if p["detail.where"] != nasty || p["detail.od_d___"] != "x" || p["subject"] != "journal" || p["message"] != "msg_X_1" || l.data["origin"]["software"] != "wardlink" {
		t.Errorf("%+v", l.data)
	}
	if !strings.HasPrefix(l.text, "disk-low journal: ") {
		t.Errorf("%q", l.text)
	}
}

func newSyslogTo(t *testing.T, target Target) sender {
	t.Helper()
	target.Name, target.Facility = "siem", "local0"
	if err := target.check(); err != nil {
		t.Fatal(err)
	}
	s, err := newSender(target, "ward.example")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sendTo(t *testing.T, s sender, m *message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if answer, err := s.send(ctx, m); err != nil || answer == "" {
		t.Fatalf("%q, %v", answer, err)
	}
}

func TestSyslogUDP(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := newSyslogTo(t, Target{Syslog: "udp://" + conn.LocalAddr().String()})
	sendTo(t, s, nastyMessage(t))
	buf := make([]byte, 65536)
	n, _, err := conn.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	checkLine(t, string(buf[:n]))

	long := testPayload("ward.example", time.Now())
	long.Data.Detail = make(map[string]string)
	for i := range maxDetails {
		long.Data.Detail[fmt.Sprint(i)] = strings.Repeat("]", maxDetail)
	}
	sendTo(t, s, &message{id: "msg_X_2", body: encode(long)})
	if n, _, err = conn.ReadFrom(buf); err != nil || n > maxDatagram {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if _, err := parseLine(string(buf[:n])); err != nil {
		t.Error(err)
	}
}

// frame reads one message of octet counting (RFC 6587, section 3.4.1) and wants the end of the stream behind it.
func frame(conn net.Conn) (string, error) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	length, err := r.ReadString(' ')
	if err != nil {
		return "", err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(length, " "))
	if err != nil || n > 65536 {
		return "", fmt.Errorf("length %q", length)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return "", err
	}
	if rest, err := io.ReadAll(r); err != nil || len(rest) > 0 {
		return "", fmt.Errorf("%q behind the message, %v", rest, err)
	}
	return string(text), nil
}

func accept(ln net.Listener) chan string {
	out := make(chan string, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			out <- err.Error()
			return
		}
		text, err := frame(conn)
		if err != nil {
			text = err.Error()
		}
		out <- text
	}()
	return out
}

func TestSyslogTCP(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	text := accept(ln)
	s := newSyslogTo(t, Target{Syslog: "tcp://" + ln.Addr().String()})
	sendTo(t, s, nastyMessage(t))
	checkLine(t, <-text)
	ln.Close()
	if _, err := s.send(context.Background(), nastyMessage(t)); err == nil {
		t.Error("nobody listens, and it is said to be delivered")
	}
}

// A receiver that resets the connection has not read the message.
func TestSyslogTCPReset(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		if conn, err := ln.Accept(); err == nil {
			_ = conn.(*net.TCPConn).SetLinger(0)
			_ = conn.Close()
		}
	}()
	s := newSyslogTo(t, Target{Syslog: "tcp://" + ln.Addr().String()})
	if answer, err := s.send(context.Background(), nastyMessage(t)); err == nil {
		t.Errorf("%q", answer)
	}
}

func TestSyslogTLS(t *testing.T) {
	web := httptest.NewUnstartedServer(nil) // its certificate is good for 127.0.0.1
	web.StartTLS()
	defer web.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	text := accept(ln)
	sendTo(t, newSyslogTo(t, Target{Syslog: "tls://" + ln.Addr().String(), CAFile: ca}), nastyMessage(t))
	checkLine(t, <-text)
	text = accept(ln)
	var unknown x509.UnknownAuthorityError
	if _, err := newSyslogTo(t, Target{Syslog: "tls://" + ln.Addr().String()}).send(context.Background(), nastyMessage(t)); !errors.As(err, &unknown) {
		t.Errorf("an unknown receiver: %v", err)
	}
	if got := <-text; strings.Contains(got, "wardlink") {
		t.Errorf("it was told: %q", got)
	}
}

func TestSyslogLocal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	conn, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sendTo(t, newSyslogTo(t, Target{Syslog: "unix:" + path}), nastyMessage(t))
	buf := make([]byte, 65536)
	n, _, err := conn.ReadFrom(buf)
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`^<130>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d wardlink\[\d+\]: alert\.raised disk-low journal: `)
	if !want.Match(buf[:n]) || !strings.Contains(string(buf[:n]), `detail.where="a \"quoted\"`) {
		t.Errorf("%q", buf[:n])
	}
}

// FuzzSyslog: whatever is in subject and details, the message is one that RFC 5424's grammar takes apart into the same.
func FuzzSyslog(f *testing.F) {
	f.Add("gw-1", "where", nasty)
	f.Add("]\\\"", "", "\n\x00")
	f.Fuzz(func(t *testing.T, subject, name, value string) {
		p := testPayload("ward.example", time.Unix(1, 0))
		c := clean(Condition{Subject: subject, Detail: map[string]string{name: value}})
		p.Data.Subject, p.Data.Detail = c.Subject, c.Detail
		s := &syslogSender{host: "h"}
		l, err := parseLine(s.format(p, "msg_1", true))
		if err != nil || l.data[sdID]["subject"] != c.Subject {
			t.Errorf("%q %q %q: %v %+v", subject, name, value, err, l)
		}
	})
}
