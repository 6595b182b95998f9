package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/internal/swtpm"
	"wardlink/internal/tpmproxy"
)

// Commands and answers of a TPM (TPM 2.0 Part 2, 6.5.2 and 6.6.3).
const (
	ccSign          = 0x15d
	ccCreatePrimary = 0x131
	ccLoad          = 0x157

	rcRetry     = 0x922
	rcTesting   = 0x90a
	rcYielded   = 0x908
	rcLockout   = 0x921
	rcFull      = 0x902
	rcFailure   = 0x101
	rcBadAuth   = 0x9a2
	rcIntegrity = 0x1df
)

// bus is a gateway whose TPM is behind a proxy.
type bus struct {
	*ward
	proxy *tpmproxy.Proxy
	sent  int
	worst time.Duration
}

func newBus(t *testing.T) *bus {
	t.Helper()
	w := wardOf(t, initHospital(t))
	w.register()
	p, err := tpmproxy.Start(w.box.tpm.Socket, filepath.Join(filepath.Dir(w.box.tpm.Socket), "p"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Away)
	w.box.rewrite("swtpm:"+w.box.tpm.Socket, p.Path)
	return &bus{ward: w, proxy: p}
}

// takesAll has a monitor's messages acknowledged, and tells how long the slowest took.
func (b *bus) takesAll(when string) {
	b.Helper()
	var worst time.Duration
	for range 5 {
		b.sent++
		began := time.Now()
		b.takes(fmt.Sprint("M", b.sent))
		worst = max(worst, time.Since(began))
	}
	b.worst = max(b.worst, worst)
	b.Logf("%s: the slowest of 5 acknowledgements took %s", when, worst.Round(time.Millisecond))
}

// restart ends the agent, which a TPM must not hold up, and starts it again.
func (b *bus) restart() {
	b.Helper()
	b.box.agent.Stop()
	b.box.start()
}

// awaitHeld waits until the TPM has a command that it does not answer.
func (b *bus) awaitHeld() {
	b.Helper()
	b.await("a command that hangs", func(context.Context) (bool, error) { return b.proxy.Held() > 0, nil })
}

// named runs the doctor, which must name what the TPM has, with its mend; again while an agent that was just started has not loaded its keys yet.
func (b *bus) named(when, found, mend string) {
	b.Helper()
	for end := time.Now().Add(15 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		_, r := b.box.doctor()
		for _, f := range r.Findings {
			if f.Area == "TPM" && f.Level == "stops" && strings.Contains(f.Found, found) && strings.Contains(f.Mend, mend) {
				return
			}
		}
		if time.Now().After(end) {
			b.Errorf("%s: nobody says %q with the mend %q: %+v", when, found, mend, r.Findings)
			return
		}
	}
}

// TestTPMInTheField: whatever a TPM does, monitors are acknowledged; what can be had again is had again without a restart; the doctor says what it is.
func TestTPMInTheField(t *testing.T) {
	t.Parallel()
	b := newBus(t)

	b.proxy.Away()
	b.box.start()
	b.takesAll("no TPM")
	b.named("no TPM", "", "buffered")
	if err := b.proxy.Back(); err != nil {
		t.Fatal(err)
	}
	b.box.awaitDelivered()
	b.takesAll("all well")

	b.proxy.Inject(tpmproxy.Fault{Code: ccSign, Delay: 300 * time.Millisecond})
	b.restart()
	b.takesAll("300 ms a signature")
	b.box.awaitDelivered()
	b.proxy.Heal()

	for _, code := range []uint32{rcRetry, rcTesting, rcYielded} {
		b.proxy.Inject(tpmproxy.Fault{Times: 6, Answer: code})
	}
	b.restart()
	b.takesAll("bursts of RETRY, TESTING and YIELDED")
	b.box.awaitDelivered()

	b.proxy.Inject(tpmproxy.Fault{Hang: true})
	b.named("hung beside a connection", "does not answer", "off and on")
	b.awaitHeld()
	b.takesAll("hung beside a connection")
	b.box.awaitDelivered() // the connection needs no TPM while it stands
	b.restart()
	b.awaitHeld()
	b.takesAll("hung from the start")
	b.named("hung from the start", "", "buffered")
	if b.proxy.Held() == 0 {
		t.Error("it does not hang any more")
	}
	b.proxy.Heal()
	b.box.awaitDelivered()

	b.proxy.Inject(tpmproxy.Fault{Code: ccSign, Answer: rcLockout})
	b.restart()
	b.takesAll("locked out")
	b.named("locked out", "locked itself", "tpm2_dictionarylockout")
	b.proxy.Heal()
	b.box.awaitDelivered()

	// Cleared under the running agent: the next signature shows it.
	if err := swtpm.Clear(b.box.tpm.Socket); err != nil {
		t.Fatal(err)
	}
	b.takesAll("cleared")
	b.named("cleared", "does not sign", "new keys by itself")
	b.await("the event of the clearing", func(context.Context) (bool, error) {
		for _, it := range b.audit() {
			if it.Type == "tpm.cleared" && it.Target == "icu-7" {
				return true, nil
			}
		}
		return false, nil
	})
	b.box.awaitDelivered()
	b.awaitObservations(b.sent)
	t.Logf("the slowest acknowledgement of all took %s", b.worst.Round(time.Millisecond))

	b.box.agent.Stop()
	b.atRest()
}

// atRest is what a doctor says of a TPM while no agent runs, in each state.
func (b *bus) atRest() {
	for name, c := range map[string]struct {
		fault       tpmproxy.Fault
		found, mend string
	}{
		"hung":            {tpmproxy.Fault{Hang: true}, "does not answer", "off and on"},
		"busy":            {tpmproxy.Fault{Answer: rcTesting}, "busy with its own tests", "other programs"},
		"in failure mode": {tpmproxy.Fault{Answer: rcFailure}, "failure mode", "wardlink gateway replace"},
		"locked out":      {tpmproxy.Fault{Code: ccSign, Answer: rcLockout}, "locked itself", "tpm2_dictionarylockout"},
		"full":            {tpmproxy.Fault{Code: ccLoad, Answer: rcFull}, "fill its memory", "/dev/tpmrm0"},
		"with an owner":   {tpmproxy.Fault{Code: ccCreatePrimary, Answer: rcBadAuth}, "password is set", "tpm2_changeauth -c"},
		"cleared since":   {tpmproxy.Fault{Code: ccLoad, Answer: rcIntegrity}, "was cleared", "new keys by itself"},
	} {
		b.proxy.Inject(c.fault)
		b.named(name, c.found, c.mend)
		b.proxy.Heal()
	}
	b.proxy.Away()
	b.named("gone", "it is not there", "start swtpm")
	if err := b.proxy.Back(); err != nil {
		b.Fatal(err)
	}
	// Another board with this disk.
	other := filepath.Join(b.dir, "other")
	if err := b.factory.Make(b.Context(), other); err != nil {
		b.Fatal(err)
	}
	b.box.tpm.Stop()
	if err := os.RemoveAll(filepath.Join(b.box.dir, "tpm")); err != nil {
		b.Fatal(err)
	}
	if err := os.Rename(other, filepath.Join(b.box.dir, "tpm")); err != nil {
		b.Fatal(err)
	}
	var err error
	if b.box.tpm, err = swtpm.Start(b.Context(), filepath.Join(b.box.dir, "tpm"), filepath.Join(b.box.dir, "t")); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(b.box.tpm.Stop)
	b.named("replaced", "do not belong to this TPM", "wardlink gateway replace")
}
