package client

import (
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"wardlink/audit"
	"wardlink/telemetry"
)

// AuditItem is one line of the audit list.
type AuditItem struct {
	Leaf    uint64            `json:"leaf"`
	Time    time.Time         `json:"time"`
	Type    string            `json:"type"`
	Actor   string            `json:"actor"`
	Serial  string            `json:"serial,omitempty"`
	Peer    string            `json:"peer,omitempty"`
	Target  string            `json:"target,omitempty"`
	Outcome string            `json:"outcome"`
	Reason  string            `json:"reason,omitempty"`
	Count   uint64            `json:"count,omitempty"`
	ID      string            `json:"id"`
	Frame   string            `json:"frame_sha256,omitempty"`
	Detail  map[string]string `json:"detail,omitempty"`
}

// ShowItem is an item of the log in the list's form.
func ShowItem(it audit.Item) AuditItem {
	out := AuditItem{Leaf: it.Index, Time: time.UnixMilli(it.Time()).UTC()}
	switch {
	case it.Event != nil:
		ev := it.Event
		out.Type, out.Actor, out.Serial, out.Peer = string(ev.Type), ev.Actor.ID, ev.Actor.Serial, ev.Peer
		out.Target, out.Outcome, out.Reason, out.Count = ev.Target, string(ev.Outcome), ev.Reason, ev.Count
		out.ID, out.Detail = ev.ID.String(), ev.Detail
	case it.Row != nil:
		row := it.Row
		out.Type, out.Actor, out.Serial, out.Peer = "publish", row.Gateway, row.Serial, row.Peer
		out.Target = telemetry.BatchID{Epoch: row.Epoch, Lane: telemetry.Lane(row.Lane), Number: row.Number}.String()
		out.Outcome, out.ID, out.Frame = row.Verdict, row.ID.String(), hex.EncodeToString(row.Frame[:])
	case it.Window != nil:
		out.Type, out.Actor, out.Outcome, out.Count = "window", "server", string(audit.Success), it.Window.Count
		out.ID = it.Window.ID.String()
	}
	return out
}

// Query is the filter as the list's query.
func Query(f audit.Filter) url.Values {
	v := url.Values{
		"type": {string(f.Type)}, "actor": {f.Actor}, "gateway": {f.Gateway}, "outcome": {string(f.Outcome)}, "reason": {f.Reason},
		"newest": {strconv.FormatBool(f.Newest)}, "publishes": {strconv.FormatBool(f.Publishes)},
	}
	for key, n := range map[string]int64{"limit": int64(f.Limit), "from": f.From, "to": f.To} {
		if n != 0 {
			v.Set(key, strconv.FormatInt(n, 10))
		}
	}
	return v
}

// ParseFilter reads the list's query: type, actor, gateway, outcome, reason, from, to (Unix milliseconds), limit, newest, publishes.
func ParseFilter(v url.Values) (audit.Filter, error) {
	f := audit.Filter{
		Type: audit.Type(v.Get("type")), Actor: v.Get("actor"), Gateway: v.Get("gateway"),
		Outcome: audit.Outcome(v.Get("outcome")), Reason: v.Get("reason"),
	}
	switch f.Outcome {
	case "", audit.Success, audit.Denied, audit.Failed:
	default:
		return f, fmt.Errorf("outcome: %.20q; expected success, denied or failed", f.Outcome)
	}
	for key, into := range map[string]*int64{"from": &f.From, "to": &f.To} {
		if text := v.Get(key); text != "" {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				return f, fmt.Errorf("%s: %.40q; expected Unix milliseconds", key, text)
			}
			*into = n
		}
	}
	if text := v.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return f, fmt.Errorf("limit: %q; expected a number from 1", text)
		}
		f.Limit = n
	}
	f.Newest = v.Get("newest") == "true"
	f.Publishes = v.Get("publishes") == "true"
	return f, nil
}
