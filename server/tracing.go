package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
	"unicode"

	"wardlink/audit"
	"wardlink/internal/refusal"
	"wardlink/server/api/client"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/trace"
	"wardlink/telemetry"
)

// trace tells, for a gateway, a source or a source of a gateway, where data stops. registry.ErrUnknown when there is no such thing.
func (s *Server) trace(ctx context.Context, gateway, source string) ([]client.Trace, error) {
	return s.traceAt(ctx, gateway, source, time.Now())
}

func (s *Server) traceAt(ctx context.Context, gateway, source string, now time.Time) ([]client.Trace, error) {
	store := records.NewStore(s.db, s.keys.Pseudonym)
	gateways := []string{gateway}
	if gateway == "" {
		var err error
		if gateways, err = store.GatewaysOf(ctx, source); err != nil {
			return nil, err
		}
		if len(gateways) == 0 {
			return nil, refusal.New(registry.ErrUnknown, "no gateway has named a source %.80q; 'wardlink trace --gateway G' shows a gateway's sources", source)
		}
	}
	out := []client.Trace{}
	for _, id := range gateways {
		facts, err := s.facts(ctx, store, id, source, now)
		if errors.Is(err, registry.ErrUnknown) && gateway == "" {
			continue // it was a gateway once
		}
		if err != nil {
			return nil, err
		}
		for _, f := range facts {
			out = append(out, shownTrace(trace.Judge(f), now))
		}
	}
	return out, nil
}

// facts gathers what is known of one gateway, once for each of its sources.
func (s *Server) facts(ctx context.Context, store *records.Store, gateway, source string, now time.Time) ([]trace.Facts, error) {
	g, err := s.registry.Get(ctx, gateway)
	if err != nil {
		return nil, err
	}
	account, err := store.Account(ctx, gateway)
	if err != nil {
		return nil, err
	}
	f := trace.Facts{
		Now: now, Started: s.started, Gateway: g.ID, Ward: g.Ward, State: string(g.State), Report: account.Report, ReportAt: account.Received,
		Silence: s.silence, Session: s.sessionOf(gateway), Hospital: trace.Hospital{Fault: s.hospitalFault(ctx)},
	}
	if g.Revoked != nil {
		f.Reason = g.Revoked.Reason
	} else if g.Hold != nil {
		f.Reason = g.Hold.Reason
	}
	if g.Outside(now) {
		f.Window = registry.Window(g.NotBefore, g.NotAfter)
	}
	if err := s.journal.Health(); err != nil {
		f.Journal = err.Error()
	}
	f.Records = s.recordsState(now)
	traffic := s.everywhere().Traffic(gateway)
	for lane, l := range account.Lanes {
		f.Lanes[lane] = trace.Lane{
			Journaled: l.Journaled, Stored: l.Stored, Pending: l.Pending, Dead: l.Dead, JournaledAt: l.JournaledAt, StoredAt: l.StoredAt,
			PendingSince: l.PendingSince, DeadAt: l.DeadAt, Reason: l.DeadReason,
		}
		// What records has not read yet is known from the sessions of this process.
		if at := traffic.JournaledAt[lane].Truncate(time.Millisecond); at.After(l.JournaledAt) {
			f.Lanes[lane].JournaledAt = at
		}
	}
	for _, gap := range account.Gaps {
		if gap.Lane != telemetry.LaneSelf && (gap.Firm || now.Sub(gap.Since) > oldGap) {
			f.Missing += gap.Count()
		}
	}
	if f.Lost, err = store.LossesOf(ctx, gateway, now.Add(-recentLoss)); err != nil {
		return nil, err
	}
	var out []trace.Facts
	for _, c := range sourcesOf(account, source) {
		one := f
		one.Source = printable(c.ID)
		one.Passed = trace.Passed{
			Heard: time.Duration(c.Heard) * time.Millisecond, Usual: c.Usual, Messages: c.Messages, Identified: c.Identified, Anonymous: c.Anonymous,
			Bedded: c.Bedded, BeddedAt: c.BeddedAt, Readings: c.Readings, MessageAt: c.MessageAt, IdentifiedAt: c.IdentifiedAt, AnonymousAt: c.AnonymousAt, ReadingAt: c.ReadingAt,
		}
		found, err := store.Visible(ctx, c)
		if err != nil {
			s.log.Error("the hospital's search fails", "error", err)
			one.Hospital.Store = "the database cannot be read"
		}
		one.Hospital.Found = found
		out = append(out, one)
	}
	if source != "" && len(out) == 0 {
		return nil, refusal.New(registry.ErrUnknown, "gateway %s has no source %.80q", gateway, source)
	}
	if len(out) == 0 {
		out = append(out, f)
	}
	return out, nil
}

// printable makes a name that a gateway chose fit for a terminal: in a report telemetry sees to that, but not in what a device sent.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
}

// oldGap is when a gap that no report has confirmed counts all the same.
const oldGap = 10 * time.Minute

// recentLoss is how long a loss is shown beside the stations; the account keeps it for ever.
const recentLoss = 24 * time.Hour

// sourcesOf are the sources that the newest report names; all that were ever heard of, when there is no report; or the one that is asked
// for, even if it is not configured any more. A port all of whose devices have ids of their own is no source to be traced.
func sourcesOf(a records.Account, asked string) (out []records.SourceAccount) {
	for _, c := range a.Sources {
		if asked == "" && a.Report != nil && slices.ContainsFunc(a.Report.Sources, func(r telemetry.SourceReport) bool { return r.ID == c.ID && r.Shared && r.Received == 0 }) {
			continue
		}
		if asked != "" && c.ID == asked || asked == "" && (a.Report == nil || c.Reported.Equal(a.Received)) {
			if out = append(out, c); len(out) == telemetry.MaxSources { // as a report; whoever names more than that names what is none
				break
			}
		}
	}
	return out
}

func (s *Server) sessionOf(gateway string) trace.Session {
	t := s.everywhere().Traffic(gateway)
	out := trace.Session{Opened: t.Opened, Ended: t.Ended, End: t.Reason, Refused: t.Refused, Why: t.Why, Failed: t.Failed}
	for _, info := range s.everywhere().Sessions() {
		if info.Gateway == gateway {
			out.Open, out.Since, out.Peer = true, info.Opened, info.Peer
		}
	}
	return out
}

// recordsState says whether records keeps up: how old the first journal entry is that it has not passed.
func (s *Server) recordsState(now time.Time) (out trace.Records) {
	if err := s.records.Held(); err != nil {
		out.Held = err.Error()
		return out
	}
	cursor := s.journal.Cursor(records.Consumer)
	if s.journal.Stats().Committed <= cursor {
		return out
	}
	entries, err := s.journal.Read(cursor+1, 1)
	if err != nil || len(entries) == 0 {
		return out // the journal's own health tells
	}
	at := now
	if e := entries[0]; e.Kind == journal.KindPublish {
		if row, err := audit.DecodeRow(e.Head); err == nil {
			at = time.UnixMilli(row.Received)
		}
	} else if ev, err := audit.DecodeEvent(e.Head); err == nil {
		at = time.UnixMilli(ev.Time)
	}
	out.Behind = max(0, now.Sub(at))
	return out
}

// answerTime is how long the hospital's listener may take to shake hands with its own server.
const answerTime = 3 * time.Second

// hospitalFault asks the hospital's listener for a TLS handshake, as any client would, and says why there is none; "" when there is. Only
// whether it answers is of interest, not with which certificate. Without a request no refusal is counted.
func (s *Server) hospitalFault(ctx context.Context) string {
	if s.listeners.hospital == nil {
		return "it is not open"
	}
	addr := s.listeners.hospital.Addr().String()
	if tcp, ok := s.listeners.hospital.Addr().(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		addr = net.JoinHostPort("", fmt.Sprint(tcp.Port)) // this machine, whatever its files call it
	}
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}}}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		s.log.Warn("the hospital's listener does not answer its own server", "address", addr, "error", err)
		if errors.Is(err, context.DeadlineExceeded) {
			return fmt.Sprintf("no TLS handshake at %s within %s", addr, answerTime)
		}
		return fmt.Sprintf("no TLS handshake at %s", addr)
	}
	_ = conn.Close()
	return ""
}

func shownTrace(t trace.Trace, now time.Time) client.Trace {
	out := client.Trace{Gateway: t.Gateway, Ward: t.Ward, Source: t.Source, At: now.UTC().Truncate(time.Millisecond), Stopped: t.Stopped, Why: t.Why, Mend: t.Mend}
	for _, s := range t.Stations {
		shown := client.Station{Name: s.Name, State: string(s.State), Count: s.Count, Note: s.Note, Why: s.Why, Mend: s.Mend, KnownFor: int64(s.As / time.Second)}
		if !s.At.IsZero() {
			at := s.At.UTC().Truncate(time.Millisecond)
			shown.Last = &at
		}
		out.Stations = append(out.Stations, shown)
	}
	return out
}
