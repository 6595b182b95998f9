package e2e

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wardlink/agent"
)

// bulky delivers a message with so many bytes that nothing compresses.
func (b *box) bulky(control string, size int) {
	b.t.Helper()
	noise := make([]byte, size/2)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	answer := b.exchange("MSH|^~\\&|MON|ICU|WL|WL|20261122120000+0000||ORU^R01^ORU_R01|" + control + "|T|2.6|||AL|NE\rPID|||P1^^^HOSP&1.2.3&ISO\r" +
		"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.5.1.1|72|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\rOBX|2|ST|68487^MDC_ATTR^MDC||" + hex.EncodeToString(noise) + "||||||R\r")
	if !strings.Contains(answer, "MSA|CA|") {
		b.t.Fatalf("%s: %q", control, answer)
	}
}

// whole is all that an agent says of itself.
func (b *box) whole() (s agent.Status) {
	b.t.Helper()
	if err := json.Unmarshal(b.must("wardlink-agent", "status", "--json", "--config", b.config()), &s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// TestAFullBufferIsAccountedFor: the server is killed in the middle of a delivery, so that it has journaled batches of which the gateway does
// not know; it stays away until the gateway's buffer is full and its oldest batches are deleted, those among them; the agent is killed while
// that goes on. Then both are back, and every number is accounted for: what the server had journaled is no loss.
func TestAFullBufferIsAccountedFor(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	b := h.newBox("box", h.kit())
	b.reportsOften()
	b.configure("buffer: {cap: 64MB}\n")
	// A file of another run that nobody removes takes most of the room, so that the rest is full soon.
	b.deliverAs("icu-9")
	b.agent.Stop()
	aside, err := os.Create(filepath.Join(b.state(), "buffer", "self-00000000000000aa.seg.damaged"))
	if err == nil {
		err = errors.Join(syscall.Fallocate(int(aside.Fd()), 0, 0, 36<<20), aside.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	b.start()
	b.awaitIdle()
	sent := 1
	one := func() {
		t.Helper()
		b.bulky(fmt.Sprint("B", sent), 60_000)
		sent++
	}
	stop := make(chan struct{})
	go func() { time.Sleep(300 * time.Millisecond); h.proc.Kill(); close(stop) }()
	for ended := false; !ended; {
		select {
		case <-stop:
			ended = true
		default:
			one()
		}
	}
	const vitals = 1
	for evicted, kills := uint64(0), 0; evicted == 0 || kills < 3; {
		for range 40 {
			one()
		}
		evicted = b.whole().Buffer.Lanes[vitals].Evicted
		if evicted > 0 { // it goes on at each fourth megabyte
			b.agent.Kill()
			b.start()
			b.await("the agent", func(ctx context.Context) (bool, error) { _, err := b.status(ctx); return err == nil, nil })
			kills++
		}
		if sent > 4000 {
			t.Fatal("the buffer is never full")
		}
	}
	page := string(b.must("wardlink-agent", "status", "--config", b.config()))
	if !strings.Contains(page, "deleted undelivered") {
		t.Errorf("status says nothing of what was deleted:\n%s", page)
	}
	h.run()
	b.awaitIdle()
	a := h.balanced(t, "icu-9")
	v, _ := lane(a, "vitals")
	if v.Lost == 0 || v.Buffered != 0 || len(v.AtMost) > 0 || v.Stored+v.Lost+v.Void != v.Assigned || v.Void > 3 {
		t.Errorf("%d messages sent: %+v", sent, v)
	}
	if s, ok := lane(a, "self"); !ok || s.Lost != 0 {
		t.Errorf("reports: %+v", s)
	}
	// What was acknowledged and is not lost can be read; each message was a batch of its own.
	if sent != int(v.Stored+v.Lost) {
		t.Errorf("%d messages were acknowledged, %d are stored and %d lost", sent, v.Stored, v.Lost)
	}
}
