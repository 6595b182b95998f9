package records_test

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
	"wardlink/server/records"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
)

// understood is what an agent makes of an HL7 message.
func understood(t *testing.T, lines ...string) telemetry.Message {
	t.Helper()
	m, err := hl7.Understand([]byte(strings.Join(lines, "\r")+"\r"), hl7.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m.Received = telemetry.Stamp{Wall: start, Mono: 5}
	return m
}

// A device may say anything, and its monitor was told that it is kept: bytes that PostgreSQL takes in no text, texts that are longer than its
// indexes take. All of it is stored, found, and given back as the agent sent it.
func TestHostileTextsAreKept(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	noise := make([]byte, 10_000) // which cannot be compressed
	rand.NewChaCha8([32]byte{}).Read(noise)
	long := hex.EncodeToString(noise) + "\x00end"
	const head = "MSH|^~\\&|MON\x00ITOR|ICU|||20260528||ORU^R01^ORU_R01|"
	ms := []telemetry.Message{
		understood(t, head+"1\x00|P|2.6", "PID|||12\x0034^^^HOSP&2.25.77&ISO||D\x00E^J\xffN", "PV1||I|ICU\x00^7", "OBR|1",
			"OBX|1|NM|147842^MDC_ECG\x00_HEART_RATE^MDC|1.\x00.1|7\x000|264864^bp\xc3m^MDC||||\x00|R", "OBX|2|ST|odd\x00code^x\xfey^99\x00LOC|2|va\xfflue\x00||||||F"),
		understood(t, head+"2|P|2.6", "PID|||\ufdd000^^^HOSP&2.25.77&ISO", "OBX|1|ST|\ufdd000^\ufdd0^L||\ufdd000||||||F"),
		understood(t, head+"3|P|2.6", "PID|||"+long+"^^^HOSP&2.25.77&ISO", "OBX|1|ST|"+long+"^n^"+long+"||a||||||F"),
		understood(t, head+"4|P|2.6", "PID|||"+long+"^^^HOSP&2.25.77&ISO", "OBX|1|ST|"+long+"2^n^"+long+"||b||||||F"),
	}
	for i := range ms {
		ms[i].Source = []string{"bed\x001", "bed-2", long, long}[i]
		ms[i].Digest[0] = byte(i)
		g.publish("gw-1", g.sealBatch(ms[i]))
	}
	f.until("stored", func(s records.Stats) bool { return s.Batches == int64(len(ms)) && s.Dead == 0 && s.Pending == 0 })
	s := f.store()
	for i, m := range ms {
		if m.Patient.ID == "" || len(m.Observations) == 0 {
			t.Fatalf("message %d is not understood: %+v", i, m)
		}
		system := records.AuthoritySystem(m.Patient.Authority)
		for name, asked := range map[string]*string{"of the system": &system, "of any system": nil} {
			found, err := s.Patients(f.ctx, asked, m.Patient.ID, 10)
			if err != nil || len(found) != 1 || found[0].Value != m.Patient.ID {
				t.Errorf("message %d: patients %s: %.200q, %v", i, name, found, err)
			}
		}
		for _, o := range m.Observations {
			page, err := s.Search(f.ctx, records.Query{
				Patients: []string{s.PatientID(system, m.Patient.ID)}, Limit: 10,
				Match: func(one records.Series) bool { return one.Code.ID == o.Code.ID && one.Code.Sys == o.Code.Sys },
			})
			if err != nil || len(page.Observations) != 1 {
				t.Errorf("message %d: %d found by its code, %v", i, len(page.Observations), err)
				continue
			}
			got := page.Observations[0]
			if got.Value != o.Value || got.Code != o.Code || got.Unit != o.Unit || got.SubID != o.SubID || got.Flags != o.Flags || got.Location != m.Patient.Location ||
				got.Source != m.Source || got.Patient.Value != m.Patient.ID {
				t.Errorf("message %d: %.900s\nis kept as\n%.900s", i, fmt.Sprintf("%+q", fmt.Sprint(o)), fmt.Sprintf("%+q", fmt.Sprint(got)))
			}
			if again, err := s.Observation(f.ctx, got.ID); err != nil || again.Code != o.Code || again.Source != m.Source {
				t.Errorf("message %d by its id: %v", i, err)
			}
		}
		if gateways, err := s.GatewaysOf(f.ctx, m.Source); err != nil || len(gateways) != 1 {
			t.Errorf("message %d: gateways with its source: %v %v", i, gateways, err)
		}
	}
	account, err := s.Account(f.ctx, "gw-1")
	if err != nil || len(account.Sources) != 3 {
		t.Fatalf("%d sources, %v", len(account.Sources), err)
	}
	for _, one := range account.Sources {
		if one.ID != "bed\x001" && one.ID != "bed-2" && one.ID != long {
			t.Errorf("a source is called %.100q", one.ID)
		}
		if found, err := s.Visible(f.ctx, one); err != nil || !found {
			t.Errorf("source %.20q: visible: %v, %v", one.ID, found, err)
		}
	}
}

// PostgreSQL that is killed, away for a while and back makes no batch dead, and nothing is stored twice.
func TestLostPostgresIsNotTheBatchesFault(t *testing.T) {
	f := setup(t)
	server := pgtest.Own(t, pgserver.Config{})
	pgtest.Create(t, server, "ward", "template0")
	f.path = server.URL("ward", pgserver.Superuser)
	if err := sqldb.Create(f.path, migrations()...); err != nil {
		t.Fatal(err)
	}
	f.db = sqldbtest.Open(t, f.path, migrations()...)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	const batches = 400
	for n := range batches {
		g.publish("gw-1", g.sealBatch(message("p1", n, "71", "72", "73")))
	}
	kills := make(chan error, 1)
	go func() {
		var err error
		for range 3 {
			time.Sleep(150 * time.Millisecond) // into whatever it is doing
			if err = server.Kill(); err != nil {
				break
			}
			time.Sleep(700 * time.Millisecond)
			if err = server.Start(); err != nil {
				break
			}
		}
		kills <- err
	}()
	done := false
	f.during("stored after all", func() bool {
		select {
		case err := <-kills:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
		var stored int64
		err := f.db.QueryRow(f.ctx, "SELECT COUNT(*) FROM batches WHERE state = 2").Scan(&stored)
		return done && err == nil && stored == batches
	})
	r := f.open()
	if s, err := r.Stats(f.ctx); err != nil || s.Batches != batches || s.Observations != 3*batches || s.Dead != 0 || s.Pending != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	if n := f.count("SELECT CAST(COALESCE(SUM(count), 0) AS BIGINT) FROM readings"); n != 3*batches {
		t.Errorf("%d observations", n)
	}
}
