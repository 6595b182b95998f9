package bedside

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// receiver is a scripted MLLP listener behind net.Pipe: each connection is served by the next function of the script.
type receiver struct {
	script []func(c *served)
	dials  int

	mu  sync.Mutex
	got [][]byte // every message in the order it came
}

// served is one connection of a receiver.
type served struct {
	net.Conn
	to *receiver
	r  *bufio.Reader
}

func (r *receiver) dial(context.Context, string, string) (net.Conn, error) {
	if r.dials == len(r.script) {
		return nil, errors.New("nobody listens")
	}
	serve := r.script[r.dials]
	r.dials++
	if serve == nil {
		return nil, errors.New("nobody listens yet")
	}
	here, there := net.Pipe()
	go func() {
		defer there.Close()
		serve(&served{there, r, bufio.NewReader(there)})
	}()
	return here, nil
}

// next reads one message and gives its control id; "" when the monitor has hung up.
func (s *served) next() (id string) {
	message, err := readBlock(s.r)
	if err != nil {
		return ""
	}
	s.to.mu.Lock()
	defer s.to.mu.Unlock()
	s.to.got = append(s.to.got, message)
	return strings.Split(string(message), "|")[9]
}

func (s *served) answer(code, id string) {
	fmt.Fprintf(s, "\vMSH|^~\\&|||||20260101||ACK|1|T|2.6\rMSA|%s|%s\r\x1c\r", code, id)
}

// acknowledge accepts everything until the monitor hangs up.
func acknowledge(s *served) {
	for id := s.next(); id != ""; id = s.next() {
		s.answer("CA", id)
	}
}

// rows is a source of n rows that lie in the past.
func rows(n int) Source {
	return func(yield func(Row) bool) {
		for i := range n {
			row := Row{At: time.UnixMilli(int64(1000 * i)), Values: []Value{{heartRate, fmt.Sprint(60 + i)}, {Signal: oxygenSat}}}
			if !yield(row) {
				return
			}
		}
	}
}

func testConfig(source Source) Config {
	return Config{Address: "127.0.0.1:2575", Device: 0x0123456789ABCDEF, Source: source, Ward: "ICU", Bed: "BED-1",
		Patient: Patient{ID: "WL0001", Namespace: "WARDSIM", OID: "2.25.1234"}}
}

// runAgainst runs a monitor of n rows against a script, in a bubble whose clock the waits move, for limit at most.
func runAgainst(t *testing.T, n int, limit time.Duration, script ...func(*served)) (m *Monitor, r *receiver, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r = &receiver{script: script}
		cfg := testConfig(rows(n))
		cfg.Dial = r.dial
		if m, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		err = m.Run(ctx)
		synctest.Wait()
	})
	return m, r, err
}

func TestClient(t *testing.T) {
	accepted := func(n int) Totals {
		return Totals{Messages: n, MessagesAcknowledged: n, Sent: n, Acknowledged: n, NoReadings: n, NoReadingsAcknowledged: n}
	}
	refused := Totals{Messages: 2, MessagesAcknowledged: 1, Sent: 2, Acknowledged: 1, NoReadings: 2, NoReadingsAcknowledged: 1}
	silent := func(s *served) { s.next(); s.next() } // returns when the monitor hangs up
	for name, tc := range map[string]struct {
		rows     int
		script   []func(*served)
		messages []int // the row that each received message carries
		totals   Totals
		traffic  Traffic
	}{
		"each acknowledged": {3, []func(*served){acknowledge}, []int{0, 1, 2}, accepted(3), Traffic{Connections: 1}},
		"AA is accepted": {1, []func(*served){func(s *served) { s.answer("AA", s.next()); s.next() }}, []int{0}, accepted(1),
			Traffic{Connections: 1}},
		"no CR at the end": {1, []func(*served){func(s *served) {
			fmt.Fprintf(s, "\vMSH|^~\\&|||||20260101||ACK|1|T|2.6\rMSA|CA|%s\x1c\r", s.next())
			s.next()
		}}, []int{0}, accepted(1), Traffic{Connections: 1}},
		"listener comes later": {1, []func(*served){nil, nil, nil, acknowledge}, []int{0}, accepted(1), Traffic{Connections: 1}},
		"hung up before the acknowledgement": {2, []func(*served){func(s *served) { s.next() }, acknowledge}, []int{0, 0, 1}, accepted(2),
			Traffic{Connections: 2, Resent: 1}},
		"no acknowledgement in time": {2, []func(*served){silent, acknowledge}, []int{0, 0, 1}, accepted(2),
			Traffic{Connections: 2, Resent: 1, Timeouts: 1}},
		"another message's acknowledgement": {2, []func(*served){func(s *served) {
			id := s.next()
			s.answer("CA", "somebody else's")
			s.answer("CA", id)
			acknowledge(s)
		}}, []int{0, 1}, accepted(2), Traffic{Connections: 1, Stray: 1}},
		"only another message's acknowledgement": {1, []func(*served){func(s *served) {
			s.next()
			s.answer("CA", "somebody else's")
			s.next()
		}, acknowledge}, []int{0, 0}, accepted(1), Traffic{Connections: 2, Resent: 1, Timeouts: 1, Stray: 1}},
		"not now": {2, []func(*served){func(s *served) {
			s.answer("CE", s.next())
			s.answer("AE", s.next())
			acknowledge(s)
		}}, []int{0, 0, 0, 1}, accepted(2), Traffic{Connections: 1, Resent: 2, NotNow: 2}},
		"refused for good": {2, []func(*served){func(s *served) {
			s.answer("CR", s.next())
			acknowledge(s)
		}}, []int{0, 1}, refused, Traffic{Connections: 1, Refused: 1}},
		"nonsense for an acknowledgement": {1, []func(*served){func(s *served) {
			s.next()
			io.WriteString(s, "\vHTTP/1.1 400\x1c\r")
			s.next()
		}, acknowledge}, []int{0, 0}, accepted(1), Traffic{Connections: 2, Resent: 1}},
		"unknown code": {1, []func(*served){func(s *served) { s.answer("OK", s.next()); s.next() }, acknowledge}, []int{0, 0}, accepted(1),
			Traffic{Connections: 2, Resent: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			m, r, err := runAgainst(t, tc.rows, time.Hour, tc.script...)
			if err != nil {
				t.Fatal(err)
			}
			if got := m.Account().Totals(); got != tc.totals {
				t.Errorf("totals %+v, want %+v", got, tc.totals)
			}
			if got := m.Traffic(); got != tc.traffic {
				t.Errorf("traffic %+v, want %+v", got, tc.traffic)
			}
			var order []int
			bytesOf := map[int][]byte{}
			for _, message := range r.got {
				row := slices.IndexFunc([]int{0, 1, 2}, func(n int) bool { return bytes.Contains(message, fmt.Appendf(nil, "|%d|", 60+n)) })
				order = append(order, row)
				if former := bytesOf[row]; former != nil && !bytes.Equal(former, message) {
					t.Errorf("row %d was sent again with other bytes", row)
				}
				bytesOf[row] = message
			}
			if !slices.Equal(order, tc.messages) {
				t.Errorf("received rows %v, want %v", order, tc.messages)
			}
		})
	}
}

// An account must never claim less than what may have left the monitor, nor more than what was acknowledged.
func TestCancelledWhileWaiting(t *testing.T) {
	var waited time.Duration
	m, _, err := runAgainst(t, 3, 3*time.Second, func(s *served) {
		started := time.Now()
		s.answer("CA", s.next())
		s.next()
		s.next() // returns when the monitor hangs up
		waited = time.Since(started)
	})
	if waited != 3*time.Second {
		t.Errorf("it hung up after %s, not when it was told to end", waited)
	}
	want := Totals{Messages: 2, MessagesAcknowledged: 1, Sent: 2, Acknowledged: 1, NoReadings: 2, NoReadingsAcknowledged: 1}
	if got := m.Account().Totals(); got != want || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%+v, %v", got, err)
	}
	if got := m.Traffic(); got != (Traffic{Connections: 1}) {
		t.Errorf("traffic %+v", got)
	}
}

func TestNothingIsSentWithoutAConnection(t *testing.T) {
	m, _, err := runAgainst(t, 3, time.Minute)
	if got := m.Account().Totals(); got != (Totals{}) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestRowsWaitForTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var came []time.Duration
		start := time.Now()
		r := &receiver{script: []func(*served){func(s *served) {
			for id := s.next(); id != ""; id = s.next() {
				came = append(came, time.Since(start))
				s.answer("CA", id)
			}
		}}}
		cfg := testConfig(Simulate(DefaultSimulation(1, start, 3)))
		cfg.Dial = r.dial
		m, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !slices.Equal(came, []time.Duration{0, time.Second, 2 * time.Second}) {
			t.Errorf("rows came after %v", came)
		}
	})
}

// Over real sockets, plain and with TLS.
func TestSockets(t *testing.T) {
	https := httptest.NewUnstartedServer(nil) // for its certificate, which names example.com and loopback
	https.StartTLS()
	defer https.Close()
	roots := x509.NewCertPool()
	roots.AddCert(https.Certificate())

	for name, tc := range map[string]struct{ server, client *tls.Config }{
		"plain": {nil, nil},
		"tls":   {&tls.Config{Certificates: https.TLS.Certificates}, &tls.Config{RootCAs: roots}},
	} {
		t.Run(name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			cfg := testConfig(rows(20))
			cfg.Address, cfg.TLS = listener.Addr().String(), tc.client
			if tc.server != nil {
				listener = tls.NewListener(listener, tc.server)
			}
			defer listener.Close()
			go func() {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				acknowledge(&served{conn, &receiver{}, bufio.NewReader(conn)})
			}()
			m, err := New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := m.Run(ctx); err != nil || m.Account().Totals().Acknowledged != 20 {
				t.Fatalf("%v, %+v, %+v", err, m.Account().Totals(), m.Traffic())
			}
		})
	}
}

func TestUntrustedServerGetsNothing(t *testing.T) {
	https := httptest.NewUnstartedServer(nil)
	https.Config.ErrorLog = log.New(io.Discard, "", 0)
	https.StartTLS()
	defer https.Close()
	cfg := testConfig(rows(1))
	cfg.Address, cfg.TLS = https.Listener.Addr().String(), &tls.Config{RootCAs: x509.NewCertPool()}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := m.Run(ctx); err == nil || m.Account().Totals().Sent != 0 {
		t.Errorf("%v, %+v", err, m.Account().Totals())
	}
}

func TestReadBlockBounds(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"block":          {"\vabc\x1c\r", "abc"},
		"noise before":   {"\r\n\vabc\x1c\r", "abc"},
		"empty":          {"\v\x1c\r", ""},
		"as long as may": {"\v" + strings.Repeat("x", maxAck) + "\x1c", strings.Repeat("x", maxAck)},
	} {
		if got, err := readBlock(bufio.NewReader(strings.NewReader(tc.in))); err != nil || string(got) != tc.want {
			t.Errorf("%s: %.20q, %v", name, got, err)
		}
	}
	for name, in := range map[string]string{
		"nothing": "", "cut off": "\vabc", "too long": "\v" + strings.Repeat("x", maxAck+1) + "\x1c", "no start": strings.Repeat("x", maxAck+2),
	} {
		if got, err := readBlock(bufio.NewReader(strings.NewReader(in))); err == nil {
			t.Errorf("%s: %.20q", name, got)
		}
	}
}

func TestParseAck(t *testing.T) {
	for in, want := range map[string]ack{
		"MSH|^~\\&|A\rMSA|CA|X-1|text\r":   {"CA", "X-1"},
		"MSH|^~\\&|A\rMSA|CA|X-1":          {"CA", "X-1"},
		"MSH|^~\\&|A\r\nMSA|AA|X-1\r\n":    {"AA", "X-1"},
		"MSH|^~\\&|A\nSFT|x\nMSA|AE|X-1\n": {"AE", "X-1"},
		"MSH*^~\\&*A\rMSA*CR*X|1\rERR*x\r": {"CR", "X|1"},
	} {
		if got, err := parseAck([]byte(in)); err != nil || got != want {
			t.Errorf("%q: %+v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "MSH", "MSA|CA|X-1\r", "MSH|^~\\&|A\r", "MSH|^~\\&|A\rMSA|CA\r", "MSH|^~\\&|A\rMSAX|CA|X-1\r"} {
		if got, err := parseAck([]byte(in)); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
}

func FuzzAck(f *testing.F) {
	f.Add([]byte("MSH|^~\\&|A|B|||20260101||ACK|1|T|2.6\rMSA|CA|X-1\r"))
	f.Add([]byte("MSH|^~\\&|A|B|||20260101||ACK^R01^ACK|1|P|2.5\rMSA|AA|X-1"))
	f.Add([]byte("MSH*^~\\&*\nSFT*x\nMSA*AE*X-1*text"))
	f.Add([]byte("MSH|\rMSA|CA"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		a, err := parseAck(raw)
		if err != nil {
			return
		}
		// What names no code of the standard must never count as accepted.
		if a.verdict() == nil && !bytes.Contains(raw, []byte("CA")) && !bytes.Contains(raw, []byte("AA")) {
			t.Errorf("accepted by %q", raw)
		}
	})
}
