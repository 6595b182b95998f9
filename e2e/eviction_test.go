package e2e

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"wardlink/internal/child"
)

// flood has several monitors send messages of 60 KB that do not compress, each waiting for its acknowledgements, until enough says so.
func (b *box) flood(seed uint64, enough func() bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx) // over as soon as one is not acknowledged
	stop := make(chan struct{})
	for k := range uint64(8) {
		g.Go(func() error {
			conn, err := net.Dial("tcp", b.mllp)
			if err != nil {
				return err
			}
			defer conn.Close()
			in := bufio.NewReader(conn)
			noise := make([]byte, 44<<10)
			r := rand.NewChaCha8([32]byte{byte(seed), byte(k)})
			for n := 0; ; n++ {
				select {
				case <-stop:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				default:
				}
				_, _ = r.Read(noise)
				if _, err := fmt.Fprintf(conn, "\x0bMSH|^~\\&|MON|ICU|WL|WL|20261122120000+0000||ORU^R01^ORU_R01|F%d-%d-%d|T|2.6|||AL|NE\rPID|||CANARY7^^^HOSP&1.2.3&ISO\r"+
					"OBR|1|||X|||20261122120000+0000\rOBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.5.1.1|72|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\rZZZ|%s\r\x1c\r",
					seed, k, n, base64.StdEncoding.EncodeToString(noise)); err != nil {
					return err
				}
				_ = conn.SetReadDeadline(time.Now().Add(30 * time.Second))
				ack, err := in.ReadString('\x1c')
				if err != nil || !strings.Contains(ack, "|CA|") && !strings.Contains(ack, "|AA|") {
					return errors.Join(fmt.Errorf("no acknowledgement: %q", ack), err)
				}
			}
		})
	}
	for !enough() && ctx.Err() == nil {
		time.Sleep(50 * time.Millisecond)
	}
	close(stop)
	if err := g.Wait(); err != nil {
		b.t.Fatal(err)
	}
}

// evicted is how many batches of telemetry the agent says that it deleted undelivered.
func (b *box) evicted() (n uint64) {
	b.t.Helper()
	out, err := child.Output(context.Background(), program("wardlink-agent"), "status", "--json", "--config", b.config())
	var s struct {
		Buffer struct {
			Lanes []struct{ Evicted uint64 }
		}
	}
	if err != nil || json.Unmarshal(out, &s) != nil {
		b.t.Fatalf("status: %v\n%s", err, out)
	}
	for _, l := range s.Buffer.Lanes {
		n += l.Evicted
	}
	return n
}

// TestAccountOfAnEviction: while the server is away a small buffer fills, and the oldest goes for what is new, across a power cut. Once the
// server is back the account balances exactly, and what is lost in it is what the agent says that it deleted; the log has the event.
func TestAccountOfAnEviction(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	b := h.newBox("box", h.kit())
	b.reportsOften()
	b.configure("buffer: {cap: 64MB}\n")
	b.deliverAs("icu-7")
	h.balanced(t, "icu-7")
	h.proc.Stop()
	b.flood(1, func() bool { return b.evicted() > 0 })
	b.agent.Kill()
	b.start()
	b.send("between")
	before := b.evicted()
	b.flood(2, func() bool { return b.evicted() > before })
	deleted := b.evicted()
	h.run()
	b.awaitIdle()

	a := h.balanced(t, "icu-7")
	v, _ := lane(a, "vitals")
	if v.Lost != deleted || v.Lost == 0 || len(v.AtMost) > 0 || v.Assigned != v.Journaled+v.Lost || v.Stored != v.Journaled || v.Journaled < 2 {
		t.Fatalf("the agent deleted %d batches; the account is %+v", deleted, a)
	}
	if s, ok := lane(a, "self"); !ok || s.Lost != 0 {
		t.Errorf("reports are never evicted: %+v", s)
	}
	var told uint64
	for _, line := range strings.Split(strings.TrimSpace(string(h.must("wardlink", "--operator", h.operator(), "--json", "audit", "list", "--type", "batches.lost"))), "\n") {
		var ev struct {
			Target string
			Count  uint64
			Detail map[string]string
		}
		if err := json.Unmarshal([]byte(line), &ev); err != nil || ev.Target != "icu-7" || ev.Detail["lane"] != "vitals" || ev.Detail["first"] == "" {
			t.Fatalf("%v: %s", err, line)
		}
		told += ev.Count
	}
	if told != deleted {
		t.Errorf("the log tells of %d lost batches; the agent deleted %d", told, deleted)
	}
	if page := string(h.must("wardlink", "--operator", h.operator(), "trace", "--gateway", "icu-7")); !strings.Contains(page, "lost") {
		t.Errorf("the trace tells nothing of it:\n%s", page)
	}
}
