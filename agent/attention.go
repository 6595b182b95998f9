package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"wardlink/agent/source"
	"wardlink/enroll"
)

// The areas of what a running agent says of itself.
const (
	AreaIdentity = "identity"
	AreaUplink   = "uplink"
	AreaBuffer   = "buffer"
	AreaDisk     = "disk"
	AreaSource   = "source"
	AreaClock    = "clock"
	AreaTime     = "time"
	AreaSettings = "hospital's configuration"
	AreaKit      = "kit"
	AreaReload   = "configuration file"
)

// When what an agent says of itself is worth somebody's attention.
const (
	settleTime   = 15 * time.Second // after its start, before which nothing is connected yet
	reconnecting = 30 * time.Second // a connection that is being made anew is no trouble yet
	silentServer = 2 * time.Minute  // a connection that acknowledges nothing although batches wait
	firstMessage = 5 * time.Minute  // from the start to a source's first message
	quietFactor  = 10               // a source is silent when it misses this many of its usual intervals
	quietLeast   = 2 * time.Minute  // and at least this long
	clockOff     = 5 * time.Second  // between this machine's clock and the hospital's
	fillWarning  = 0.8              // of the buffer's cap that waits
	roomWarning  = 24 * time.Hour   // of room at the present rate, while nothing is delivered
	evictedNote  = 24 * time.Hour   // after the latest batch was deleted undelivered

	// LeastDisk is what an agent needs to go on: a segment for each lane and the small files. LowDisk is when somebody should know.
	LeastDisk = 32 << 20
	LowDisk   = 256 << 20
)

// Examine judges what a running agent says of itself: one finding for each part, in a fixed order.
func (s Status) Examine(now time.Time) []Finding {
	if s.Wiped != "" {
		return []Finding{s.examineWiped()}
	}
	out := []Finding{s.examineIdentity(now), s.examineUplink(now), s.examineTime(now), s.examineConfig(), s.examineBuffer(now)}
	out = append(out, s.examineReload()...)
	out = append(out, s.KitBeside...)
	out = append(out, s.examineLanes(now)...)
	out = append(out, s.examineHospital()...)
	out = append(out, s.Disk.Examine(s.State, s.Buffer.Cap-s.Buffer.Disk))
	for _, id := range slices.Sorted(maps.Keys(s.Sources)) {
		out = append(out, s.examineSource(id, now))
	}
	return out
}

// examineReload says what of the box's configuration file is not in use; nothing where all is.
func (s Status) examineReload() []Finding {
	switch r := s.Reload; {
	case r.Error != "":
		return []Finding{{Area: AreaReload, Level: Warning, Found: "it was read again and is not in use: " + r.Error,
			Mend: "mend it ('wardlink-agent config check' reads it), then 'systemctl reload wardlink-agent'; what ran before goes on meanwhile"}}
	case len(r.Restart) > 0:
		return []Finding{{Area: AreaReload, Level: Warning, Found: "it was read again; not in use yet: " + strings.Join(r.Restart, ", "),
			Mend: "'systemctl restart wardlink-agent': these hold from a start on"}}
	}
	return nil
}

// examineHospital says what is wrong with the hospital's side as far as a gateway can see it; nothing where nothing is.
func (s Status) examineHospital() (out []Finding) {
	if s.Log.Doubt != "" {
		out = append(out, Finding{
			Area: AreaUplink, Level: Warning, Found: "the hospital's transparency log: " + s.Log.Doubt,
			Mend: "tell whoever audits the server: it was put back, or restored; 'wardlink config show' names its log. Telemetry goes on",
		})
	}
	if s.Resend.Gone > 0 {
		out = append(out, Finding{
			Area: AreaUplink, Level: Warning, Found: fmt.Sprintf("the hospital was restored and lacks %s that this gateway delivered and holds no more", Count(s.Resend.Gone, "batch")),
			Mend: "'wardlink trace' shows which; a newer backup may hold them",
		})
	}
	return out
}

func (s Status) examineIdentity(now time.Time) Finding {
	f := Finding{Area: AreaIdentity, Level: Well}
	started := now.Sub(s.Started)
	now = s.Present(now)
	switch {
	case s.Leaving != "" && !s.Revoked:
		f.Level, f.Found = Stops, "the hospital has decommissioned this gateway: "+s.Leaving
		f.Mend = "nothing: it takes nothing more from its devices, hands over what waits, and wipes itself then"
	case s.Revoked:
		f.Level, f.Found = Stops, "cut off: "+s.Identity
		f.Mend = cutOffMend(s.CutOff)
	case s.Waiting != "":
		f.Level, f.Found = Stops, "this gateway waits for the hospital's approval under the fingerprint "+s.Waiting
		if s.Former != "" {
			f.Found += "; its disk is gateway " + s.Former + "'s, of another board"
		}
		f.Mend = "an operator runs: " + enroll.AdmitCommand(s.Waiting, s.Former)
	case s.Gateway == "" && s.Identity == "enrolling" && started < settleTime:
		f.Level, f.Found = Warning, "enrolling; the agent has just started"
	case s.Gateway == "":
		f.Level, f.Found, f.Mend = Stops, "no certificate: "+s.Identity, "telemetry is buffered meanwhile; 'wardlink-agent doctor' looks at the TPM and at each step to the server"
	case s.NotAfter != nil && !now.Before(*s.NotAfter) && s.Uplink.Connected && s.Time.Trusted:
		f.Level, f.Found = Warning, fmt.Sprintf("the certificate of %s ended %s ago; the hospital admits it for now, since its CA cannot issue", s.Gateway, Ago(now.Sub(*s.NotAfter)))
		f.Mend = "nothing here: the operators have an alert, and the gateway renews by itself once the CA can"
	case s.NotAfter != nil && !now.Before(*s.NotAfter):
		f.Level, f.Found = Stops, fmt.Sprintf("the certificate of %s ended %s ago", s.Gateway, Ago(now.Sub(*s.NotAfter)))
		f.Mend = "it renews itself as soon as the server can be reached and the clock is right; 'wardlink-agent doctor' says what is in the way"
	case s.RenewalOverdue(now):
		f.Level, f.Found = Warning, fmt.Sprintf("renewal of the certificate of %s is overdue; it ends in %s", s.Gateway, Ago(s.NotAfter.Sub(now)))
		f.Mend = "'wardlink-agent doctor' says what is in the way: the server, the TPM or the clock"
	default:
		f.Found = "enrolled as " + s.Gateway
		if s.NotAfter != nil {
			f.Found += fmt.Sprintf("; the certificate ends in %s", Ago(s.NotAfter.Sub(now)))
		}
	}
	return f
}

// cutOffMend says what can be done where the hospital has cut a gateway off.
func cutOffMend(how string) string {
	switch how {
	case "suspended":
		return "nothing on this machine: what devices send is kept, and it goes on by itself once an operator runs 'wardlink gateway resume'"
	case "kept out":
		return "nothing on this machine: what devices send is kept, and it goes on by itself within its validity; an operator changes that by 'wardlink gateway window'"
	case "replaced":
		return "another board is this gateway now, and this one never again; put its disk into the new board, and what waits here is sent"
	}
	return "what devices send is kept; ask the operators why ('wardlink gateway show' says who and when)"
}

// Present is an instant of this machine's clock by the hospital's, where the hospital has told it: certificates are dated by that.
func (s Status) Present(now time.Time) time.Time {
	if s.Time.Offset == nil {
		return now
	}
	return now.Add(time.Duration(*s.Time.Offset) * time.Millisecond)
}

// examineTime judges what the agent knows of the time. A wall clock that is wrong stops nothing once the hospital has told the time.
func (s Status) examineTime(now time.Time) Finding {
	f := Finding{Area: AreaTime, Level: Well}
	keep := "set the clock, and have NTP keep it; times that devices give themselves are not touched by this"
	wall := now.UTC().Format("2006-01-02 15:04:05 UTC")
	switch {
	case s.Time.Trusted && s.Time.Ahead:
		f.Level, f.Found = Warning, fmt.Sprintf("the hospital's time is before %s, which is known to be past (%s)", s.Time.Floor.UTC().Format("2006-01-02 15:04:05 UTC"), s.Time.FloorFrom)
		f.Mend = "see the clock of the hospital's server; the hospital's time is used all the same"
	case s.Time.Trusted && s.Time.Offset != nil && abs(*s.Time.Offset) >= clockOff.Milliseconds():
		side := "behind"
		if *s.Time.Offset < 0 {
			side = "ahead of"
		}
		f.Level, f.Mend = Warning, keep
		f.Found = fmt.Sprintf("this machine's clock shows %s, %s %s the hospital's; the hospital's is used", wall, Ago(time.Duration(abs(*s.Time.Offset))*time.Millisecond), side)
	case s.Time.Trusted:
		f.Found = fmt.Sprintf("told by the hospital %s ago; this machine's clock agrees", Ago(time.Duration(s.Time.Since)*time.Millisecond))
	case s.Time.Behind:
		f.Level, f.Mend = Warning, keep
		f.Found = fmt.Sprintf("this machine's clock shows %s, which cannot be (%s); the hospital has not told the time yet", wall, s.Time.FloorFrom)
	case s.Uplink.Connected && now.Sub(s.Uplink.Since) > settleTime && s.Time.Trouble != "":
		f.Level, f.Found, f.Mend = Warning, "the hospital does not tell the time: "+s.Time.Trouble, "see the server's log; until then this machine's clock is taken as it is"
	default:
		f.Found = "not told by the hospital yet; this machine's clock is taken as it is"
	}
	return f
}

func abs(n int64) int64 { return max(n, -n) }

// RenewalOverdue tells whether a certificate is in the last quarter of its life: it is renewed at half of it, or a little later.
func (s Status) RenewalOverdue(now time.Time) bool {
	if s.NotAfter == nil || s.NotBefore == nil {
		return false
	}
	return now.After(s.NotBefore.Add(s.NotAfter.Sub(*s.NotBefore) * 3 / 4))
}

func (s Status) examineUplink(now time.Time) Finding {
	f := Finding{Area: AreaUplink, Level: Well}
	waiting, _ := s.waitingInAll()
	since := now.Sub(s.Uplink.Since)
	last := s.LastAcknowledged()
	server := s.Uplink.Server
	if s.Uplink.Proxy != "" {
		server += " through the proxy " + s.Uplink.Proxy
	}
	switch {
	case !s.Uplink.Connected && s.Gateway == "":
		f.Level, f.Found = Stops, "not connected: there is no certificate yet"
	case !s.Uplink.Connected && (now.Sub(s.Started) < settleTime || since < reconnecting && s.Uplink.Connects > 0):
		f.Level, f.Found = Warning, "connecting"
		if s.Uplink.LastError != "" {
			f.Found += ": " + s.Uplink.LastError
		}
	case !s.Uplink.Connected:
		f.Level, f.Found, f.Mend = Stops, fmt.Sprintf("not connected for %s", Ago(since)), "nothing is lost: batches wait in the buffer; 'wardlink-agent doctor' looks at each step to the server"
		if s.Uplink.LastError != "" {
			f.Found += ": " + s.Uplink.LastError
		}
	case waiting > 0 && since > silentServer && now.Sub(last) > silentServer:
		f.Level, f.Found = Stops, fmt.Sprintf("connected to %s, but nothing has been acknowledged for %s while %s wait", server, Ago(min(since, now.Sub(last))), Count(waiting, "batch"))
		f.Mend = "see the server's status: its disk may be full, or its journal not writable"
	case last.IsZero():
		f.Found = fmt.Sprintf("connected to %s for %s; nothing was acknowledged since the agent started, and nothing waits", server, Ago(since))
	default:
		f.Found = fmt.Sprintf("connected to %s for %s; last acknowledgement %s ago", server, Ago(since), Ago(now.Sub(last)))
	}
	for _, b := range s.Uplink.Before {
		if b.Error != "" && f.Level != Stops {
			f.Level, f.Mend = Warning, "'wardlink-agent doctor' looks at each step to it; meanwhile the way that works is used, and that one is tried again by itself"
			f.Found += fmt.Sprintf("; %s comes before it and did not work %s ago: %s", b.Server, Ago(now.Sub(b.At)), b.Error)
		}
	}
	return f
}

func (s Status) examineBuffer(now time.Time) Finding {
	f := Finding{Area: AreaBuffer, Level: Well}
	fill := s.Fill()
	room, filling := s.Room(now)
	switch {
	case s.Intake.failing() && s.Intake.Full && s.Disk.Free < LeastDisk:
		f.Level, f.Found = Stops, "the disk is full: devices get no acknowledgement, are held back, and send again"
		f.Mend = fmt.Sprintf("free space on the file system of %s; it goes on by itself then", s.State)
	case s.Intake.failing() && s.Intake.Full:
		f.Level, f.Found = Stops, "the buffer is full: devices get no acknowledgement, are held back, and send again"
		f.Mend = "bring the connection back, which empties it, or raise buffer.cap and restart the agent; it goes on by itself then"
	case s.Intake.failing():
		f.Level, f.Found = Stops, fmt.Sprintf("messages could not be stored %s ago, and devices got no acknowledgement: %s", Ago(now.Sub(s.Intake.LastFailed)), s.Intake.Failure)
		f.Mend = "see the agent's log (journalctl -u wardlink-agent) and the disk"
	case len(s.Buffer.Unread) > 0:
		f.Level, f.Found = Warning, fmt.Sprintf("the disk cannot read %s of the buffer; it is tried again", Count(len(s.Buffer.Unread), "file"))
		f.Mend = "the disk is failing: see the kernel's log (dmesg), and replace it"
	case len(s.Buffer.Damaged) > 0:
		f.Level, f.Found = Warning, fmt.Sprintf("%s of the buffer in %s/buffer set aside as damaged; what could be read was sent", Count(len(s.Buffer.Damaged), "file"), s.State)
		f.Mend = "keep them for analysis, then move them elsewhere; their room counts"
	case fill >= fillWarning:
		f.Level, f.Found = Warning, fmt.Sprintf("%.0f %% of the buffer waits to be sent", 100*fill)
		f.Mend = "at its end the oldest batches are deleted, waveforms first: bring the connection back, or raise buffer.cap"
	case !s.Uplink.Connected && filling && room < roomWarning:
		f.Level, f.Found = Warning, fmt.Sprintf("there is room for %s more at the present rate", Ago(room))
		f.Mend = "bring the connection back, or raise buffer.cap"
	default:
		f.Found = fmt.Sprintf("%.0f %% of %s waits to be sent", 100*fill, Size(s.Buffer.Cap))
		if filling {
			f.Found += fmt.Sprintf("; room for %s without a connection, at the present rate", Ago(room))
		}
	}
	return f
}

// examineLanes has a finding for each lane that holds something which is not going anywhere by itself.
func (s Status) examineLanes(now time.Time) (out []Finding) {
	for _, l := range s.Buffer.Lanes {
		if l.Parked > 0 {
			out = append(out, Finding{Area: AreaBuffer, Name: l.Name, Level: Warning, Found: fmt.Sprintf("%s refused by the server and kept", Count(l.Parked, "batch")),
				Mend: "the server's log names the reason ('wardlink audit list'); once that is mended: " + s.nextParked(now)})
		}
		if l.Evicted > 0 && now.Sub(l.EvictedAt) < evictedNote {
			out = append(out, Finding{Area: AreaBuffer, Name: l.Name, Level: Warning,
				Found: fmt.Sprintf("full: %s deleted undelivered since %s ago, the latest %s ago; they are lost, and the hospital is told which",
					Count(l.Evicted, "batch"), Ago(now.Sub(l.EvictedSince)), Ago(now.Sub(l.EvictedAt))),
				Mend: "bring the connection back, which empties the buffer; or raise buffer.cap, or free the disk, and restart the agent"})
		}
		if l.Lost > 0 {
			out = append(out, Finding{Area: AreaBuffer, Name: l.Name, Level: Warning, Found: fmt.Sprintf("%s damaged on this disk since the agent started", Count(l.Lost, "batch")),
				Mend: "replace the disk; 'wardlink-agent buffer check' (agent stopped) names the files"})
		}
	}
	return out
}

// nextParked says how what the hospital refused comes to it after all.
func (s Status) nextParked(now time.Time) string {
	when := "now, one by one, while nothing else waits"
	switch next := s.Buffer.NextParked; {
	case !next.IsZero():
		when = fmt.Sprintf("in %s, and after a restart of the agent", Ago(next.Sub(now)))
	case !s.Uplink.Connected:
		when = "with the next connection"
	}
	return "they are sent again " + when + "; with the agent stopped 'wardlink salvage' brings them in at once"
}

// Examine judges a file system. want is how much the buffer may still grow.
func (d Disk) Examine(path string, want int64) Finding {
	f := Finding{Area: AreaDisk, Level: Well, Found: fmt.Sprintf("%s of %s free", Size(int64(d.Free)), Size(int64(d.Total)))}
	switch {
	case d.Total == 0:
		f.Level, f.Found = Warning, "the file system of "+path+" tells nothing of its size"
	case d.ReadOnly:
		f.Level, f.Found, f.Mend = Stops, "the file system of "+path+" is read-only", "the kernel does that after errors (dmesg): check the disk and mount it for writing again"
	case !d.NoInodes && d.Inodes < 64:
		f.Level, f.Found, f.Mend = Stops, fmt.Sprintf("the file system of %s has %d inodes left: no files can be made", path, d.Inodes), "remove small files there (df -i)"
	case d.Free < LeastDisk:
		f.Level, f.Mend = Stops, "free space on the file system of "+path
	case d.Free < LowDisk:
		f.Level, f.Mend = Warning, "free space on the file system of "+path+" before it is full"
	case int64(d.Free) < want:
		f.Level, f.Found = Warning, f.Found+fmt.Sprintf(", but the buffer may grow by %s", Size(want))
		f.Mend = "lower buffer.cap or give it a larger disk; at the disk's end the oldest batches are deleted, as at the cap, or devices get no acknowledgement"
	}
	return f
}

func (s Status) examineSource(id string, now time.Time) Finding {
	st := s.Sources[id]
	f := Finding{Area: AreaSource, Name: id, Level: Well}
	if st.Port != "" {
		return s.examineBound(st, f, now)
	}
	last := now.Sub(st.LastReceived)
	switch {
	case !st.Listening:
		f.Level, f.Found, f.Mend = Stops, "devices cannot connect: "+st.Trouble, "it is tried again by itself"
	case st.TLS != nil && st.TLS.Trouble != "":
		f.Level, f.Found, f.Mend = Warning, "the certificate for devices was replaced by files that cannot be used, so the former goes on: "+st.TLS.Trouble, "no restart is needed"
	case st.TLS != nil && st.TLS.NotAfter.Sub(now) < deviceCertificate && s.Time.Trusted:
		f.Level, f.Found = Warning, "the certificate that devices see ends at "+st.TLS.NotAfter.UTC().Format(time.RFC3339)
		f.Mend = "put a new one and its key in place of tls.certificate and tls.key; no restart is needed"
	case st.Received == 0 && st.TLS != nil && st.TLS.Refused > 0 && st.Connections == 0 && !s.heardOn(id):
		f.Level, f.Found = Stops, fmt.Sprintf("%s of devices failed, the last: %s", Count(st.TLS.Refused, "TLS handshake"), st.TLS.Reason)
		f.Mend = "see the device's certificate, 'client_ca' and 'allow' of this source's tls, and whether the device trusts the CA of tls.certificate"
	case now.Sub(st.LastBedConflict) < conflictShown:
		f.Level, f.Found = Warning, fmt.Sprintf("%s of a device that is bound to another bed than its connection: %s", Count(st.BedConflicts, "message"), st.BedConflict)
		f.Mend = "see which device is where, and mend 'bindings' of this source: the connection's bed counts meanwhile"
	case st.TLS != nil && now.Sub(st.TLS.LastExpired) < conflictShown:
		f.Level, f.Found = Warning, fmt.Sprintf("%s of certificates that have ended or not begun", Count(st.TLS.Expired, "refused handshake"))
		f.Mend = "give the device a new certificate; its messages are not taken until then"
	case now.Sub(st.LastSlowed) < slowedShown:
		f.Level, f.Found = Warning, fmt.Sprintf("its devices send more than 'limits' allow and are read later (%s so far); nothing is dropped", Count(st.Slowed, "time"))
		f.Mend = "raise limits.messages or limits.bytes of this source, or look what the device sends"
	case st.Received == 0 && st.Shared && s.heardOn(id):
		f.Found = fmt.Sprintf("listens on %s for devices that are bound to beds under ids of their own; %s", st.Address, devices(st.Connections))
	case st.Received == 0 && st.NotAllowed > 0 && st.Connections == 0:
		f.Level, f.Found = Stops, fmt.Sprintf("%s from addresses that 'allow:' does not list, and none from one that it does", Count(st.NotAllowed, "connection"))
		f.Mend = "add the device's network to sources[].allow and run 'systemctl reload wardlink-agent'"
	case st.Received == 0 && st.Refused > 0:
		f.Level, f.Found, f.Mend = Stops, fmt.Sprintf("what arrives is no HL7 message in an MLLP frame (%d times)", st.Refused), "set the device to HL7 v2 over MLLP"
	case st.Received == 0 && now.Sub(s.Started) > firstMessage:
		f.Level, f.Found = Warning, fmt.Sprintf("no message since the agent started %s ago; %s", Ago(now.Sub(s.Started)), devices(st.Connections))
		f.Mend = "is the device on, and is it set to send to " + st.Address + "?"
	case st.Received == 0:
		f.Found = fmt.Sprintf("listens on %s; no message yet; %s", st.Address, devices(st.Connections))
	case silent(st.Usual, last):
		f.Level, f.Found = Warning, fmt.Sprintf("silent for %s; %s", Ago(last), devices(st.Connections))
		f.Mend = "see the device, its cable, and the network in between"
	case st.Ahead != nil && st.Ahead.Abs() >= deviceClockOff:
		side := "ahead of"
		if *st.Ahead < 0 {
			side = "behind"
		}
		f.Level, f.Found = Warning, fmt.Sprintf("its clock is %s %s the hospital's time; what it says of the time is kept", Ago(st.Ahead.Abs()), side)
		f.Mend = "set the device's clock; where it is out by whole hours, sources[].time_zone may be wrong"
	case st.NotUnderstood == st.Received:
		f.Level, f.Found = Warning, fmt.Sprintf("of none of its %d messages everything was understood", st.Received)
		f.Mend = "keep one in a file and run 'wardlink-agent hl7 try' (a line socket's: 'line try') on it; nothing is lost meanwhile: they travel as they came, too"
	default:
		f.Found = fmt.Sprintf("listens on %s; last message %s ago, %d in the last minute; %s", st.Address, Ago(last), st.LastMinute, devices(st.Connections))
	}
	return f
}

// heardOn tells whether a device that has an id of its own has sent anything on a source's port.
func (s Status) heardOn(port string) bool {
	for _, st := range s.Sources {
		if st.Port == port && st.Received > 0 {
			return true
		}
	}
	return false
}

// examineBound judges a device that is bound to a bed under an id of its own: what its port's finding does not say.
func (s Status) examineBound(st source.Stats, f Finding, now time.Time) Finding {
	last := now.Sub(st.LastReceived)
	switch {
	case st.Received == 0:
		f.Found = "bed " + st.Bed + ": no message yet"
		if now.Sub(s.Started) > firstMessage {
			f.Level, f.Found = Warning, fmt.Sprintf("bed %s: no message since the agent started %s ago", st.Bed, Ago(now.Sub(s.Started)))
			f.Mend = "is the device on, does it send to the port of source " + st.Port + ", and is it what 'bindings' says? 'wardlink-agent status' lists them"
		}
	case silent(st.Usual, last):
		f.Level, f.Found = Warning, fmt.Sprintf("bed %s: silent for %s", st.Bed, Ago(last))
		f.Mend = "see the device, its cable, and the network in between"
	default:
		f.Found = fmt.Sprintf("bed %s: last message %s ago, %d in the last minute", st.Bed, Ago(last), st.LastMinute)
	}
	return f
}

// How long what happened to a source is worth a warning, and how long before its end the certificate for devices is.
const (
	conflictShown     = time.Hour
	slowedShown       = time.Minute
	deviceCertificate = 14 * 24 * time.Hour
)

// silent tells whether a source misses its own rhythm.
func silent(usual, since time.Duration) bool {
	return usual > 0 && since > max(quietFactor*usual, quietLeast)
}

func devices(n int) string {
	if n == 1 {
		return "1 device is connected"
	}
	return fmt.Sprintf("%d devices are connected", n)
}

// Ago is a duration for people: its largest unit and, below ten of it, the next.
func Ago(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	const day = 24 * time.Hour
	pair := func(big, small time.Duration, bigUnit, smallUnit string) string {
		n, rest := d/big, d%big/small
		if n >= 10 || rest == 0 {
			return fmt.Sprintf("%d %s", n, bigUnit)
		}
		return fmt.Sprintf("%d %s %d %s", n, bigUnit, rest, smallUnit)
	}
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return pair(time.Minute, time.Second, "min", "s")
	case d < day:
		return pair(time.Hour, time.Minute, "h", "min")
	}
	return pair(day, time.Hour, "d", "h")
}

// Size is a number of bytes for people, in binary units under their everyday names, as the configuration writes them.
func Size(n int64) string {
	value, unit := float64(n), "B"
	for _, u := range []string{"KB", "MB", "GB", "TB"} {
		if value < 1024 {
			break
		}
		value, unit = value/1024, u
	}
	if unit == "B" || value >= 100 {
		return fmt.Sprintf("%.0f %s", value, unit)
	}
	return fmt.Sprintf("%.1f %s", value, unit)
}
