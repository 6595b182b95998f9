package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wardlink/server/api/client"
)

// trace asks with the real tool: its exit code, and its answer.
func (w *ward) trace(args ...string) (code int, traces []client.Trace, stderr string) {
	w.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program("wardlink"), append([]string{"--operator", w.operator(), "--json", "trace"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		w.Fatal(err)
	}
	if out.Len() > 0 {
		if err := json.Unmarshal(out.Bytes(), &traces); err != nil {
			w.Fatalf("%v\n%s", err, out.Bytes())
		}
	}
	return code, traces, errs.String()
}

// stopsAt awaits the verdict that a station has stopped; "" for none.
func (w *ward) stopsAt(station, why string) {
	w.Helper()
	var last string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		code, traces, stderr := w.trace("--gateway", "icu-7")
		if len(traces) == 1 && traces[0].Stopped == station && strings.Contains(traces[0].Why, why) && (code == 2) == (station != "") {
			return
		}
		last = fmt.Sprintf("%d %+v %s", code, traces, stderr)
	}
	w.Fatalf("trace does not say %q, %q: %s", station, why, last)
}

// TestTraceOverRealDisks: what the tool says, and how it ends, when the gateway's disk is full, the gateway dead, the server down.
func TestTraceOverRealDisks(t *testing.T) {
	t.Parallel()
	if !inOwnMounts(t) {
		return
	}
	w := wardOf(t, initHospital(t))
	if err := os.Mkdir(w.box.state(), 0o700); err != nil {
		t.Fatal(err)
	}
	disk := mount(t, w.box.state(), "24m")
	w.box.start()
	w.register()
	if code, _, stderr := w.trace("--gateway", "icu-9"); code != 1 || !strings.Contains(stderr, "icu-9") {
		t.Errorf("a gateway that nobody knows: %d %s", code, stderr)
	}
	if code, _, stderr := w.trace("--source", "bed-9"); code != 1 || !strings.Contains(stderr, "bed-9") {
		t.Errorf("a source that nobody has: %d %s", code, stderr)
	}
	w.takes("M1")
	w.stopsAt("", "data arrives")
	page := w.must("wardlink", "--operator", w.operator(), "trace", "--source", "bed-1")
	for _, text := range []string{"icu-7/bed-1", "STATION", "not understood", "visible", "data arrives"} {
		if !strings.Contains(string(page), text) {
			t.Errorf("the page lacks %q:\n%s", text, page)
		}
	}
	if bytes.Contains(page, []byte("\x1b")) || bytes.Contains(page, []byte("CANARY7")) {
		t.Errorf("the page, which is no terminal's, holds colours or a patient:\n%q", page)
	}

	disk.fill()
	for i := 0; w.big(i); i++ { // until the segment that was begun is full
		if i > 500 {
			t.Fatal("the gateway's disk is never full")
		}
	}
	w.stopsAt("sealed", "the disk is full")
	disk.free()
	w.takes("M2")
	w.stopsAt("", "data arrives")

	w.box.agent.Kill()
	w.stopsAt("published", "not been connected")
	if err := w.proc.Died(); err != nil {
		t.Fatal(err)
	}
	w.proc.Stop()
	if code, _, stderr := w.trace("--gateway", "icu-7"); code != 1 || !strings.Contains(stderr, "no server answers") {
		t.Errorf("without a server: %d %s", code, stderr)
	}
}

// big sends a message of 60 KB that does not compress, and tells whether it was acknowledged.
func (w *ward) big(n int) bool {
	w.Helper()
	conn, err := net.Dial("tcp", w.box.mllp)
	if err != nil {
		w.Fatal(err)
	}
	defer conn.Close()
	noise := make([]byte, 30<<10)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(noise)
	msg := fmt.Sprintf("MSH|^~\\&|MON|ICU|WL|WL|20261122120000+0000||ORU^R01^ORU_R01|B%d|T|2.6|||AL|NE\rPID|||CANARY7^^^HOSP&1.2.3&ISO\r"+
		"OBR|1|||X|||20261122120000+0000\rOBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.5.1.1|72|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\rZZZ|%x\r", n, noise)
	if _, err := io.WriteString(conn, "\x0b"+msg+"\x1c\r"); err != nil {
		return false
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	k, err := conn.Read(make([]byte, 4096))
	return err == nil && k > 0
}
