package agent

import (
	"strings"
	"testing"
	"time"

	"wardlink/agent/source"
	"wardlink/buffer"
	"wardlink/enroll/tpm"
	"wardlink/telemetry"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return noon.Add(-d) }

// healthy is an agent with which all is well.
func healthy() Status {
	from, until := ago(2*time.Hour), ago(-22*time.Hour)
	s := Status{
		Gateway: "icu-3-bed-7", Identity: "enrolled", NotBefore: &from, NotAfter: &until, Started: ago(2 * time.Hour), State: "/var/lib/x", LastHour: 1 << 20,
		Disk: Disk{Free: 10 << 30, Total: 20 << 30, Inodes: 1 << 20},
		Sources: map[string]source.Stats{"bed-7": {
			Listening: true, Address: "127.0.0.1:2575", Connections: 1, Received: 100, LastReceived: ago(time.Second), LastMinute: 60, Usual: time.Second,
		}},
	}
	s.Buffer.Cap, s.Buffer.Disk = 1<<30, 100<<20
	s.Intake.LastStored = ago(time.Second)
	s.Uplink.Connected, s.Uplink.Since, s.Uplink.Server, s.Uplink.Connects = true, ago(time.Hour), "ward.example:8883", 1
	s.Uplink.Lanes[telemetry.LaneVitals].AckedAt = ago(time.Second)
	for lane := range telemetry.Lane(telemetry.LaneCount) {
		s.Queues = append(s.Queues, Queue{Lane: lane.String()})
		s.Buffer.Lanes = append(s.Buffer.Lanes, buffer.LaneStats{Name: lane.String()})
	}
	return s
}

func bed7(change func(*source.Stats)) func(*Status) {
	return func(s *Status) {
		st := s.Sources["bed-7"]
		change(&st)
		s.Sources["bed-7"] = st
	}
}

// TestExamine: each thing that can go wrong makes exactly one finding that is not well, and what has gone wrong besides is not lost.
func TestExamine(t *testing.T) {
	if bad := Unwell(healthy().Examine(noon)); len(bad) != 0 {
		t.Fatalf("all is well: %+v", bad)
	}
	backlog := func(s *Status) { s.Queues[telemetry.LaneVitals] = Queue{Lane: "vitals", Waiting: 50, Bytes: 1 << 20} }
	for name, c := range map[string]struct {
		change      func(*Status)
		area        string
		level       Level
		found, mend string
	}{
		"approval": {func(s *Status) { s.Waiting, s.Gateway = "ABCD", "" }, AreaIdentity, Stops, "waits for the hospital's approval", "wardlink gateway approve ABCD --id NAME --ward WARD"},
		"configuration taken back": {func(s *Status) {
			s.Settings.Version, s.Settings.Reverted = 2, &ConfigChange{Version: 3, Reason: revertedNoServer}
		}, AreaSettings, Warning, "version 3 was taken back: none of its servers", "wardlink config retry"},
		"revoked": {func(s *Status) { s.Revoked, s.Identity = true, "revoked by the hospital: stolen" }, AreaIdentity, Stops, "stolen", "gateway show"},
		"no TPM":  {func(s *Status) { s.Gateway, s.Identity = "", "open TPM /dev/tpmrm0: no such file" }, AreaIdentity, Stops, "/dev/tpmrm0", "doctor"},
		"expired": {func(s *Status) { *s.NotAfter = ago(time.Hour) }, AreaIdentity, Stops, "ended 1 h ago", "clock"},
		"grace": {func(s *Status) {
			*s.NotAfter, s.Time = ago(time.Hour), ClockFacts{Trusted: true, Offset: ms(0)}
		}, AreaIdentity, Warning, "ended 1 h ago; the hospital admits it for now", "nothing here"},
		"renewal overdue": {func(s *Status) { *s.NotBefore, *s.NotAfter = ago(20*time.Hour), ago(-4*time.Hour) }, AreaIdentity, Warning, "overdue; it ends in 4 h", "doctor"},
		"clock behind":    {func(s *Status) { s.Time = ClockFacts{Trusted: true, Offset: ms(90_000)} }, AreaTime, Warning, "1 min 30 s behind the hospital's", "NTP"},
		"clock ahead":     {func(s *Status) { s.Time = ClockFacts{Trusted: true, Offset: ms(-7_200_000)} }, AreaTime, Warning, "2 h ahead of the hospital's", "NTP"},
		"1970":            {func(s *Status) { s.Time = ClockFacts{Behind: true, FloorFrom: "the build"} }, AreaTime, Warning, "which cannot be (the build)", "set the clock"},
		"server's clock":  {func(s *Status) { s.Time = ClockFacts{Trusted: true, Ahead: true, Offset: ms(0)} }, AreaTime, Warning, "known to be past", "hospital's server"},
		"not told":        {func(s *Status) { s.Time.Trouble = "404" }, AreaTime, Warning, "does not tell the time: 404", "server's log"},
		"cut": {func(s *Status) {
			s.Uplink.Connected, s.Uplink.Since, s.Uplink.LastError = false, ago(12*time.Minute), "server x: refused"
		}, AreaUplink, Stops, "not connected for 12 min: server x: refused", "nothing is lost"},
		"reconnecting": {func(s *Status) { s.Uplink.Connected, s.Uplink.Since = false, ago(3*time.Second) }, AreaUplink, Warning, "connecting", ""},
		"just started": {func(s *Status) {
			s.Started, s.Uplink.Connected, s.Uplink.Since = ago(time.Second), false, ago(time.Second)
		}, AreaUplink, Warning, "connecting", ""},
		"mute server":    {func(s *Status) { backlog(s); s.Uplink.Lanes[telemetry.LaneVitals].AckedAt = ago(5 * time.Minute) }, AreaUplink, Stops, "nothing has been acknowledged for 5 min while 50 batches wait", "journal"},
		"never acked":    {func(s *Status) { backlog(s); s.Uplink.Lanes[telemetry.LaneVitals].AckedAt = time.Time{} }, AreaUplink, Stops, "nothing has been acknowledged for 1 h", "journal"},
		"disk full":      {cannotStore(true, 1<<20), AreaBuffer, Stops, "the disk is full", "goes on by itself"},
		"buffer full":    {cannotStore(true, 10<<30), AreaBuffer, Stops, "the buffer is full", "buffer.cap"},
		"disk failing":   {cannotStore(false, 10<<30), AreaBuffer, Stops, "could not be stored 1.0 s ago", "log"},
		"unread":         {func(s *Status) { s.Buffer.Unread = []string{"a"} }, AreaBuffer, Warning, "cannot read 1 file of", "dmesg"},
		"set aside":      {func(s *Status) { s.Buffer.Damaged = []string{"a"} }, AreaBuffer, Warning, "1 file of the buffer in /var/lib/x/buffer set aside", "keep them"},
		"nearly full":    {func(s *Status) { s.Queues[1].Bytes = 900 << 20 }, AreaBuffer, Warning, "88 % of the buffer", "bring the connection back"},
		"parked":         {func(s *Status) { s.Buffer.Lanes[1].Parked = 3 }, AreaBuffer, Warning, "3 batches refused", "sent again now"},
		"parked, later":  {func(s *Status) { s.Buffer.Lanes[1].Parked, s.Buffer.NextParked = 3, noon.Add(7*time.Hour) }, AreaBuffer, Warning, "3 batches refused", "sent again in 7 h, and after a restart of the agent; with the agent stopped 'wardlink salvage'"},
		"lost":           {func(s *Status) { s.Buffer.Lanes[1].Lost = 3 }, AreaBuffer, Warning, "3 batches damaged", "replace"},
		"read-only":      {func(s *Status) { s.Disk.ReadOnly = true }, AreaDisk, Stops, "read-only", "dmesg"},
		"inodes":         {func(s *Status) { s.Disk.Inodes = 3 }, AreaDisk, Stops, "3 inodes", "df -i"},
		"no inode count": {func(s *Status) { s.Disk.Inodes, s.Disk.NoInodes, s.Disk.Free = 0, true, 1<<20 }, AreaDisk, Stops, "1.0 MB of", "free space"},
		"disk low":       {func(s *Status) { s.Disk.Free = 200 << 20 }, AreaDisk, Warning, "200 MB of", "before it is full"},
		"disk small":     {func(s *Status) { s.Disk.Free = 600 << 20 }, AreaDisk, Warning, "may grow by 924 MB", "lower buffer.cap"},
		"port taken":     {bed7(func(st *source.Stats) { st.Listening, st.Trouble = false, "port 1 is taken by process 7 (mirth)" }), AreaSource, Stops, "process 7 (mirth)", "by itself"},
		"not allowed":    {bed7(func(st *source.Stats) { *st = source.Stats{Listening: true, NotAllowed: 9} }), AreaSource, Stops, "9 connections", "sources[].allow"},
		"no MLLP":        {bed7(func(st *source.Stats) { *st = source.Stats{Listening: true, Refused: 9} }), AreaSource, Stops, "no HL7 message", "MLLP"},
		"never":          {bed7(func(st *source.Stats) { *st = source.Stats{Listening: true, Address: "127.0.0.1:2575"} }), AreaSource, Warning, "no message since the agent started 2 h ago", "127.0.0.1:2575"},
		"silent":         {bed7(func(st *source.Stats) { st.LastReceived = ago(3 * time.Minute) }), AreaSource, Warning, "silent for 3 min", "cable"},
		"no certificate": {bed7(func(st *source.Stats) {
			st.TLS = &source.TLSStats{NotAfter: noon.Add(99 * 24 * time.Hour), Trouble: "tls.key: x has mode 0644: chmod 600 x"}
		}), AreaSource, Warning, "the former goes on: tls.key", "no restart"},
		"certificate ends": {func(s *Status) {
			bed7(func(st *source.Stats) { st.TLS = &source.TLSStats{NotAfter: noon.Add(time.Hour)} })(s)
			s.Time = ClockFacts{Trusted: true}
		}, AreaSource, Warning, "certificate that devices see ends at", "tls.certificate"},
		"handshakes": {bed7(func(st *source.Stats) {
			*st = source.Stats{Listening: true, TLS: &source.TLSStats{NotAfter: noon.Add(99 * 24 * time.Hour), Refused: 3, Reason: "the device showed no certificate"}}
		}), AreaSource, Stops, "3 TLS handshakes of devices failed, the last: the device showed no certificate", "client_ca"},
		"expired device": {bed7(func(st *source.Stats) {
			st.TLS = &source.TLSStats{NotAfter: noon.Add(99 * 24 * time.Hour), Expired: 1, LastExpired: ago(time.Minute)}
		}), AreaSource, Warning, "1 refused handshake of certificates that have ended", "new certificate"},
		"another bed": {bed7(func(st *source.Stats) {
			st.BedConflicts, st.LastBedConflict, st.BedConflict = 2, ago(time.Minute), "address 10.1.2.3 of bed ICU-7"
		}),
			AreaSource, Warning, "2 messages of a device that is bound to another bed than its connection: address 10.1.2.3", "bindings"},
		"slowed": {bed7(func(st *source.Stats) { st.Slowed, st.LastSlowed = 7, ago(time.Second) }), AreaSource, Warning, "read later (7 times so far); nothing is dropped", "limits.messages"},
		"bed silent": {func(s *Status) {
			s.Sources["icu-7"] = source.Stats{Port: "bed-7", Bed: "ICU-7", Listening: true, Received: 5, Usual: time.Second, LastReceived: ago(3 * time.Minute)}
		}, AreaSource, Warning, "bed ICU-7: silent for 3 min", "cable"},
		"bed never": {func(s *Status) { s.Sources["icu-7"] = source.Stats{Port: "bed-7", Bed: "ICU-7", Listening: true} },
			AreaSource, Warning, "bed ICU-7: no message since", "bindings"},
		"not understood": {bed7(func(st *source.Stats) { st.NotUnderstood = st.Received }), AreaSource, Warning, "none of its 100 messages", "hl7 try"},
	} {
		s := healthy()
		c.change(&s)
		bad := Unwell(s.Examine(noon))
		var got Finding
		for _, f := range bad {
			if f.Area == c.area {
				got = f
			}
		}
		if got.Level != c.level || !strings.Contains(got.Found, c.found) || !strings.Contains(got.Mend, c.mend) || len(bad) > 1 && name != "approval" && name != "no TPM" && name != "disk full" {
			t.Errorf("%s: %+v", name, bad)
		}
	}
	// What is usual is not reported: a monitor that sends once an hour, a gateway without a backlog overnight.
	for name, change := range map[string]func(*Status){
		"hourly":        bed7(func(st *source.Stats) { st.Usual, st.LastReceived = time.Hour, ago(2*time.Hour) }),
		"no rhythm yet": bed7(func(st *source.Stats) { st.Usual, st.LastReceived = 0, ago(time.Hour) }),
		"all bound": func(s *Status) {
			st := s.Sources["bed-7"]
			s.Sources["bed-7"] = source.Stats{Listening: true, Shared: true, Address: st.Address}
			st.Port, st.Bed = "bed-7", "ICU-7"
			s.Sources["icu-7"] = st
		},
		"nothing waits": func(s *Status) { s.Uplink.Lanes[telemetry.LaneVitals].AckedAt = ago(8 * time.Hour) },
		"recovered":     func(s *Status) { s.Intake.LastFailed, s.Intake.LastStored = ago(2*time.Second), ago(time.Second) },
		"a clock that is set right by the hospital": func(s *Status) {
			s.Time = ClockFacts{Trusted: true, Offset: ms(200)}
		},
		"delivered": func(s *Status) { s.Buffer.Disk = s.Buffer.Cap }, // kept until its room is needed
	} {
		s := healthy()
		change(&s)
		if bad := Unwell(s.Examine(noon)); len(bad) != 0 {
			t.Errorf("%s: %+v", name, bad)
		}
	}
}

func ms(n int64) *int64 { return &n }

// By a clock that is two days ahead every certificate looks expired; once the hospital has told the time it does not.
func TestCertificatesAreDatedByTheHospital(t *testing.T) {
	s := healthy()
	s.Time = ClockFacts{Trusted: true, Offset: ms(-48 * 3600 * 1000)}
	for _, f := range s.Examine(noon.Add(48 * time.Hour)) {
		if f.Area == AreaIdentity && f.Level != Well {
			t.Errorf("%+v", f)
		}
	}
}

func cannotStore(full bool, free uint64) func(*Status) {
	return func(s *Status) {
		s.Intake.LastFailed, s.Intake.Full, s.Intake.Failure = ago(time.Second), full, "EIO"
		s.Intake.LastStored = ago(time.Minute)
		s.Disk.Free = free
	}
}

func TestWorst(t *testing.T) {
	w, s := Finding{Level: Warning, Found: "w"}, Finding{Level: Stops, Found: "s"}
	for _, c := range []struct {
		in   []Finding
		want Level
	}{{nil, Well}, {[]Finding{{Level: Well}}, Well}, {[]Finding{w, {Level: Well}}, Warning}, {[]Finding{w, s, w}, Stops}} {
		if got := Worst(c.in); got != c.want {
			t.Errorf("%v: %s", c.in, got)
		}
	}
	if u := Unwell([]Finding{w, {Level: Well}, s}); len(u) != 2 || u[0].Found != "s" || u[1].Found != "w" {
		t.Errorf("%+v", u)
	}
}

func TestRoom(t *testing.T) {
	s := healthy()
	s.LastHour, s.Buffer.Cap, s.Buffer.Disk = 1<<20, 25<<20, 20<<20
	s.Queues[1].Bytes = 1 << 20
	if room, ok := s.Room(noon); !ok || room != 24*time.Hour {
		t.Errorf("%s, %v; want 24 MB at 1 MB an hour", room, ok)
	}
	s.Disk.Free = 5 << 20 // the disk is smaller than the cap: what was delivered and this
	s.Buffer.Disk = 2 << 20
	if room, _ := s.Room(noon); room != 6*time.Hour {
		t.Errorf("%s; want 6 MB at 1 MB an hour", room)
	}
	s.Started = ago(time.Minute)
	if _, ok := s.Room(noon); ok {
		t.Error("a rate after a minute")
	}
}

func TestAgoAndSize(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0.0 s", 400 * time.Millisecond: "0.4 s", 59 * time.Second: "59 s", 90 * time.Second: "1 min 30 s", 12*time.Minute + time.Second: "12 min",
		3 * time.Hour: "3 h", 3*time.Hour + 5*time.Minute: "3 h 5 min", 50 * time.Hour: "2 d 2 h", 700 * time.Hour: "29 d",
	} {
		if got := Ago(d); got != want {
			t.Errorf("%s: %q, want %q", time.Duration(d), got, want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KB", 1 << 30: "1.0 GB", 252 << 30: "252 GB", 5 << 50: "5120 TB"} {
		if got := Size(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestJudgeLockout(t *testing.T) {
	for _, c := range []struct {
		l     tpm.Lockout
		level Level
	}{
		{tpm.Lockout{Most: 32}, Well}, {tpm.Lockout{Failures: 15, Most: 32}, Well}, {tpm.Lockout{Failures: 16, Most: 32}, Warning},
		{tpm.Lockout{Failures: 32, Most: 32, Locked: true}, Warning}, {tpm.Lockout{}, Well},
	} {
		if f := judgeLockout(c.l); f.Level != c.level {
			t.Errorf("%+v: %+v", c.l, f)
		}
	}
}
