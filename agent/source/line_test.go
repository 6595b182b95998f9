package source

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"wardlink/telemetry"
)

// startLine serves a line socket.
func startLine(t *testing.T, cfg LineConfig) (*Line, context.CancelFunc) {
	t.Helper()
	cfg.ID = "pump"
	if cfg.Socket.Path == "" {
		cfg.Socket = Socket{Path: filepath.Join(t.TempDir(), "vitals.sock"), Group: -1}
	}
	if cfg.Accept == nil {
		cfg.Accept = take
	}
	l, err := NewLine(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l, serve(t, l)
}

// feeder is the far end of a line socket.
type feeder struct {
	*testing.T
	net.Conn
	r *bufio.Reader
}

func feed(t *testing.T, l *Line) feeder {
	t.Helper()
	c, err := net.Dial("unix", l.Stats().Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return feeder{t, c, bufio.NewReader(c)}
}

func (f feeder) send(text string) {
	f.Helper()
	if _, err := f.Write([]byte(text)); err != nil {
		f.Fatal(err)
	}
}

func (f feeder) answer() string {
	f.Helper()
	s, err := f.r.ReadString('\n')
	if err != nil {
		f.Fatalf("no answer: %q %v", s, err)
	}
	return strings.TrimSuffix(s, "\n")
}

// ended makes sure that the connection ends without another answer.
func (f feeder) ended() {
	f.Helper()
	if s, err := f.r.ReadString('\n'); err == nil || s != "" || errors.Is(err, os.ErrDeadlineExceeded) {
		f.Errorf("the connection goes on: %q %v", s, err)
	}
}

const reading = `{"id":%q,"observations":[{"code":"MDC_ECG_HEART_RATE","value":72,"unit":"/min"}]}` + "\n"

func TestLineIsAnsweredOnlyAfterAccept(t *testing.T) {
	release, got := make(chan error), make(chan Delivery, 1)
	l, _ := startLine(t, LineConfig{Accept: func(_ context.Context, d Delivery) error {
		got <- d
		return <-release
	}})
	f := feed(t, l)
	f.send(fmt.Sprintf(reading, "a") + fmt.Sprintf(reading, "b"))
	d := <-got
	if d.ID != "a" || d.Source != "pump" || len(d.Message.Observations) != 1 || string(d.Raw) != strings.TrimSuffix(fmt.Sprintf(reading, "a"), "\n") {
		t.Errorf("%+v", d)
	}
	if err := f.SetReadDeadline(time.Now().Add(silence)); err != nil {
		t.Fatal(err)
	}
	if s, err := f.r.ReadString('\n'); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("answered before it was stored: %q %v", s, err)
	}
	if err := f.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	release <- nil
	if a := f.answer(); a != `{"ok":"a"}` {
		t.Error(a)
	}
	<-got
	release <- errors.New("disk")
	f.ended() // and no answer
	waitFor(t, func() bool {
		st := l.Stats()
		return st.Received == 2 && st.Acknowledged == 1 && st.Failed == 1 && st.Refused == 0 && !st.LastAcknowledged.IsZero()
	}, func() string { return fmt.Sprintf("%+v", l.Stats()) })
}

// A device behind a socket is bound to a bed as one behind a port is, by what it calls itself.
func TestLineBindsDevicesToBeds(t *testing.T) {
	got := make(chan Delivery, 1)
	l, _ := startLine(t, LineConfig{
		Bindings: []Binding{{Device: "pump-3", Bed: "ICU-7"}, {Device: "vent-9", Bed: "ICU-8"}},
		Accept:   func(_ context.Context, d Delivery) error { got <- d; return nil },
	})
	f := feed(t, l)
	f.send(`{"id":"a","device":"pump-3","observations":[{"code":150456,"value":97},{"code":150456,"value":96,"device":"vent-9"},{"code":150456,"value":95,"device":"other"}]}` + "\n")
	d := <-got
	for i, bed := range []string{"ICU-7", "ICU-8", ""} {
		if o := d.Message.Observations[i]; o.Bed != bed {
			t.Errorf("the reading of %q is of bed %q; want %q", o.Device, o.Bed, bed)
		}
	}
	f.answer()
	if st := l.Stats(); len(st.Beds) != 2 || st.Beds[0].Received != 1 || st.Beds[1].Received != 1 {
		t.Errorf("%+v", st.Beds)
	}
}

func waitFor(t *testing.T, ok func() bool, what func() string) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what())
		}
	}
}

func TestLineRefuses(t *testing.T) {
	l, _ := startLine(t, LineConfig{Accept: func(_ context.Context, d Delivery) error {
		if d.ID == "used" {
			return ErrReused
		}
		return nil
	}})
	f := feed(t, l)
	for _, c := range []struct{ sent, answer string }{
		{"{}\n", `{"error":"id: missing; `}, {fmt.Sprintf(reading, "used"), `{"error":"id: another message had it`}, {"{\"id\":7}\n", `{"ok":7}`},
		{"hello\n", `{"error":"message: not JSON`}, {"\n\n[]\n", `{"error":"message: not a JSON object`}, {"{\"id\":8}\n", `{"ok":8}`},
		{strings.Repeat("x", telemetry.MaxMessage+10) + "\n", `{"error":"message: longer than 65536 bytes`}, {"{\"id\":9}\n", `{"ok":9}`},
	} {
		f.send(c.sent)
		if a := f.answer(); !strings.HasPrefix(a, c.answer) {
			t.Errorf("%.60q: %s", c.sent, a)
		}
	}
	for range maxFaults {
		f.send("GET / HTTP/1.1\n")
		f.answer()
	}
	f.ended()
	if st := l.Stats(); st.Refused != 5+maxFaults || st.Acknowledged != 3 || st.NotUnderstood == 0 {
		t.Errorf("%+v", st)
	}
}

func TestLineSpeaksCBOR(t *testing.T) {
	l, _ := startLine(t, LineConfig{})
	f := feed(t, l)
	message, err := cbor.Marshal(map[int]any{1: "c-1", 7: []any{map[int]any{10: 147842, 13: 72.5, 14: "/min"}}})
	if err != nil {
		t.Fatal(err)
	}
	f.send(string(message) + string(message) + "{\"id\":1}\n" + "\xa0" + "\xa1\x1c")
	answers := cbor.NewDecoder(f.r)
	for range 2 {
		var a map[string]any
		if err := answers.Decode(&a); err != nil || a["ok"] != "c-1" {
			t.Fatalf("%v %v", a, err)
		}
	}
	rest := bufio.NewReader(answers.Buffered())
	f.r = bufio.NewReader(&joined{rest, f.r})
	if a := f.answer(); a != `{"ok":1}` {
		t.Error(a)
	}
	answers = cbor.NewDecoder(f.r)
	for _, want := range []string{"id: missing", "message: neither"} {
		var a map[string]any
		if err := answers.Decode(&a); err != nil || !strings.HasPrefix(fmt.Sprint(a["error"]), want) || a["id"] != nil {
			t.Fatalf("%v %v", a, err)
		}
	}
	f.r = bufio.NewReader(&joined{bufio.NewReader(answers.Buffered()), f.r})
	f.ended()
}

// joined reads one reader after the other.
type joined struct{ a, b *bufio.Reader }

func (j *joined) Read(p []byte) (int, error) {
	if n, err := j.a.Read(p); err == nil {
		return n, nil
	}
	return j.b.Read(p)
}

func TestLineLimits(t *testing.T) {
	l, _ := startLine(t, LineConfig{MaxConns: 1, FrameTimeout: 50 * time.Millisecond})
	first := feed(t, l)
	first.send("{\"id\":1}\n")
	first.answer()
	second := feed(t, l)
	second.ended()
	first.send(`{"id":2,`) // and never its end
	first.ended()
	if st := l.Stats(); st.OverLimit != 1 || st.Acknowledged != 1 || st.Refused != 0 {
		t.Errorf("%+v", st)
	}
}

func TestLineAsksWhoConnects(t *testing.T) {
	me, group := uint32(os.Getuid()), uint32(os.Getgid())
	for name, c := range map[string]struct {
		cfg     LineConfig
		welcome bool
	}{
		"nobody listed": {LineConfig{}, true}, "user": {LineConfig{Users: []uint32{me + 1, me}}, true}, "group": {LineConfig{Groups: []uint32{group}}, true},
		"other user": {LineConfig{Users: []uint32{me + 1}}, false}, "other group": {LineConfig{Users: []uint32{me + 1}, Groups: []uint32{group + 1}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			l, _ := startLine(t, c.cfg)
			f := feed(t, l)
			if c.welcome {
				f.send("{\"id\":1}\n")
				f.answer()
				return
			}
			f.ended()
			if st := l.Stats(); st.NotAllowed != 1 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestSocketIsMadeAndReplacedSafely(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vitals.sock")
	s := Socket{Path: path, Mode: 0o620, Group: os.Getgid()}
	// A dead agent's socket, with what it left half made beside it.
	dead, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	dead.(*net.UnixListener).SetUnlinkOnClose(false)
	dead.Close()
	if err := os.MkdirAll(filepath.Join(filepath.Dir(path), ".vitals.sock.new", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	l, cancel := startLine(t, LineConfig{Socket: s})
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket || info.Mode().Perm() != 0o620 || info.Sys().(*syscall.Stat_t).Gid != uint32(os.Getgid()) {
		t.Fatalf("%v %v", info, err)
	}
	if names, _ := os.ReadDir(filepath.Dir(path)); len(names) != 1 {
		t.Errorf("beside the socket: %v", names)
	}
	f := feed(t, l)
	f.send("{\"id\":1}\n")
	f.answer()
	// A second agent on a living one's socket must not take it away.
	other, err := NewLine(LineConfig{ID: "other", Socket: s, Accept: take})
	if err != nil {
		t.Fatal(err)
	}
	if st := other.Stats(); st.Listening || !strings.Contains(st.Trouble, "another program") {
		t.Errorf("%+v", st)
	}
	feed(t, l).send("{\"id\":2}\n")
	cancel()
	waitFor(t, func() bool { _, err := os.Lstat(path); return errors.Is(err, os.ErrNotExist) }, func() string { return "the socket stays" })
}

func TestSocketLeavesOthersThingsAlone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{file: "is no socket", filepath.Join(dir, "none", "s"): "there is no directory"} {
		l, err := NewLine(LineConfig{ID: "x", Socket: Socket{Path: path, Group: -1}, Accept: take})
		if err != nil {
			t.Fatal(err)
		}
		if st := l.Stats(); st.Listening || !strings.Contains(st.Trouble, want) {
			t.Errorf("%s: %+v", path, st)
		}
	}
	// Where others can put a socket in the place of ours, they would read what devices send, and acknowledge it.
	for mode, safe := range map[os.FileMode]bool{0o755: true, 0o775: false, 0o777: false, 0o777 | os.ModeSticky: true} {
		path := filepath.Join(t.TempDir(), "d")
		if err := errors.Join(os.Mkdir(path, 0o755), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		l, err := Socket{Path: filepath.Join(path, "s"), Group: -1}.listen()
		if safe != (err == nil) || !safe && !strings.Contains(err.Error(), "chmod 755") {
			t.Errorf("in a directory of mode %v: %v", mode, err)
		}
		if err == nil {
			l.Close()
		}
	}
	if text, err := os.ReadFile(file); string(text) != "precious" {
		t.Errorf("%q %v", text, err)
	}
	for _, bad := range []Socket{{Path: "relative"}, {Path: "/a/../b"}, {Path: "/" + strings.Repeat("x", 107)}, {Path: "/"}, {Path: "/a", Mode: 0o1777}} {
		if _, err := NewLine(LineConfig{ID: "x", Socket: bad, Accept: take}); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
