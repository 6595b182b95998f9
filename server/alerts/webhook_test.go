package alerts

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// verifies is Standard Webhooks' check, by its text alone: HMAC-SHA256 over "id.timestamp.body".
func verifies(t *testing.T, g got, secret string) bool {
	t.Helper()
	mac := hmac.New(sha256.New, raw(t, strings.TrimPrefix(secret, "whsec_")))
	fmt.Fprintf(mac, "%s.%s.%s", g.id, g.at, g.body)
	want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
	return slices.Contains(strings.Split(g.signature, " "), want)
}

// The figures of Standard Webhooks' own library (libraries/go/webhook_test.go).
func TestSignatureIsThatOfStandardWebhooks(t *testing.T) {
	key := raw(t, strings.TrimPrefix(secretText, "whsec_"))
	if got := sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`)); got != "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" {
		t.Fatal(got)
	}
}

func TestWebhookDelivers(t *testing.T) {
	const older = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	r := newReceiver(t, nil)
	target := r.target("pager", "")
	target.SecretFile = secretFile(t, secretText, older)
	d := newDesk(t, Settings{Targets: []Target{target}})
	d.Raise(BatchDead, Condition{Subject: "gw-1", Detail: map[string]string{"batches": "3"}})
	d.during("delivery", func() bool { return d.Targets()[0].Sent == 1 })
	g := r.got()[0]
	if !verifies(t, g, secretText) || !verifies(t, g, older) {
		t.Errorf("signature %q", g.signature)
	}
	if g.body[len(g.body)-2] ^= 1; verifies(t, g, secretText) {
		t.Error("an altered body verifies")
	}
	at, err := strconv.ParseInt(g.at, 10, 64)
	if since := time.Since(time.Unix(at, 0)); err != nil || since < 0 || since > time.Minute {
		t.Errorf("timestamp %q", g.at)
	}
	kind, _ := KindOf(BatchDead)
	want := data{
		ID: g.Data.ID, Alert: BatchDead, Subject: "gw-1", Severity: "critical", State: "open", Opened: "2026-03-01T12:00:00.000Z", Count: 1,
		Meaning: kind.Meaning, Mend: kind.Mend, Server: "ward.example",
	}
	detail := g.Data.Detail
	g.Data.Detail = nil
	if g.Type != msgRaised || g.id != "msg_"+g.Data.ID+"_1" || fmt.Sprint(g.Data) != fmt.Sprint(want) || detail["batches"] != "3" {
		t.Errorf("%s %s %+v %v", g.id, g.Type, g.Data, detail)
	}
	d.pass(2 * time.Minute)
	d.expectEvents("alert.raised batch-dead/gw-1 success", "alert.delivered pager success")
	if ev := d.journal.Events(t)[1]; ev.Count != 1 || ev.Detail["first"] != g.id || ev.Detail["last"] != g.id {
		t.Errorf("%+v", ev)
	}
	if n := d.count("SELECT COUNT(*) FROM alert_spool"); n != 0 {
		t.Errorf("%d rows stay in the spool", n)
	}
}

// Whatever a receiver does, the message comes again with the same id and body until it is taken, and the next one after it.
func TestWebhookRetriesInOrder(t *testing.T) {
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer elsewhere.Close()
	r := newReceiver(t, func(n int, w http.ResponseWriter, r *http.Request) {
		switch n {
		case 1:
			w.WriteHeader(http.StatusInternalServerError)
		case 2:
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		case 3:
			<-r.Context().Done() // it never answers
		case 4:
			w.Header().Set("Content-Length", "100")
			panic(http.ErrAbortHandler)
		case 5:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusTooManyRequests)
		case 6:
			w.WriteHeader(http.StatusGone)
		}
	})
	target := r.target("pager", "")
	d := newDesk(t, Settings{Targets: []Target{target}})
	d.hurry()
	d.Raise(BatchDead, Condition{Subject: "gw-1"})
	d.Raise(DiskLow, Condition{Subject: "journal"})
	d.flush()
	sender := d.targets[0]
	patient := sender.timeout
	for len(r.got()) < 8 {
		if sender.timeout = patient; len(r.got()) == 2 { // what follows is never answered
			sender.timeout = 200 * time.Millisecond
		}
		sender.attempt(context.Background(), sender.queue[0])
		if n := len(r.got()); n == 6 && (sender.retry.Sub(d.now()) < maxAfter || !sender.asked) {
			t.Error("after 410 Gone the target is asked again within the hour")
		}
	}
	all := r.got()
	for i, g := range all[:7] {
		if g.id != all[0].id || string(g.body) != string(all[0].body) || !verifies(t, g, secretText) {
			t.Errorf("attempt %d: %s %s", i+1, g.id, g.body)
		}
	}
	if all[7].Data.Alert != DiskLow {
		t.Errorf("%+v", all[7].Data)
	}
	if s := d.Targets()[0]; s.Sent != 2 || s.Waiting != 0 || !s.Failing.IsZero() {
		t.Errorf("%+v", s)
	}
}

// A message that the receiver objects to makes room for the next after some attempts; it must not block it for ever.
func TestObjectionableMessageIsGivenUp(t *testing.T) {
	r := newReceiver(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n <= maxObjected {
			w.WriteHeader(http.StatusUnprocessableEntity)
		}
	})
	d := newDesk(t, Settings{Targets: []Target{r.target("pager", "")}})
	d.Raise(BatchDead, Condition{Subject: "gw-1"})
	d.Raise(BatchDead, Condition{Subject: "gw-2"})
	for len(d.targets[0].queue) > 0 {
		d.targets[0].attempt(context.Background(), d.targets[0].queue[0])
	}
	if all := r.got(); len(all) != maxObjected+1 || all[maxObjected].Data.Subject != "gw-2" {
		t.Fatalf("%d attempts", len(all))
	}
	d.flush()
	d.pass(2 * time.Minute)
	lines := d.lines()
	if !slices.Contains(lines, "alert.undeliverable pager failed") || !slices.Contains(lines, "alert.delivered pager success") {
		t.Fatal(lines)
	}
}

func TestUntrustedReceiverGetsNothing(t *testing.T) {
	r := newReceiver(t, nil)
	target := r.target("pager", "")
	target.CAFile = "" // the system's certificates do not know it
	d := newDesk(t, Settings{Targets: []Target{target}})
	results, err := d.Test(context.Background(), "pager")
	if err != nil || len(results) != 1 || results[0].Err == nil || !strings.Contains(results[0].Err.Error(), "certificate") {
		t.Fatalf("%+v, %v", results, err)
	}
	if strings.Contains(results[0].Err.Error(), "/hook") || strings.Contains(results[0].To, "/hook") {
		t.Errorf("the URL's path, which may be a token, is shown: %v %s", results[0].Err, results[0].To)
	}
	if len(r.got()) != 0 {
		t.Fatal("it was told all the same")
	}
}

// talker is a sender that fails as often as it is told.
type talker struct {
	fail  int
	after time.Duration
	at    []time.Time
	done  atomic.Bool // it took one
}

func (s *talker) String() string { return "talker" }

func (s *talker) send(context.Context, *message) (string, error) {
	s.at = append(s.at, time.Now())
	if len(s.at) <= s.fail {
		return "", &failure{text: "no", after: s.after}
	}
	s.done.Store(true)
	return "", nil
}

// attempts runs one target against a sender in fake time and gives the pauses between its attempts.
func attempts(t *testing.T, s *talker, severity Severity) (pauses []time.Duration) {
	a := &Alerts{now: time.Now, wake: make(chan struct{}, 1)}
	a.cfg.Log = newDeskLog()
	target := newTarget(Target{Name: "x"}, s, a)
	target.add(&message{to: target, id: "m", made: time.Now(), kept: true, severity: severity})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan struct{})
	go func() { target.run(ctx); close(done) }()
	for !s.done.Load() {
		time.Sleep(time.Second)
		synctest.Wait()
	}
	cancel()
	<-done
	for i := 1; i < len(s.at); i++ {
		pauses = append(pauses, s.at[i].Sub(s.at[i-1]))
	}
	return pauses
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bound := retryFirst
		var sum time.Duration
		for _, p := range attempts(t, &talker{fail: 40}, Warning) {
			if p <= 0 || p > bound {
				t.Errorf("%s; expected at most %s", p, bound)
			}
			bound, sum = min(2*bound, retryMost), sum+p
		}
		if sum < time.Minute { // 32 draws from 0 to 5 minutes
			t.Errorf("40 attempts within %s", sum)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		for _, p := range attempts(t, &talker{fail: 40}, Critical) {
			if p > retryUrgent {
				t.Errorf("%s while a critical message waits", p)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		for _, p := range attempts(t, &talker{fail: 3, after: 7 * time.Minute}, Critical) {
			if p < 7*time.Minute {
				t.Errorf("%s, though the receiver asked for 7 minutes", p)
			}
		}
	})
	synctest.Test(t, func(t *testing.T) {
		for _, p := range attempts(t, &talker{fail: 3, after: 24 * time.Hour}, Warning) {
			if p > maxAfter {
				t.Errorf("%s: a receiver can silence us for a day", p)
			}
		}
	})
}

// A critical message does not wait for the back-off of the ones before it.
func TestCriticalShortensTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := &Alerts{now: time.Now, wake: make(chan struct{}, 1)}
		target := newTarget(Target{Name: "x"}, &talker{}, a)
		target.add(&message{to: target, kept: true})
		target.retry = time.Now().Add(retryMost)
		if _, wait := target.next(); wait != retryMost {
			t.Fatal(wait)
		}
		target.add(&message{to: target, kept: true, severity: Critical})
		if _, wait := target.next(); wait > retryUrgent {
			t.Fatal(wait)
		}
		target.retry, target.asked = time.Now().Add(retryMost), true
		target.add(&message{to: target, kept: true, severity: Critical})
		if _, wait := target.next(); wait != retryMost {
			t.Fatal("what the receiver asked for is not heeded")
		}
	})
}

func TestSpoolIsBounded(t *testing.T) {
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "pager", "")}})
	for i := range maxSpool + 30 {
		d.Raise(DiskLow, Condition{Subject: "log"})
		d.Tick()
		d.pass(4 * time.Hour)
		if i%100 == 0 {
			d.flush()
		}
	}
	d.flush()
	if n := d.count("SELECT COUNT(*) FROM alert_spool WHERE state = 0"); n != maxSpool || len(d.queued("pager")) != maxSpool {
		t.Fatalf("%d rows wait", n)
	}
	if s := d.Targets()[0]; s.Lost != 30 {
		t.Fatalf("%+v", s)
	}
	// The first may be under way and stays; the last is the newest.
	var body []byte
	d.must(d.db.QueryRow(context.Background(), "SELECT body FROM alert_spool WHERE state = 0 ORDER BY position LIMIT 1").Scan(&body))
	if !strings.Contains(string(body), msgRaised) {
		t.Errorf("%s", body)
	}
	d.restart()
	if n := len(d.queued("pager")); n != maxSpool {
		t.Fatalf("%d after a restart", n)
	}
	lost := uint64(0)
	d.pass(2 * time.Minute)
	d.flush()
	for _, ev := range d.journal.Events(t) {
		if ev.Type == "alert.undeliverable" {
			lost += ev.Count
		}
	}
	if lost != 30 {
		t.Errorf("%d are said to be lost", lost)
	}
}

// TestCriticalMessagesOutliveAFlood: whoever can cause warnings, at every door that he tries, pushes no critical message out of the spool.
func TestCriticalMessagesOutliveAFlood(t *testing.T) {
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "pager", "")}})
	d.Raise(RefusalsMany, Condition{Subject: "10.0.0.0/24"}) // the first may be under way
	d.Raise(BatchDead, Condition{Subject: "icu-7"})
	for i := range maxSpool + 30 {
		d.Raise(RefusalsMany, Condition{Subject: fmt.Sprintf("10.%d.%d.0/24", 1+i/250, i%250)})
		if i%50 == 49 { // they stop and others begin
			for range 2 {
				d.Observe(RefusalsMany, nil)
				d.pass(settleTime)
			}
			d.flush()
		}
	}
	d.flush()
	if !slices.Contains(d.queued("pager"), msgRaised+" icu-7") {
		t.Error("warnings have pushed a critical message out")
	}
	if n := d.count("SELECT COUNT(*) FROM alert_spool WHERE state = 0"); n != maxSpool {
		t.Errorf("%d rows wait", n)
	}
	// What all are alike of goes by age.
	target := d.targets[0]
	target.queue = target.queue[:1]
	d.Alerts.mu.Lock()
	for i := range maxSpool {
		target.add(&message{to: target, id: fmt.Sprint(i), severity: Critical})
	}
	target.add(&message{to: target, id: "a warning", severity: Warning})
	d.Alerts.mu.Unlock()
	if n := len(target.queue); n != maxSpool || target.queue[1].id != "1" || target.queue[n-1].id != fmt.Sprint(maxSpool-1) {
		t.Errorf("%d wait, %q to %q", n, target.queue[1].id, target.queue[n-1].id)
	}
}

func TestOldMessagesAreGivenUp(t *testing.T) {
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "pager", "")}})
	d.Raise(LogLags, Condition{})
	d.pass(maxAge + time.Second)
	d.targets[0].attempt(context.Background(), d.targets[0].queue[0])
	d.expectQueued("pager")
	d.pass(2 * time.Minute)
	d.flush()
	d.expectEvents("alert.raised log-lags/server success", "alert.undeliverable pager failed")
}

func TestTargetThatIsGoneFromTheConfiguration(t *testing.T) {
	d := newDesk(t, Settings{Targets: []Target{unreachable(t, "old", ""), unreachable(t, "new", "")}})
	d.Raise(LogLags, Condition{})
	d.flush()
	d.cfg.Targets = d.cfg.Targets[1:]
	d.restart()
	d.expectQueued("new", "alert.raised server")
	d.pass(2 * time.Minute)
	d.expectEvents("alert.raised log-lags/server success", "alert.undeliverable old failed")
}

func TestSecrets(t *testing.T) {
	for name, c := range map[string]struct {
		lines []string
		says  string
	}{
		"none":  {[]string{""}, "line 1"},
		"short": {[]string{"whsec_c2hvcnQ="}, "24 to 64"},
		"bare":  {[]string{"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}, "whsec_"},
		"many":  {strings.Split(strings.Repeat(secretText+" ", maxSecrets+1), " ")[:maxSecrets+1], "at most"},
	} {
		if _, err := readSecrets(secretFile(t, c.lines...)); err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "MfKQ") {
			t.Errorf("%s: %v", name, err)
		}
	}
	path := secretFile(t, secretText)
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := readSecrets(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a secret that others read: %v", err)
	}
	if _, err := readSecrets(path + "x"); err == nil || !strings.Contains(err.Error(), "urandom") {
		t.Errorf("missing: %v", err)
	}
}

func FuzzRetryAfter(f *testing.F) {
	for _, s := range []string{"0", "120", "Wed, 21 Oct 2026 07:28:00 GMT", "-1", "99999999999999999999", "soon"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if d := retryAfter(text, time.Unix(1_790_000_000, 0)); d < 0 {
			t.Errorf("%q: %s", text, d)
		}
	})
}
