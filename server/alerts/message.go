package alerts

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// The kinds of messages: the type of a webhook's body, the MSGID of a syslog message.
const (
	msgRaised    = "alert.raised"
	msgRepeated  = "alert.repeated"
	msgEscalated = "alert.escalated"
	msgResolved  = "alert.resolved"
	msgTest      = "alert.test"
)

// maxBody bounds a message's body, as Standard Webhooks recommends.
const maxBody = 20 << 10

// payload is the body of a webhook, as the spool keeps it for every target.
type payload struct {
	Type      string `json:"type"`
	Timestamp string `json:"timestamp"` // when it happened, RFC 3339 UTC; not when it was sent
	Data      data   `json:"data"`
}

type data struct {
	ID       string            `json:"id"`    // of the alert
	Alert    Type              `json:"alert"` // its type
	Subject  string            `json:"subject"`
	Severity string            `json:"severity"`
	State    string            `json:"state"` // open or resolved
	Opened   string            `json:"opened"`
	Resolved string            `json:"resolved,omitempty"`
	Count    int64             `json:"count"`
	Meaning  string            `json:"meaning"`
	Mend     string            `json:"mend"`
	Detail   map[string]string `json:"detail,omitempty"`
	Server   string            `json:"server"`
}

// message is one message for one target.
type message struct {
	to       *target
	id       string // the same at every attempt and for every target
	body     []byte
	severity Severity
	made     time.Time
	hold     time.Time // until then it waits for its row

	// Guarded by to.mu.
	kept     bool // it is in the spool
	attempts int
	state    int // waiting, delivered, givenUp
	reason   string
}

// States of a message, as in the spool.
const (
	waiting   = 0
	delivered = 1
	givenUp   = 2
)

// newID is a short name for a person to type: 50 random bits.
func newID() string { return rand.Text()[:10] }

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.000Z") }

// message makes one message for each target that takes the alert. The caller holds mu.
func (a *Alerts) message(al *Alert, kind string, now time.Time) []*message {
	var out []*message
	al.messages++
	id := fmt.Sprintf("msg_%s_%d", al.ID, al.messages)
	body := encode(a.payload(al, kind, now))
	for _, t := range a.targets {
		if t.takes(al) {
			out = append(out, &message{to: t, id: id, body: body, severity: al.Peak, made: now, hold: now.Add(a.hold)})
		}
	}
	if len(out) > 0 {
		al.Told, al.risen = now, false
	}
	return out
}

// anybody says whether a target takes the alert at all.
func (a *Alerts) anybody(al *Alert) bool {
	for _, t := range a.targets {
		if t.takes(al) {
			return true
		}
	}
	return false
}

func (a *Alerts) payload(al *Alert, kind string, now time.Time) payload {
	k, _ := KindOf(al.Type)
	p := payload{Type: kind, Timestamp: stamp(now), Data: data{
		ID: al.ID, Alert: al.Type, Subject: al.Subject, Severity: al.Severity.String(), State: "open", Opened: stamp(al.Opened),
		Count: al.Count, Meaning: k.Meaning, Mend: k.Mend, Detail: al.Detail, Server: a.cfg.Server,
	}}
	if !al.Resolved.IsZero() {
		p.Data.State, p.Data.Resolved = "resolved", stamp(al.Resolved)
	}
	return p
}

// testPayload is what 'wardlink alerts test' sends.
func testPayload(server string, now time.Time) payload {
	return payload{Type: msgTest, Timestamp: stamp(now), Data: data{
		ID: newID(), Alert: "test", Subject: "test", Severity: Notice.String(), State: "open", Opened: stamp(now), Count: 1,
		Meaning: "An operator tries whether this target takes messages.", Mend: "Nothing is wrong.", Server: server,
	}}
}

// encode gives the body. It fits: subject, details and texts are bounded.
func encode(p payload) []byte {
	b, err := json.Marshal(p)
	if err != nil || len(b) > maxBody {
		p.Data.Detail = nil
		b, _ = json.Marshal(p) // plain texts and numbers can always be encoded
	}
	return b
}

// cut shortens text to at most n bytes of valid UTF-8 without control characters.
func cut(text string, n int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	for len(text) > n {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	return text
}
