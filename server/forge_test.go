package server

import (
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"database/sql"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/recording"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// packet is an MQTT packet of that first byte.
func packet(first byte, body []byte) []byte {
	out := []byte{first}
	for n := len(body); ; {
		b := byte(n & 0x7f)
		if n >>= 7; n == 0 {
			out = append(out, b)
			break
		}
		out = append(out, b|0x80)
	}
	return append(out, body...)
}

func publish(topic string, id byte, payload []byte) []byte {
	return packet(0x32, append(append(append([]byte{0, byte(len(topic))}, topic...), 0, id), payload...))
}

// forged is a session of somebody who has the issuing CA's key, the records key and no TPM: a certificate of the gateway's id, and a reading
// sealed as the gateway would, whose sealing record only that certificate's key signs.
func (r *replay) forged(cert tls.Certificate) []byte {
	r.t.Helper()
	records, err := seal.ParsePrivateKey(r.rec.RecordsKey)
	if err != nil {
		r.t.Fatal(err)
	}
	var epoch telemetry.Epoch
	rand.Read(epoch[:])
	period, err := seal.NewPeriod(records.Public(), epoch, time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	signed, err := seal.SignRecord(period.Record(), cert.PrivateKey.(crypto.Signer))
	if err != nil {
		r.t.Fatal(err)
	}
	now := time.Now().UnixMilli()
	plain, err := telemetry.Encode(telemetry.Batch{Boot: [16]byte{1}, Messages: []telemetry.Message{{
		Source: "bed-1", Digest: sha256.Sum256([]byte("invented")), Received: telemetry.Stamp{Wall: now, Mono: 5}, Type: "ORU^R01^ORU_R01", ControlID: "1",
		Processing: "T", Patient: telemetry.Patient{ID: "CANARY7", Authority: "HOSP&1.2.3&ISO"},
		Observations: []telemetry.Observation{{
			Type: "NM", Code: telemetry.Code{MDC: 147842, ID: "147842", Name: "MDC_ECG_HEART_RATE", Sys: "MDC"}, Value: "66", Status: "R", At: now, Time: "20261122120000+0000",
			Unit: telemetry.Unit{Sent: "264864^MDC_DIM_BEAT_PER_MIN^MDC", UCUM: "/min"}, SubID: "1.5.1.1",
		}},
	}}})
	if err != nil {
		r.t.Fatal(err)
	}
	frame, err := period.Seal(seal.Header{Lane: telemetry.LaneVitals, Wall: now, Mono: 5, Count: 1}, plain)
	if err != nil {
		r.t.Fatal(err)
	}
	connect := packet(0x10, append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(r.rec.Gateway))}, r.rec.Gateway...))
	return append(append(connect, publish(telemetry.KeyTopic(r.rec.Gateway), 1, signed)...), publish(telemetry.UpTopic(r.rec.Gateway, telemetry.LaneVitals), 2, frame)...)
}

// TestACertificateAloneForgesNothing: whoever can make certificates and seal batches, with stolen issuing and records keys or as ingest
// itself, but has no key that the registry knows as the gateway's, has nothing opened. The log names the certificate, and the batch waits for its key until it is dead.
func TestACertificateAloneForgesNothing(t *testing.T) {
	rec, err := recording.Load(recordings(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	r := newReplay(t, rec, nil)
	r.register()
	cert := r.identity()
	conn, err := tls.Dial("tcp", r.listeners.gateways.Addr().String(), r.client(&cert, "mqtt"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write(r.forged(cert)); err != nil {
		t.Fatal(err)
	}
	answers := make([]byte, 4+4+4) // ingest cannot tell: CONNACK and two PUBACKs
	for n := 0; n < len(answers); {
		m, err := conn.Read(answers[n:])
		if err != nil {
			t.Fatalf("after %x: %v", answers[:n], err)
		}
		n += m
	}
	opened := r.events(audit.SessionOpened)
	if len(opened) != 1 || opened[0].Actor.Serial != cert.Leaf.SerialNumber.Text(16) {
		t.Errorf("%+v", opened)
	}
	// The genuine gateway's readings are there afterwards, and they alone.
	for _, s := range rec.Sessions {
		r.session(s)
	}
	r.expect(r.reader())
	if st, err := r.records.Stats(t.Context()); err != nil || st.Pending != 1 {
		t.Errorf("%+v, %v; expected the forged batch to wait for a key that never comes", st, err)
	}
}

// TestTheLogDoesNotNeedTheDatabase: whoever may write the database takes readings and gateways away, and the log still proves each publish.
func TestTheLogDoesNotNeedTheDatabase(t *testing.T) {
	rec, err := recording.Load(recordings(t)[0])
	if err != nil {
		t.Fatal(err)
	}
	r := newReplay(t, rec, nil)
	r.register()
	published := 0
	for _, s := range rec.Sessions {
		r.session(s)
		for _, p := range s.Up {
			if p[0]>>4 == 3 && !strings.HasSuffix(topicOf(p), "/key") {
				published++
			}
		}
	}
	client := r.reader()
	r.expect(client)
	if err := r.db.Write(t.Context(), func(tx *sql.Tx) error {
		for _, table := range []string{"readings", "gateway_certificates", "gateway_keys"} {
			if _, err := tx.Exec("DELETE FROM " + table); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if left := r.readings(client); len(left) > 2 { // the waveforms
		t.Errorf("%d readings are left; expected the database to be believed", len(left))
	}
	var report audit.Report
	for end := time.Now().Add(20 * time.Second); report.Rows < uint64(published) && time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if report, err = audit.Verify(logDir(r.dir), r.keys.LogVerifier); err != nil {
			t.Fatal(err)
		}
	}
	if report.Rows != uint64(published) {
		t.Errorf("%d publishes are proven, expected %d", report.Rows, published)
	}
}
