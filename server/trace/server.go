package trace

import (
	"fmt"
	"time"

	"wardlink/telemetry"
)

// journaled: what the gateway publishes is durable at the server.
func (j *judge) journaled() {
	s := Station{Name: Journaled, State: OK}
	defer func() { j.add(s) }()
	for lane, l := range j.Lanes {
		if telemetry.Lane(lane) != telemetry.LaneSelf {
			s.Count += l.Journaled
			s.At = later(s.At, l.JournaledAt)
		}
	}
	var out, in time.Time
	j.lanes(func(l *telemetry.LaneReport) { out, in = later(out, j.at(l.LastOut)), later(in, j.at(l.LastIn)) })
	switch {
	case j.Journal != "":
		j.stop(&s, "the server's journal cannot be written: "+j.Journal, "free or mend the server's disk; nothing that was acknowledged is lost, and the gateways send again")
	case j.Session.Failed.After(s.At):
		j.stop(&s, "the server could not journal what the gateway published", "read the server's log; 'wardlink status' says whether its disk is full")
	case j.fresh && j.Session.Open && j.Report.Uplink.InFlight > 0 && out.Sub(in) > j.limit:
		j.stop(&s, "what the gateway publishes is not acknowledged", "read the server's log; 'wardlink status' says which part is not ready")
	case j.Missing > 0:
		s.State, s.Note = Doubt, fmt.Sprintf("%d batches that the gateway numbered never came, and nobody accounts for them", j.Missing)
	}
}

// opened: batches are unsealed and stored.
func (j *judge) opened() {
	s := Station{Name: Opened, State: OK}
	defer func() { j.add(s) }()
	var pending, dead uint64
	var since, deadAt, stored time.Time
	var reason string
	for lane, l := range j.Lanes {
		if telemetry.Lane(lane) == telemetry.LaneSelf {
			continue
		}
		s.Count += l.Stored
		stored = later(stored, l.StoredAt)
		pending, dead = pending+l.Pending, dead+l.Dead
		if l.DeadAt.After(deadAt) {
			deadAt, reason = l.DeadAt, l.Reason
		}
		if l.Pending > 0 && (since.IsZero() || l.PendingSince.Before(since)) {
			since = l.PendingSince
		}
	}
	s.At = stored
	switch {
	case j.Records.Held != "":
		j.stop(&s, "the server does not open batches: "+j.Records.Held, "free or mend the server's disk and database; what is journaled is opened then")
	case j.blocked():
		j.stop(&s, fmt.Sprintf("the server has not opened anything for %s", Spoken(j.Records.Behind)), "read the server's log; restart wardlink-server if it says nothing")
	case dead > 0 && deadAt.After(stored):
		j.stop(&s, fmt.Sprintf("the gateway's batches cannot be opened: %s; %d are dead", reason, dead),
			"see 'wardlink records dead'; after the cause is mended, 'wardlink records reopen' tries them again")
	case pending > 0 && j.Now.Sub(since) > j.limit && !stored.After(since):
		j.stop(&s, fmt.Sprintf("%d batches wait to be opened, the oldest for %s: their sealing record has not come, or is not signed by a key of this gateway", pending, ago(j.Now, since)),
			"see 'wardlink audit list --type refused' for a refused sealing record; the gateway sends its records again at each connection")
	case dead > 0:
		s.State, s.Note = Doubt, fmt.Sprintf("%d batches are dead", dead)
	case pending > 0:
		s.Note = fmt.Sprintf("%d pending", pending)
	}
}

// associated: messages name their patient, without whom no search by patient finds them, or are of a bed that is known, by which the
// hospital finds the patient.
func (j *judge) associated() {
	p := j.Passed
	whose := later(p.IdentifiedAt, p.BeddedAt)
	s := Station{Name: Associated, State: OK, At: whose, Count: p.Identified + p.Bedded}
	switch {
	case p.Anonymous > 0 && (s.Count == 0 || p.AnonymousAt.Sub(whose) > j.limit):
		j.stop(&s, "the monitor's messages name no patient (in HL7, PID-3 is empty)",
			"admit the patient at the monitor, or set it to send the patient's id, or bind the device to its bed (sources[].bindings in agent.yaml)")
	case p.Anonymous > 0:
		s.Note = fmt.Sprintf("%d messages without patient, the last %s ago", p.Anonymous, ago(j.Now, p.AnonymousAt))
	case p.Bedded > 0:
		s.Note = fmt.Sprintf("%d messages by their bed, without patient", p.Bedded)
	}
	j.add(s)
}

// visible: the hospital's search returns the newest reading.
func (j *judge) visible() {
	p := j.Passed
	s := Station{Name: Visible, State: OK, At: p.ReadingAt, Count: p.Readings}
	switch {
	case j.Hospital.Fault != "":
		j.stop(&s, "the hospital's listener does not answer: "+j.Hospital.Fault, "restart wardlink-server; see 'hospital:' and 'hospital_tls:' in its configuration")
	case j.Hospital.Store != "":
		j.stop(&s, "the hospital's search fails: "+j.Hospital.Store, "mend the server's database or disk; the server's log says more")
	case p.Readings > 0 && !j.Hospital.Found && j.Now.Sub(p.ReadingAt) < time.Hour:
		j.stop(&s, "the newest reading that was stored is not found by the hospital's search", "read the server's log; the readings are in the journal and can be opened again")
	case p.Readings == 0 && p.Messages > 0:
		j.stop(&s, "the source's messages hold no reading", "set the monitor to export measurements (in HL7, ORU^R01); "+tryMend)
	case p.Messages == 0 && j.Passed.Heard == 0:
		s.State = Unknown
	}
	j.add(s)
}

// lagging is the last guard against an "all well": whatever passed a station must have passed the next a little later.
func (j *judge) lagging() {
	for _, s := range j.stations {
		if s.State == Stopped {
			return
		}
	}
	find := func(name string) *Station {
		for i := range j.stations {
			if j.stations[i].Name == name {
				return &j.stations[i]
			}
		}
		panic("trace: no such station: " + name)
	}
	for _, step := range [][2]string{{Published, Journaled}, {Journaled, Opened}, {Received, Visible}} {
		before, after := find(step[0]), find(step[1])
		if d := before.At.Sub(after.At); !before.At.IsZero() && (after.At.IsZero() || d > j.limit+lag) {
			name := after
			if step[1] == Visible && j.Passed.MessageAt.Add(j.limit+lag).Before(before.At) {
				name = find(Opened)
			}
			j.stop(name, fmt.Sprintf("what was %s %s ago has not come here", before.Name, ago(j.Now, before.At)), "read the server's log and 'wardlink status'")
			return
		}
	}
	if r := find(Received); r.State == Unknown || r.At.IsZero() {
		// Nobody can say that data arrives.
		if p := find(Published); p.State != Stopped && j.Passed.Messages == 0 {
			j.stop(r, "nothing of this source has ever arrived", exportMend)
		}
	}
}
