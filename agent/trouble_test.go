package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wardlink/agent/source"
	"wardlink/buffer"
	"wardlink/enroll/enrolltest"
	"wardlink/internal/mounttest"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
	"wardlink/telemetry/seal"
)

// patience bounds every wait of these tests; none of them waits for time to pass.
const patience = 30 * time.Second

// box is a gateway without TPM and network: what it takes in stays in its buffer.
type box struct {
	*testing.T
	dir   string
	cfg   Config
	key   seal.PrivateKey
	agent *Agent
	stop  func()
}

// newBox writes a kit whose server nobody is, and a configuration with a source on a free port.
func newBox(t *testing.T, dir string) *box {
	t.Helper()
	b := &box{T: t, dir: dir, key: newKey(t)}
	if err := os.WriteFile(filepath.Join(dir, "kit.json"), enrolltest.Kit(t, "ward.test", "127.0.0.1:1", b.key.Public()), 0o644); err != nil {
		t.Fatal(err)
	}
	b.cfg = Config{Kit: filepath.Join(dir, "kit.json"), State: filepath.Join(dir, "state"), TPM: "/nowhere/tpmrm0", Log: "text",
		Buffer: BufferConfig{Cap: "64MB"}, Sources: []SourceConfig{{ID: "bed-1", MLLP: "127.0.0.1:0"}}}
	return b
}

// start runs the agent. Its end is part of every test: Run returns nil.
func (b *box) start() {
	b.Helper()
	a, err := New(b.cfg, slog.New(slog.NewTextHandler(io.Discard, nil)))
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	b.agent = a
	b.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				b.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			b.Error("Run does not end")
		}
	})
	b.Cleanup(b.stop)
}

func (b *box) until(what string, ok func() bool) {
	b.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			b.Fatal(what)
		}
	}
}

// message is an observation report with so many bytes that do not compress.
func message(control string, size int) []byte {
	noise := make([]byte, size/2)
	rand.Read(noise)
	return []byte("MSH|^~\\&|MON|ICU|WL|WL|20261122120000+0000||ORU^R01^ORU_R01|" + control + "|T|2.6|||AL|NE\rPID|||P1\r" +
		"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC||72|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\rOBX|2|ST|68487^MDC_ATTR^MDC||" + hex.EncodeToString(noise) + "||||||R\r")
}

// device is one connection to the gateway's first source.
type device struct {
	*box
	c  net.Conn
	in *bufio.Reader
}

func (b *box) connect() *device {
	b.Helper()
	c, err := net.Dial("tcp", b.agent.feeds.all()[0].Source.(*source.MLLP).Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	return &device{b, c, bufio.NewReader(c)}
}

// send delivers a message. It reports whether an acknowledgement came; meanwhile gives up the wait for one.
func (d *device) send(msg []byte, meanwhile func() bool) (acknowledged bool) {
	d.Helper()
	if err := hl7.WriteFrame(d.c, msg); err != nil {
		d.Fatal(err)
	}
	var got []byte
	for end := time.Now().Add(patience); ; {
		if err := d.c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			d.Fatal(err)
		}
		part, err := d.in.ReadBytes(0x1c)
		got = append(got, part...)
		switch {
		case err == nil:
			if !bytes.Contains(got, []byte("MSA|CA|")) {
				d.Fatalf("answered %q", got)
			}
			_, _ = d.in.Discard(1) // the frame's last byte, sent with the others
			return true
		case !errors.Is(err, os.ErrDeadlineExceeded), meanwhile():
			if len(got) > 0 {
				d.Fatalf("half an answer: %q", got)
			}
			return false
		case time.Now().After(end):
			d.Fatal("neither an acknowledgement nor a reason for none")
		}
	}
}

// send delivers one message on a connection of its own.
func (b *box) send(msg []byte, meanwhile func() bool) (acknowledged bool) {
	b.Helper()
	d := b.connect()
	defer d.c.Close()
	return d.send(msg, meanwhile)
}

// notYet waits for an acknowledgement whatever happens meanwhile.
func notYet() bool { return false }

// fill sends messages until one is not acknowledged. It gives the acknowledged control ids and the message that was not.
func (b *box) fill(size, most int) (acknowledged []string, refused []byte) {
	b.Helper()
	d := b.connect()
	defer d.c.Close()
	for i := range most {
		id := fmt.Sprint("F", i)
		msg := message(id, size)
		began := time.Now()
		if !d.send(msg, func() bool { return b.agent.intake.counters().Full }) {
			// Held back: the connection is closed without an answer, and not before a second has passed.
			_ = d.c.SetReadDeadline(time.Now().Add(patience))
			if rest, err := io.ReadAll(d.in); len(rest) > 0 || err != nil || time.Since(began) < time.Second {
				b.Errorf("%q, %v after %s", rest, err, time.Since(began))
			}
			return acknowledged, msg
		}
		acknowledged = append(acknowledged, id)
	}
	b.Fatalf("%d messages of %d bytes, and still room", most, size)
	return nil, nil
}

// finding is what the agent says about an area, asked over its socket as `status` and `doctor` do.
func (b *box) finding(area string) Finding {
	b.Helper()
	s, err := AskStatus(context.Background(), b.cfg)
	if err != nil {
		b.Fatal(err)
	}
	for _, f := range s.Examine(time.Now()) {
		if f.Area == area {
			return f
		}
	}
	b.Fatalf("nothing about %s", area)
	return Finding{}
}

// verify stops the agent, checks its buffer and looks for every acknowledged message in it, but for those that the hospital has had.
func (b *box) verify(acknowledged []string, had map[string]bool) {
	b.Helper()
	b.stop()
	dir := filepath.Join(b.cfg.State, "buffer")
	report, err := buffer.Check(dir, func(frame []byte) error { _, err := seal.CheckFrame(frame); return err })
	if err != nil || !report.OK() {
		b.Fatalf("%v, %+v", err, report)
	}
	s := newStation(b.T, dir, b.key)
	kept := map[string]int{}
	for _, m := range s.messages() {
		kept[m.ControlID]++
	}
	s.stop()
	for _, id := range acknowledged {
		if n := kept[id]; n > 1 || n == 0 && !had[id] {
			b.Errorf("%s was acknowledged and is kept %d times", id, n)
		}
	}
}

// A disk that is full: nothing is acknowledged, devices are held back, the agent says so, and it goes on by itself once there is room.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	if !mounttest.Inside(t) {
		return
	}
	b := newBox(t, t.TempDir())
	disk := mounttest.Mount(t, b.cfg.State, "40m")
	b.start()
	if !b.send(message("first", 100), notYet) {
		t.Fatal("not acknowledged on an empty disk")
	}
	disk.Fill()
	acknowledged, refused := b.fill(50_000, 400)
	f := b.finding(AreaBuffer)
	if f.Level != Stops || !strings.Contains(f.Found, "the disk is full") || !strings.Contains(f.Mend, "free space") {
		t.Errorf("%+v", f)
	}
	if f := b.finding(AreaDisk); f.Level != Stops {
		t.Errorf("%+v", f)
	}
	if st := b.agent.feeds.all()[0].Stats(); st.Acknowledged != uint64(1+len(acknowledged)) || st.Failed == 0 {
		t.Errorf("%+v after %d acknowledgements", st, 1+len(acknowledged))
	}

	// A restart with the disk still full takes nothing either, and does not fail. A segment that the start found room for takes what fits into it;
	// whatever is acknowledged is kept.
	b.stop()
	disk.Fill()
	b.start()
	disk.Fill()
	full := func() bool { return b.agent.intake.counters().Full }
	for i := 0; b.send(message(fmt.Sprint("between", i), 400), full); i++ {
		if acknowledged = append(acknowledged, fmt.Sprint("between", i)); i == 20_000 { // 8 MB: no segment has so much of its own
			t.Fatal("acknowledged after a restart on a full disk")
		}
	}

	disk.Free()
	if !b.send(refused, notYet) {
		t.Error("not acknowledged although there is room")
	}
	b.until("the status socket does not come back", func() bool { _, err := AskStatus(context.Background(), b.cfg); return err == nil })
	if f := b.finding(AreaBuffer); f.Level != Well {
		t.Errorf("recovered: %+v", f)
	}
	id := string(bytes.Split(refused, []byte("|"))[9])
	b.verify(append(acknowledged, "first", id), nil)
}

// The buffer at its cap goes on taking messages: the oldest that nobody has are deleted, which is said, and nothing else is.
func TestBufferAtItsCap(t *testing.T) {
	t.Parallel()
	if !mounttest.Inside(t) {
		return
	}
	b := newBox(t, t.TempDir())
	mounttest.Mount(t, b.cfg.State, "200m")
	b.start()
	d := b.connect()
	var acknowledged []string
	evicted := func() uint64 { return b.agent.buf.Stats().Lanes[telemetry.LaneVitals].Evicted }
	for i := 0; evicted() == 0 || i%100 > 0; i++ {
		id := fmt.Sprint("F", i)
		if !d.send(message(id, 60_000), notYet) || i > 5000 {
			t.Fatal("no acknowledgement, or no end")
		}
		acknowledged = append(acknowledged, id)
	}
	d.c.Close()
	s, err := AskStatus(context.Background(), b.cfg)
	if err != nil || s.Buffer.Disk > s.Buffer.Cap || s.Fill() < 0.5 {
		t.Errorf("%+v, %v", s.Buffer, err)
	}
	for _, f := range s.Examine(time.Now()) {
		if f.Level == Stops && (f.Area == AreaBuffer || f.Area == AreaDisk) {
			t.Errorf("%+v", f)
		}
	}
	// Which messages are gone follows from the batches: the first ones, since each was a batch of its own.
	gone := map[string]bool{}
	for _, id := range acknowledged[:evicted()] {
		gone[id] = true
	}
	if len(gone) == len(acknowledged) {
		t.Fatal("everything is gone")
	}
	b.verify(acknowledged, gone)
}

// A port that somebody else holds costs this source its devices, and nobody else anything.
func TestPortTakenBySomebodyElse(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	b := newBox(t, t.TempDir())
	b.cfg.Sources = append(b.cfg.Sources, SourceConfig{ID: "bed-2", MLLP: busy.Addr().String()})
	b.start()
	if !b.send(message("1", 100), notYet) {
		t.Error("the other source does not take messages")
	}
	b.until("the status socket", func() bool { _, err := AskStatus(context.Background(), b.cfg); return err == nil })
	s, err := AskStatus(context.Background(), b.cfg)
	if err != nil {
		t.Fatal(err)
	}
	var f Finding
	for _, x := range s.Examine(time.Now()) {
		if x.Name == "bed-2" {
			f = x
		}
	}
	if f.Level != Stops || !strings.Contains(f.Found, busy.Addr().String()) || !strings.Contains(f.Found, fmt.Sprintf("(process %d)", os.Getpid())) {
		t.Errorf("%+v", f)
	}
	busy.Close()
	b.until("the port is free and not used", func() bool { return b.agent.feeds.all()[1].Stats().Listening })
}

// Two agents on one state would give one number to two batches.
func TestSecondAgentOnOneState(t *testing.T) {
	b := newBox(t, t.TempDir())
	b.start()
	second := b.cfg
	second.Sources = []SourceConfig{{ID: "bed-1", MLLP: "127.0.0.1:0"}}
	if a, err := New(second, slog.New(slog.DiscardHandler)); !errors.Is(err, buffer.ErrLocked) || !strings.Contains(err.Error(), "wardlink-agent status") {
		t.Errorf("%v, %v", a, err)
	}
	if !b.send(message("1", 100), notYet) {
		t.Error("the first agent is disturbed")
	}
	b.until("the first agent's socket is gone", func() bool { _, err := AskStatus(context.Background(), b.cfg); return err == nil })
}

// A state directory that cannot be written is told at the start, with its mend.
func TestStateCannotBeWritten(t *testing.T) {
	t.Run("a file", func(t *testing.T) {
		b := newBox(t, t.TempDir())
		if err := os.WriteFile(b.cfg.State, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := New(b.cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, syscall.ENOTDIR) || !strings.Contains(err.Error(), "'state:'") {
			t.Errorf("%v", err)
		}
	})
}

func TestStateOnAReadOnlyDisk(t *testing.T) {
	if !mounttest.Inside(t) {
		return
	}
	b := newBox(t, t.TempDir())
	mounttest.Mount(t, b.cfg.State, "1m").ReadOnly()
	if _, err := New(b.cfg, slog.New(slog.DiscardHandler)); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "read-only: mount it for writing") {
		t.Errorf("%v", err)
	}
	if d, err := DiskAt(b.cfg.State); err != nil || !d.ReadOnly {
		t.Errorf("%+v, %v", d, err)
	}
}

// Root may write anywhere, so the state of another user is tried by a thread that is nobody.
func TestStateOfAnotherUser(t *testing.T) {
	b := newBox(t, t.TempDir())
	if err := os.Mkdir(b.cfg.State, 0o500); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		asNobody(t, b.dir)
	}
	_, err := New(b.cfg, slog.New(slog.DiscardHandler))
	if !os.IsPermission(err) && !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "run it as that user, or chown") {
		t.Errorf("%v", err)
	}
}

// asNobody lets the calling goroutine see files as the user nobody does: what Linux checks is the thread's.
func asNobody(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	runtime.LockOSThread()
	if err := syscall.Setfsuid(65534); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setfsuid(0); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
}
