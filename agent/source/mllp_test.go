package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
)

// oru is a message in original mode with the control id given.
func oru(id string) []byte {
	return []byte("MSH|^~\\&|MON|WARD|||20260102030405+0000||ORU^R01^ORU_R01|" + id + "|P|2.6\rPID|||CANARY-1\rOBX|1|NM|147842^^MDC||80|bpm|||||F\r")
}

func frame(msg []byte) []byte {
	var b bytes.Buffer
	if err := hl7.WriteFrame(&b, msg); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// start serves a source on a free port of loopback.
func start(t *testing.T, cfg Config) (*MLLP, context.CancelFunc) {
	t.Helper()
	if cfg.ID == "" {
		cfg.ID = "bed-1"
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	s, err := NewMLLP(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, serve(t, s)
}

// device is the far end of a connection.
type device struct {
	*testing.T
	net.Conn
	r *hl7.Reader
}

func dial(t *testing.T, s *MLLP) device {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return device{t, c, hl7.NewReader(c, telemetry.MaxMessage)}
}

func (d device) send(b []byte) {
	d.Helper()
	if _, err := d.Write(b); err != nil {
		d.Fatal(err)
	}
}

// answer is the MSA segment of the next answer.
func (d device) answer() string {
	d.Helper()
	if err := d.SetReadDeadline(time.Now().Add(patience)); err != nil {
		d.Fatal(err)
	}
	msg, err := d.r.Next()
	if err != nil {
		d.Fatalf("no answer: %v", err)
	}
	_, msa, _ := strings.Cut(strings.TrimSuffix(string(msg), "\r"), "\r")
	return msa
}

// quiet asserts that nothing comes for a while.
func (d device) quiet() {
	d.Helper()
	if err := d.SetReadDeadline(time.Now().Add(silence)); err != nil {
		d.Fatal(err)
	}
	if n, err := d.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		d.Fatalf("%d bytes came, %v", n, err)
	}
}

// closed asserts that the far side ends the connection and sends nothing more.
func (d device) closed() {
	d.Helper()
	if err := d.SetReadDeadline(time.Now().Add(patience)); err != nil {
		d.Fatal(err)
	}
	b, err := io.ReadAll(d.Conn)
	if len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		d.Fatalf("%q, %v; want the connection's end", b, err)
	}
}

func TestAcknowledgedOnlyAfterAccept(t *testing.T) {
	got, release := make(chan Delivery), make(chan error)
	acked := make(chan [32]byte, 1)
	s, _ := start(t, Config{
		Accept: func(_ context.Context, d Delivery) error {
			got <- d
			return <-release
		},
		Acknowledged: func(_ string, digest [32]byte) { acked <- digest },
	})
	d := dial(t, s)
	d.send(frame(oru("1")))
	delivery := <-got
	d.quiet()
	if st := s.Stats(); st.Received != 1 || st.Acknowledged != 0 || len(acked) != 0 {
		t.Errorf("before Accept returned: %+v", st)
	}
	release <- nil
	if a := d.answer(); a != "MSA|AA|1" {
		t.Errorf("%q", a)
	}
	if digest := <-acked; digest != sha256.Sum256(oru("1")) {
		t.Error("Acknowledged was told another message")
	}
	if delivery.Source != "bed-1" || !bytes.Equal(delivery.Raw, oru("1")) || delivery.Message.Patient.ID != "CANARY-1" ||
		delivery.Message.Source != "bed-1" || len(delivery.Message.Observations) != 1 {
		t.Errorf("%+v", delivery)
	}
	if st := s.Stats(); st.Acknowledged != 1 || st.LastReceived.IsZero() || st.NotUnderstood != 0 {
		t.Errorf("%+v", st)
	}
}

func TestAcceptFails(t *testing.T) {
	for name, failure := range map[string]error{"disk": errors.New("disk is gone"), "full": fmt.Errorf("append: %w", ErrFull)} {
		t.Run(name, func(t *testing.T) {
			s, _ := start(t, Config{
				Accept:       func(context.Context, Delivery) error { return failure },
				Acknowledged: func(string, [32]byte) { t.Error("Acknowledged is called") },
				Backoff:      time.Millisecond,
			})
			d := dial(t, s)
			d.send(frame(oru("1")))
			d.closed()
			if st := s.Stats(); st.Failed != 1 || st.Acknowledged != 0 || st.Refused != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// A full buffer holds the device back; being told to stop does not wait for that.
func TestFullHoldsBack(t *testing.T) {
	s, stop := start(t, Config{Accept: func(context.Context, Delivery) error { return ErrFull }, Backoff: time.Hour})
	d := dial(t, s)
	d.send(frame(oru("1")))
	d.quiet()
	stop()
	d.closed()
}

func TestPipelined(t *testing.T) {
	var running, most atomic.Int32
	s, _ := start(t, Config{Accept: func(context.Context, Delivery) error {
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		return nil
	}})
	d := dial(t, s)
	d.send(append(frame(oru("1")), frame(oru("2"))...))
	for _, want := range []string{"MSA|AA|1", "MSA|AA|2"} {
		if a := d.answer(); a != want {
			t.Errorf("%q, want %q", a, want)
		}
	}
	if most.Load() != 1 {
		t.Errorf("%d messages of one device at a time", most.Load())
	}
}

func TestModes(t *testing.T) {
	var acked atomic.Int32
	s, _ := start(t, Config{Accept: take, Acknowledged: func(string, [32]byte) { acked.Add(1) }})
	d := dial(t, s)
	mode := func(id, accept string) []byte {
		return frame([]byte("MSH|^~\\&|MON|WARD|||20260102030405||ORU^R01|" + id + "|P|2.6|||" + accept + "\rOBX|1|NM|147842^^MDC||80|bpm\r"))
	}
	d.send(mode("1", "AL|NE"))
	if a := d.answer(); a != "MSA|CA|1" {
		t.Errorf("%q", a)
	}
	d.send(mode("2", "NE|NE"))
	eventually(t, "a message that wants no answer is not counted", func() bool { return acked.Load() == 2 })
	d.send(mode("3", "NE|AL"))
	if a := d.answer(); a != "MSA|AA|3" {
		t.Errorf("%q", a)
	}
	eventually(t, "an answer is not counted", func() bool { return s.Stats().Acknowledged == 3 })
}

// A sender slower than any one read is served; one slower than FrameTimeout is not.
func TestSlowSender(t *testing.T) {
	s, _ := start(t, Config{Accept: take})
	d := dial(t, s)
	for _, b := range frame(oru("1")) {
		d.send([]byte{b})
	}
	if a := d.answer(); a != "MSA|AA|1" {
		t.Errorf("%q", a)
	}

	s, _ = start(t, Config{Accept: func(context.Context, Delivery) error { t.Error("half a message is accepted"); return nil }, FrameTimeout: 20 * time.Millisecond})
	d = dial(t, s)
	d.send(frame(oru("1"))[:50])
	d.closed()
}

func TestIdle(t *testing.T) {
	s, _ := start(t, Config{Accept: take, IdleTimeout: 20 * time.Millisecond})
	dial(t, s).closed()
}

func TestTooLong(t *testing.T) {
	s, _ := start(t, Config{Accept: func(_ context.Context, d Delivery) error {
		if len(d.Raw) > 1000 {
			t.Error("accepted")
		}
		return nil
	}, MaxMessage: 1000})
	d := dial(t, s)
	// The answer names the message, and what the device says after it is not lost with it.
	d.send(frame(append(oru("77"), bytes.Repeat([]byte("y"), 9000)...)))
	d.send(frame(oru("78")))
	for _, want := range []string{"MSA|AR|77|message is too long", "MSA|AA|78"} {
		if a := d.answer(); a != want {
			t.Errorf("%q, want %q", a, want)
		}
	}
	// One without an end: the answer must come all the same, and reach the device although it still sends. Then the connection ends.
	d.send(append([]byte{0x0b}, bytes.Repeat([]byte("x"), 100_000)...))
	if a := d.answer(); a != "MSA|AR||message is too long" {
		t.Errorf("%q", a)
	}
	d.closed()

	// Over-long messages in a row are no reason to hang up: each is answered, and the one after them is taken.
	d = dial(t, s)
	for range maxFaults {
		d.send(frame(append(oru("79"), bytes.Repeat([]byte("y"), 1000)...)))
		if a := d.answer(); a != "MSA|AR|79|message is too long" {
			t.Errorf("%q", a)
		}
	}
	d.send(frame(oru("80")))
	if a := d.answer(); a != "MSA|AA|80" {
		t.Errorf("%q", a)
	}
	if st := s.Stats(); st.Refused != 2+maxFaults || st.Received != 2 {
		t.Errorf("%+v", st)
	}
}

// The longest message that is allowed is taken, to the byte.
func TestLongest(t *testing.T) {
	s, _ := start(t, Config{Accept: take})
	msg := append(oru("1"), "OBX|2|ST|1||"...)
	msg = append(msg, bytes.Repeat([]byte("x"), telemetry.MaxMessage-len(msg))...)
	d := dial(t, s)
	d.send(frame(msg))
	if a := d.answer(); a != "MSA|AA|1" {
		t.Errorf("%q", a)
	}
}

func TestRefusedAndGoingOn(t *testing.T) {
	s, _ := start(t, Config{Accept: take})
	d := dial(t, s)
	for _, c := range []struct {
		send []byte
		want string
	}{
		{oru("1")[:20], "MSA|AR||message is not framed by MLLP"},
		{frame(oru("2")), "MSA|AA|2"},
		{frame([]byte("no message")), "MSA|AR||message has no usable MSH segment"},
		{frame(nil), "MSA|AR||message has no usable MSH segment"},
		{append(append([]byte{0x0b}, oru("3")...), 0x1c, 'x'), "MSA|AR|3|message is not framed by MLLP"},
		{frame(oru("4")), "MSA|AA|4"},
	} {
		d.send(c.send)
		if a := d.answer(); a != c.want {
			t.Errorf("%q, want %q", a, c.want)
		}
	}
	// What counts as acknowledged was written, so a device may read its answer before the counter moves.
	eventually(t, "an answer is not counted", func() bool { return s.Stats().Acknowledged == 2 })
	if st := s.Stats(); st.Refused != 4 || st.Received != 4 || st.Connections != 1 {
		t.Errorf("%+v", st)
	}
	// Whoever cannot frame does not keep a connection for ever.
	d = dial(t, s)
	for range maxFaults {
		d.send([]byte{0x0b, 'M', 0x0b})
		d.answer()
	}
	d.closed()
}

// Content is never a reason to refuse.
func TestNotUnderstood(t *testing.T) {
	var got Delivery
	s, _ := start(t, Config{Accept: func(_ context.Context, d Delivery) error { got = d; return nil }})
	d := dial(t, s)
	d.send(frame([]byte("MSH|^~\\&|A|B|||x||ADT^A01|9|P|2.3\rPID|||1\r")))
	if a := d.answer(); a != "MSA|AA|9" {
		t.Errorf("%q", a)
	}
	if st := s.Stats(); st.NotUnderstood != 1 || st.Refused != 0 || got.Message.Raw == nil {
		t.Errorf("%+v", st)
	}
}

func TestPeers(t *testing.T) {
	s, _ := start(t, Config{Listen: "0.0.0.0:0", Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Accept: take})
	_, port, _ := net.SplitHostPort(s.Addr().String())
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	device{t, c, nil}.closed()
	if st := s.Stats(); st.NotAllowed != 1 || st.Connections != 0 {
		t.Errorf("%+v", st)
	}

	s, _ = start(t, Config{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Accept: take})
	d := dial(t, s)
	d.send(frame(oru("1")))
	d.answer()
}

func TestAllowed(t *testing.T) {
	s := &MLLP{cfg: Config{Allow: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fe80::/10")}}}
	for addr, want := range map[string]bool{"10.1.2.3": true, "::ffff:10.1.2.3": true, "10.2.0.1": false, "fe80::1%eth0": true, "2001:db8::1": false, "127.0.0.1": false} {
		if got := s.allowed(net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(addr), 1))); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}

func TestLimit(t *testing.T) {
	s, _ := start(t, Config{Accept: take, MaxConns: 2, Limits: Limits{PerAddress: 2}})
	a, b := dial(t, s), dial(t, s)
	for _, d := range []device{a, b} { // an answer shows that the connection has its place
		d.send(frame(oru("1")))
		d.answer()
	}
	dial(t, s).closed()
	if st := s.Stats(); st.OverLimit != 1 || st.Connections != 2 {
		t.Errorf("%+v", st)
	}
	a.Close()
	eventually(t, "a place is not given back", func() bool { return s.Stats().Connections == 1 })
	d := dial(t, s)
	d.send(frame(oru("2")))
	d.answer()
}

// Told to stop, the source answers the message it holds, and closes the connections that wait.
func TestStop(t *testing.T) {
	holds, release := make(chan struct{}), make(chan struct{})
	s, stop := start(t, Config{Accept: func(ctx context.Context, _ Delivery) error {
		close(holds)
		<-release
		return ctx.Err()
	}})
	idle, half, busy := dial(t, s), dial(t, s), dial(t, s)
	half.send(frame(oru("2"))[:30])
	busy.send(append(frame(oru("1")), frame(oru("3"))...))
	<-holds
	stop()
	idle.closed()
	half.closed()
	busy.quiet()
	close(release)
	if a := busy.answer(); a != "MSA|AA|1" {
		t.Errorf("%q", a)
	}
	busy.closed() // the second is left for the device to send again
}

// A message that cannot be finished in time is given up when the source stops.
func TestStopTimeout(t *testing.T) {
	holds := make(chan struct{})
	s, stop := start(t, Config{StopTimeout: time.Millisecond, Accept: func(ctx context.Context, _ Delivery) error {
		close(holds)
		<-ctx.Done()
		return ctx.Err()
	}})
	d := dial(t, s)
	d.send(frame(oru("1")))
	<-holds
	stop()
	d.closed()
}

func TestConfig(t *testing.T) {
	for name, c := range map[string]struct {
		cfg  Config
		want string
	}{
		"no id":          {Config{Listen: "127.0.0.1:0", Accept: take}, "id: it is missing"},
		"no Accept":      {Config{ID: "x", Listen: "127.0.0.1:0"}, "Accept"},
		"a high port":    {Config{ID: "x", Listen: "127.0.0.1:70000", Accept: take}, "65535"},
		"no port":        {Config{ID: "x", Listen: "127.0.0.1", Accept: take}, "mllp: "},
		"all, no allow":  {Config{ID: "x", Listen: ":0", Accept: take}, "allow: "},
		"0.0.0.0":        {Config{ID: "x", Listen: "0.0.0.0:0", Accept: take}, "allow: "},
		"IPv6 all":       {Config{ID: "x", Listen: "[::]:0", Accept: take}, "allow: "},
		"a name":         {Config{ID: "x", Listen: "gateway.example:0", Accept: take}, "allow: "},
		"beyond a batch": {Config{ID: "x", Listen: "127.0.0.1:0", Accept: take, MaxMessage: telemetry.MaxMessage + 1}, "MaxMessage"},
	} {
		if _, err := NewMLLP(c.cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q in it", name, err, c.want)
		}
	}
}

// safeBuffer is a log that is read while it is written.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// Nothing of a message reaches the log, and one kind of trouble makes one line a minute.
func TestLog(t *testing.T) {
	var log safeBuffer
	s, _ := start(t, Config{Accept: func(context.Context, Delivery) error { return errors.New("disk is gone") }, Log: slog.New(slog.NewTextHandler(&log, nil)), MaxMessage: 1000})
	for _, b := range [][]byte{frame(oru("CANARY-2")), frame([]byte("CANARY-3")), []byte("CANARY-4"), append([]byte{0x0b}, bytes.Repeat([]byte("CANARY-5"), 1000)...), frame(oru("1")), frame(oru("1"))} {
		d := dial(t, s)
		d.send(b)
		_ = d.CloseWrite()
		_, _ = io.Copy(io.Discard, d.Conn) // until the source ends it, with or without a reset
	}
	log.mu.Lock()
	defer log.mu.Unlock()
	if strings.Contains(log.b.String(), "CANARY") || strings.Count(log.b.String(), "disk is gone") != 1 {
		t.Errorf("%s", log.b.String())
	}
}

// CloseWrite says that nothing more will be sent.
func (d device) CloseWrite() error { return d.Conn.(*net.TCPConn).CloseWrite() }
