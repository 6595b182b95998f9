package demo

import (
	"fmt"
	"strings"
)

// table shows what came out, in rows that line up.
func (t *theatre) table() {
	s := t.summary
	w := &strings.Builder{}
	row := func(name string, value any, note string) { fmt.Fprintf(w, "  %-22s %10v  %s\n", name, value, note) }
	fmt.Fprintln(w)
	row("samples sent", s.SamplesSent, "by the monitors' own account")
	row("acknowledged", s.SamplesAcknowledged, "after the gateway's fsync")
	row("stored", s.SamplesStored, "in FHIR with value, unit and time as sent")
	row("no readings", s.NoReadings, "sent as such, and found as such")
	row("missing", s.Missing, "sent, and not in FHIR")
	row("duplicates", s.Duplicates, "in FHIR more than once")
	row("mismatched", s.Mismatched, "in FHIR with another value, unit or time")
	amid := "with SIGKILL, mid-stream"
	if s.Chaos > 0 {
		amid = "with SIGKILL, mid-stream and amid starts"
	}
	row("agents killed", s.AgentKills, amid)
	row("servers killed", s.ServerKills, amid)
	if s.Nodes > 0 {
		row("nodes killed", s.Kills.Node, fmt.Sprintf("of %d, %s", s.Nodes, amid))
	}
	if s.Kills.Database > 0 {
		row("databases killed", s.Kills.Database, "PostgreSQL, with SIGKILL")
	}
	if d := s.Disaster; d != nil {
		row("backup", fmt.Sprintf("%.2f MB", float64(d.BackupBytes)/1e6), fmt.Sprintf("encrypted, in %.1f s, while the monitors sent; %.1f s old when all was lost", d.BackupSeconds, d.BackupAge))
		row("restored after", fmt.Sprintf("%.1f s", d.RestoreSeconds), "from the loss of the server's directory until the next server was ready")
		row("refilled", d.Brought, fmt.Sprintf("batches that the gateways sent once more; %d that nobody has", d.Gone))
		row("former log", d.FormerLeaves, "leaves verified; the new log's first leaf names its checkpoint: "+yes(d.Succession))
	} else {
		row("network cut", fmt.Sprintf("%.1f s", s.OutageSeconds), fmt.Sprintf("in %s; %s buffered at the most",
			plural(s.Kills.Network, "outage"), plurals(int(s.BacklogPeak), "batch", "batches")))
	}
	if s.Chaos > 0 {
		row("chaos", fmt.Sprintf("%d s", s.Chaos), fmt.Sprintf("%d SIGKILLs, %d of them into a start, and %s of the network; --seed %d repeats them", s.Kills.Signals(), s.Kills.Startup,
			plural(s.Kills.Network, "cut"), s.Seed))
	}
	row("batches", s.BatchesAcknowledged, "that the gateways know the hospital has")
	row("log", s.AuditLeaves, fmt.Sprintf("leaves and %d publishes, verified offline", s.AuditRows))
	row("reads in the log", s.AuditReads, fmt.Sprintf("of %s that this comparison read", plural(s.FHIRReads, "FHIR page")))
	if s.Disaster == nil {
		row("revoked", fmt.Sprintf("%.2f s", s.RevokeSeconds), "from the operator's command until the live session was cut")
	}
	if q := s.Quarantine; q != nil {
		row("quarantined", fmt.Sprintf("%.1f s", q.Found), fmt.Sprintf("after %s started another boot loader: PCR %d, %s", q.Gateway, q.PCR, q.Entry))
		row("preliminary", q.Readings, "Observations of that time in FHIR, none final; readmitted by an operator: "+yes(q.Released))
	}
	if e := s.Enrolment; e != nil {
		row("enrolments/s", fmt.Sprintf("%.1f", e.Rate), fmt.Sprintf("%d gateways approved from one file, the last enrolled after %.1f s; %d in the busiest second", e.Gateways, e.Seconds, e.Busiest))
	}
	row("seconds", s.Seconds, "in all")
	if s.AccountLooks > 0 {
		row("account", s.AccountLooks, fmt.Sprintf("looks at it meanwhile; a number was missing in %d", s.Imbalances))
	}
	fmt.Fprint(w, "\n", accountTable(s.Account))
	if s.Disaster != nil {
		fmt.Fprint(t.Out, w.String())
		return
	}
	fmt.Fprintln(w)
	fmt.Fprintf(w, "  %-29s %-8s %6s  %-20s  %s\n", "attack", "refused", "leaf", "actor in the log", "reason in the log")
	for _, r := range s.Refusals {
		leaf := "-"
		if r.Leaf > 0 {
			leaf = fmt.Sprint(r.Leaf)
		}
		fmt.Fprintf(w, "  %-29s %-8s %6s  %-20s  %s\n", r.Case, yes(r.Refused), leaf, r.who(), r.Reason)
	}
	fmt.Fprint(t.Out, w.String())
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "NO"
}

// who is the actor without the trust domain, which is everybody's; of a peer that has proven nothing, where it came from.
func (r Refusal) who() string {
	if r.Actor == "peer" {
		return "peer " + r.Peer
	}
	return strings.TrimPrefix(r.Actor, "spiffe://"+trustDomain+"/")
}

// plural is "1 gateway", "2 gateways".
func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
