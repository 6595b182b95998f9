package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// bedside sends bytes to the box's port from an address of loopback, and gives the answers that came until want of them did, or the
// connection ended.
func (b *box) bedside(from, text string, want int) string {
	b.t.Helper()
	c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}).Dial("tcp", b.mllp)
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(40 * time.Second))
	if _, err := c.Write([]byte(text)); err != nil {
		b.t.Fatal(err)
	}
	var answers bytes.Buffer
	r := bufio.NewReader(c)
	for n := 0; n < want; n++ {
		answer, err := r.ReadString('\x1c')
		answers.WriteString(answer)
		if err != nil {
			break
		}
	}
	return answers.String()
}

// unnamed is a framed message that names no patient.
func unnamed(control, application string, value int) string {
	return fmt.Sprintf("\vMSH|^~\\&|%s|W|WL|WL|20261122120000+0000||ORU^R01^ORU_R01|%s|P|2.6\rOBR|1|||X|||20261122120000+0000\r"+
		"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.5.1.1|%d|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\r\x1c\r", application, control, value)
}

// brokenSenders begin to send, all at once, what no device may; the group is done when they are.
func (b *box) brokenSenders() *sync.WaitGroup {
	var broken sync.WaitGroup
	for i, bad := range []string{
		"no frame at all", "\v", "\v" + strings.Repeat("x", 200_000), "\vMSH|^~\\&|half", "\x16\x03\x01\x02\x00", "\vMSH\x1cx\v\x1c\r\v\v\v",
		"\v" + strings.Repeat("MSH|^~\\&|x\r", 20_000) + "\x1c\r", "GET / HTTP/1.1\r\n\r\n",
	} {
		for k := range 3 {
			broken.Go(func() {
				c, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(10+i))}}).Dial("tcp", b.mllp)
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(bad))
				if k > 0 {
					time.Sleep(time.Duration(k) * 100 * time.Millisecond)
				}
				c.Close()
			})
		}
	}
	return &broken
}

// TestBedsAndBrokenSenders: several devices share one port and name no patient; the hospital finds each reading by its bed, trace follows
// the device, and what broken senders do besides costs no message: the account balances.
func TestBedsAndBrokenSenders(t *testing.T) {
	t.Parallel()
	w := wardOf(t, initHospital(t))
	w.box.rewrite(fmt.Sprintf("sources: [{id: bed-1, mllp: %q}]", w.box.mllp), fmt.Sprintf("sources: [{id: bed-1, mllp: %q, allow: [127.0.0.0/8], limits: {connections: 40, per_address: 30}, bindings: [\n"+
		"  {address: 127.0.0.2, bed: ICU-2, id: icu-2}, {msh3: CMS-3, bed: ICU-3}, {msh3: CMS-2, bed: ICU-9}]}]", w.box.mllp))
	w.box.reportsOften()
	w.box.start()
	w.register()
	w.box.awaitIdle()

	for _, c := range []struct{ from, control, application string }{{"127.0.0.2", "A1", "MON"}, {"127.0.0.1", "A2", "CMS-3"}, {"127.0.0.2", "A3", "CMS-2"}, {"127.0.0.1", "A4", "MON"}} {
		if a := w.box.bedside(c.from, unnamed(c.control, c.application, 70+int(c.control[1]-'0')), 1); !strings.Contains(a, "MSA|AA|"+c.control) {
			t.Fatalf("%s is answered %q", c.control, a)
		}
	}
	broken := w.box.brokenSenders() // beside a device that sends as it should
	for i := range 20 {
		control := fmt.Sprintf("B%d", i)
		if a := w.box.bedside("127.0.0.2", unnamed(control, "MON", 100+i), 1); !strings.Contains(a, "MSA|AA|"+control) {
			t.Fatalf("%s is answered %q", control, a)
		}
	}
	broken.Wait()
	// An over-long message is refused, and the one behind it on the same connection is taken.
	long := "\vMSH|^~\\&|MON|W|WL|WL|20261122120000+0000||ORU^R01^ORU_R01|L1|P|2.6\rNTE|" + strings.Repeat("y", 100_000) + "\x1c\r"
	if a := w.box.bedside("127.0.0.2", long+unnamed("L2", "MON", 150), 2); !strings.Contains(a, "MSA|AR|L1|message is too long") || !strings.Contains(a, "MSA|AA|L2") {
		t.Fatalf("over-long, then whole: %q", a)
	}
	w.box.awaitIdle()
	w.balanced(t, "icu-7")

	beds := map[string]string{}
	w.await("the readings", func(context.Context) (bool, error) {
		_, found, _ := w.searchFor("patient:missing=true")
		for _, o := range found {
			bed := ""
			for _, e := range o.Extension {
				if e.URL == "urn:wardlink:bed" {
					bed = e.Reference.Display
				}
			}
			beds[o.ValueQuantity.Value.String()] = bed
		}
		return len(beds) >= 25, nil
	})
	for value, want := range map[string]string{"71": "ICU-2", "72": "ICU-3", "73": "ICU-2", "74": "", "100": "ICU-2", "119": "ICU-2", "150": "ICU-2"} {
		if got, found := beds[value]; got != want || !found {
			t.Errorf("reading %s is of bed %q; want %q (%v)", value, got, want, found)
		}
	}
	if len(beds) != 25 {
		t.Errorf("%d readings: %v", len(beds), beds)
	}
	// The device with an id of its own is a source: its messages name no patient, and are not lost for it.
	code, traces, stderr := w.trace("--source", "icu-2")
	if code != 0 || len(traces) != 1 || traces[0].Stopped != "" {
		t.Errorf("trace of a bound device: %d %+v %s", code, traces, stderr)
	}
	if page := string(w.must("wardlink", "--operator", w.operator(), "trace", "--source", "icu-2")); !strings.Contains(page, "by their bed, without patient") {
		t.Errorf("the page:\n%s", page)
	}
	status := string(w.must("wardlink-agent", "status", "--config", w.box.config()))
	for _, text := range []string{"address 127.0.0.2", "msh3 CMS-3", "port of bed-1", "another bed than its connection"} {
		if !strings.Contains(status, text) {
			t.Errorf("status does not say %q:\n%s", text, status)
		}
	}
}
