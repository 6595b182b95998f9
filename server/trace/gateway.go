package trace

import (
	"fmt"
	"time"

	"wardlink/telemetry"
)

// received: whole messages come from the source, in its own rhythm.
func (j *judge) received() {
	s := j.gateway(Received)
	defer func() { j.add(s) }()
	src := j.source()
	heard := later(j.at(j.Passed.Heard.Milliseconds()), j.Passed.MessageAt)
	if src != nil {
		s.Count = src.Received
		heard = later(heard, j.at(src.ReceivedAt))
	}
	s.At = heard
	if j.Report == nil {
		s.Count, s.Note = j.Passed.Messages, "the agent has not reported"
		if !heard.IsZero() && j.Session.Open && j.Now.Sub(heard) > j.limit+lag {
			j.stop(&s, "nothing has come from the source for "+ago(j.Now, heard), "check the monitor, and bring the gateway's agent up to date, which does not report")
		}
		return
	}
	if src == nil {
		if j.Source == "" {
			j.stop(&s, "the gateway's agent has no source", "add the monitor's port to 'sources:' in the gateway's agent.yaml")
		} else if j.fresh {
			j.stop(&s, fmt.Sprintf("source %s is not configured on the gateway any more", j.Source),
				"put it back into 'sources:' of the gateway's agent.yaml, or trace the source that took its place")
		}
		return
	}
	if src.Connections > 0 {
		s.Note = fmt.Sprintf("%d connected", src.Connections)
	}
	if src.Bed != "" {
		s.Note = "bed " + src.Bed
	}
	recent := func(ms int64) bool { return ms > 0 && j.made().Sub(j.at(ms)) <= time.Hour }
	switch {
	case s.State != OK:
	case recent(src.ConflictAt):
		s.State, s.Note = Doubt, "a device claims another bed than its connection's; see 'bindings' in the gateway's agent.yaml"
	case src.Expired > 0 && recent(src.UnprovenAt):
		s.State, s.Note = Doubt, "a device is refused whose certificate has ended or not begun"
	case recent(src.SlowedAt):
		s.State, s.Note = Doubt, "devices send more than the gateway's limits allow, and are read later"
	}
	came := later(j.at(src.RefusedAt), heard) // what is refused has come all the same
	silent := j.made().Sub(came)
	if j.Passed.MessageAt.After(j.made().Add(-j.limit)) {
		silent = 0
	}
	if j.blocked() && j.lastJournaled().After(j.made().Add(-j.limit)) {
		silent, s.State = 0, Unknown // newer reports are journaled, and not opened yet
	}
	switch {
	case src.Deaf:
		j.stop(&s, fmt.Sprintf("the port of source %s cannot be opened on the gateway", j.Source),
			"run 'wardlink-agent status' on the gateway: another program holds the port, or the address is not the gateway's")
	case came.IsZero() && src.Unwelcome > 0:
		j.stop(&s, "the monitor connects and is turned away: its address is not on the source's allow list, or too many are connected",
			fmt.Sprintf("add its network to 'allow:' of source %s in the gateway's agent.yaml", j.Source))
	case came.IsZero() && src.Unproven > 0:
		j.stop(&s, "the monitor connects, and the TLS handshake fails",
			"run 'wardlink-agent status' on the gateway, which says why: the monitor's certificate has ended or is of another CA, or it does not trust the gateway's")
	case came.IsZero():
		j.stop(&s, fmt.Sprintf("source %s has never sent a message", j.Source),
			exportMend+", and the cable")
	case silent > j.limit:
		why := fmt.Sprintf("the monitor is silent: its last message came %s before the gateway's report", Spoken(silent))
		if u := j.usual(); u > 0 {
			why += fmt.Sprintf(", and usually one comes every %s", interval(u))
		}
		mend := "check that the monitor is on and its cable is in; its HL7 export goes to the gateway's address and port, a line socket's program runs on the gateway"
		if src.Connections > 0 {
			mend = "the monitor is connected and sends nothing: check that its HL7 export is on, or its program not held up, and that a patient is monitored"
		}
		j.stop(&s, why, mend)
	}
}

func interval(d time.Duration) string {
	if d < 2*time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return Spoken(d)
}

// What mends a source, for either kind: a report does not say whether a source is HL7 over MLLP or a line socket.
const (
	exportMend = "check at the monitor that its HL7 export is on and goes to the gateway's address and port, or that its program writes to the line socket"
	tryMend    = "'wardlink-agent hl7 try FILE', for a line socket 'line try FILE', shows what a message becomes"
)

// notUnderstood counts what came and could not be read in whole. It stops the data when nothing else comes.
func (j *judge) notUnderstood() {
	s := j.gateway(NotUnderstood)
	defer func() { j.add(s) }()
	src := j.source()
	if src == nil {
		return
	}
	s.Count, s.At = src.NotUnderstood+src.Refused, later(j.at(src.NotUnderstoodAt), j.at(src.RefusedAt))
	accepted := j.at(src.AcknowledgedAt)
	switch {
	case src.RefusedAt > src.AcknowledgedAt && j.made().Sub(accepted) > j.limit && j.made().Sub(j.at(src.RefusedAt)) <= j.limit:
		j.stop(&s, "what the monitor sends is refused: it is not HL7 v2 framed by MLLP, has no MSH segment, or is too long; on a line socket, the answer says why",
			"set the monitor's export to HL7 v2 over MLLP; "+tryMend)
	case src.NotUnderstood > 0 && src.NotUnderstoodAt >= src.ReceivedAt && j.Passed.Messages > 0 && j.Passed.MessageAt.Sub(j.Passed.ReadingAt) > j.limit:
		j.stop(&s, "messages come, and no reading in them is understood",
			"the messages are kept as they came; "+tryMend)
	case src.NotUnderstood > 0 && j.made().Sub(j.at(src.NotUnderstoodAt)) <= j.limit && s.State == OK:
		s.State, s.Note = Doubt, "some of what comes is not understood in whole"
	}
}

// lane sums up what the report says of the lanes that carry telemetry in the present epoch.
func (j *judge) lanes(each func(l *telemetry.LaneReport)) {
	if j.Report == nil {
		return
	}
	for i := range j.Report.Lanes {
		if l := &j.Report.Lanes[i]; l.Lane != telemetry.LaneSelf {
			each(l)
		}
	}
}

// full is what agents call a buffer without room: its station is buffered, and not sealed.
const full = "the buffer is full"

// sealed: batches are sealed and on disk.
func (j *judge) sealed() {
	s := j.gateway(Sealed)
	defer func() { j.add(s) }()
	failing := false
	j.lanes(func(l *telemetry.LaneReport) {
		s.Count += l.Sealed
		s.At = later(s.At, j.at(l.SealedAt))
		failing = failing || l.FailedAt > l.SealedAt
		if l.FailedAt == l.SealedAt && l.FailedAt != 0 {
			failing = true
		}
	})
	if src := j.source(); src != nil && src.FailedAt > src.AcknowledgedAt {
		failing = true
	}
	if !failing || j.Report.Buffer.Fault == full {
		return
	}
	fault := j.Report.Buffer.Fault
	if fault == "" {
		fault = "a batch could not be sealed or stored"
	}
	mend := map[string]string{
		"the disk is full":      "free space on the gateway's disk; the monitor sends again what was not acknowledged",
		"the disk is read-only": "mount the gateway's disk for writing; check it for errors first",
		"the disk fails":        "replace the gateway's disk or card; what is on it is still sent as far as it can be read",
	}[fault]
	if mend == "" {
		mend = "read the agent's log on the gateway ('journalctl -u wardlink-agent'); 'wardlink-agent doctor' looks at disk and buffer"
	}
	j.stop(&s, fmt.Sprintf("the gateway cannot keep what it receives: %s; the monitor gets no acknowledgement", fault), mend)
}

// buffered: what waits has room.
func (j *judge) buffered() {
	s := j.gateway(Buffered)
	defer func() { j.add(s) }()
	if j.Report == nil {
		return
	}
	failing := false
	var parked uint64
	var oldest time.Time
	j.lanes(func(l *telemetry.LaneReport) {
		s.Count += l.Waiting
		s.At = later(s.At, j.at(l.SealedAt))
		parked += l.Parked
		failing = failing || l.FailedAt >= l.SealedAt && l.FailedAt != 0
		if at := j.at(l.Oldest); !at.IsZero() && (oldest.IsZero() || at.Before(oldest)) {
			oldest = at
		}
	})
	if src := j.source(); src != nil && src.FailedAt > src.AcknowledgedAt {
		failing = true
	}
	b := j.Report.Buffer
	if s.Count > 0 && !oldest.IsZero() {
		s.Note = fmt.Sprintf("waiting, the oldest for %s", ago(j.made(), oldest))
	}
	switch {
	case failing && b.Fault == full:
		mend := "bring the connection to the hospital back, and the buffer drains; or raise 'buffer.cap' in the gateway's agent.yaml"
		if j.Report.Uplink.Connected {
			mend = "wait while the buffer drains; raise 'buffer.cap' in the gateway's agent.yaml if that happens again"
		}
		j.stop(&s, fmt.Sprintf("the gateway's buffer is full: %d batches wait in %s of %s; the monitor gets no acknowledgement",
			s.Count, bytes(b.Used), bytes(b.Cap)), mend)
	case s.State != OK:
	case j.Lost > 0:
		s.State, s.Note = Doubt, fmt.Sprintf("%d batches were lost within a day: evicted when the buffer was full, or damaged on the disk", j.Lost)
	case parked > 0:
		s.State, s.Note = Doubt, fmt.Sprintf("%d batches were refused by the server and are parked", parked)
	case b.Damaged+b.Unread > 0:
		s.State, s.Note = Doubt, fmt.Sprintf("%d files of the gateway's buffer are damaged, %d cannot be read", b.Damaged, b.Unread)
	case b.Used > b.Cap/10*9:
		s.State, s.Note = Doubt, fmt.Sprintf("%s of %s are in use", bytes(b.Used), bytes(b.Cap))
	}
}

func bytes(n uint64) string {
	switch {
	case n < 1<<20:
		return fmt.Sprintf("%d KB", n>>10)
	case n < 10<<30:
		return fmt.Sprintf("%d MB", n>>20)
	}
	return fmt.Sprintf("%d GB", n>>30)
}

// published: the gateway is connected, and hands over what waits.
func (j *judge) published() {
	s := j.gateway(Published)
	defer func() { j.add(s) }()
	var waiting, parked uint64
	var in, oldest time.Time
	j.lanes(func(l *telemetry.LaneReport) {
		s.Count += l.Published
		s.At = later(s.At, j.at(l.LastOut))
		in = later(in, j.at(l.LastIn))
		waiting += l.Waiting
		parked += l.Parked
		if at := j.at(l.Oldest); !at.IsZero() && (oldest.IsZero() || at.Before(oldest)) {
			oldest = at
		}
	})
	for lane, l := range j.Lanes {
		if telemetry.Lane(lane) != telemetry.LaneSelf {
			s.At = later(s.At, l.JournaledAt)
		}
	}
	if j.Session.Open {
		s.Note = "connected for " + ago(j.Now, j.Session.Since)
		if s.State == Unknown && j.Report == nil {
			s.State = OK
		}
		if j.fresh && waiting > parked && j.made().Sub(later(s.At, in)) > j.limit && !oldest.IsZero() && j.made().Sub(oldest) > j.limit {
			why := "the gateway is connected and hands over nothing of what waits"
			if f := j.Report.Uplink.Fault; f != "" {
				why += ": " + f
			}
			j.stop(&s, why, "read the agent's log on the gateway; 'wardlink-agent doctor' tries each step to the server")
		}
		if told := later(j.ReportAt, j.Lanes[telemetry.LaneSelf].JournaledAt); j.Report != nil && !j.fresh && j.Now.Sub(told) > j.overdue() {
			j.stop(&s, fmt.Sprintf("the gateway is connected, and its agent has not reported for %s", ago(j.Now, told)),
				"look at the gateway's disk, which may be full or read-only ('wardlink-agent doctor'); then restart the agent, which loses nothing")
		}
		return
	}
	j.disconnected(&s)
}

// disconnected says why there is no session, as far as anybody knows.
func (j *judge) disconnected(s *Station) {
	last := later(later(j.Session.Ended, j.ReportAt), s.At)
	since := "has never connected"
	if !last.IsZero() {
		since = "has not been connected for " + ago(j.Now, last)
	}
	s.Note = since
	r := j.Report
	switch {
	case j.State == "revoked":
		j.stop(s, "the gateway is revoked: "+j.Reason, "nothing, if that was meant; otherwise 'wardlink gateway resume "+j.Gateway+" --reason TEXT' takes it back")
	case j.State == "suspended":
		j.stop(s, "the gateway is suspended: "+j.Reason, "'wardlink gateway resume "+j.Gateway+"' lets it go on; what it took in meanwhile follows")
	case j.State == "decommissioned":
		j.stop(s, "the gateway is decommissioned: "+j.Reason, "nothing: it sends no more")
	case j.State != "" && j.State != "active" && j.State != "quarantined": // which is connected
		j.stop(s, "the gateway is "+j.State+" in the registry", "make it active again in the registry")
	case j.Window != "":
		j.stop(s, "the gateway is outside of its validity ("+j.Window+")",
			"nothing, if that was meant; otherwise 'wardlink gateway window "+j.Gateway+" --until TIME' or --always lets it connect; what it took in meanwhile follows")
	case !j.Session.Refused.IsZero() && j.Session.Refused.After(j.Session.Opened):
		j.stop(s, fmt.Sprintf("the server refuses the gateway: %s (%s ago)", j.Session.Why, ago(j.Now, j.Session.Refused)),
			"see 'wardlink audit list --type refused' for the refusal, and 'wardlink gateway show' for what the gateway may do")
	case last.IsZero():
		j.stop(s, "the gateway has never connected",
			"check that it is on and has this server's kit; 'wardlink gateway list' shows TPMs that wait for approval, 'wardlink-agent doctor' on the gateway each step")
	case r != nil && r.Identity.NotAfter != 0 && j.Now.After(time.UnixMilli(r.Identity.NotAfter)):
		j.stop(s, "the gateway's certificate ended "+ago(j.Now, time.UnixMilli(r.Identity.NotAfter))+" ago and was not renewed",
			"run 'wardlink-agent doctor' on the gateway: the TPM or the way to the server keeps it from renewing")
	default:
		why := "the gateway " + since
		if j.Session.End != "" && j.Session.Ended.After(j.Session.Refused) {
			why += " (its last session ended: " + j.Session.End + ")"
		}
		if j.Now.Sub(j.Started) < time.Minute {
			why += "; the server was started " + ago(j.Now, j.Started) + " ago"
		}
		j.stop(s, why, "check the gateway's power and network; what it receives is kept on its disk and follows; 'wardlink-agent doctor' on it tries each step")
	}
}
