package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	mrand "math/rand/v2"
	"strconv"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/journal"
	"wardlink/telemetry"
	"wardlink/telemetry/codes"
	"wardlink/telemetry/seal"
)

const (
	trustDomain = "ward.example"
	authority   = "HOSP&2.25.77&ISO"
	system      = "urn:oid:2.25.77"
)

// numerics are what a bedside monitor says each second, as it says them, with a resting patient's values.
var numerics = []struct {
	mdc    uint32
	unit   string // OBX-6 as sent
	ucum   string
	middle float64
	spread float64
	digits int
}{
	{147842, "264864^MDC_DIM_BEAT_PER_MIN^MDC", "/min", 78, 4, 0},
	{150456, "262688^MDC_DIM_PERCENT^MDC", "%", 97, 1, 0},
	{149530, "264864^MDC_DIM_BEAT_PER_MIN^MDC", "/min", 78, 4, 0},
	{150448, "262688^MDC_DIM_PERCENT^MDC", "%", 4, 0.6, 1},
	{151562, "264928^MDC_DIM_RESP_PER_MIN^MDC", "/min", 15, 2, 0},
	{150037, "266016^MDC_DIM_MMHG^MDC", "mm[Hg]", 122, 5, 0},
	{150038, "266016^MDC_DIM_MMHG^MDC", "mm[Hg]", 76, 3, 0},
	{150039, "266016^MDC_DIM_MMHG^MDC", "mm[Hg]", 92, 3, 0},
	{150344, "268192^MDC_DIM_DEGC^MDC", "Cel", 36.9, 0.1, 1},
	{150087, "266016^MDC_DIM_MMHG^MDC", "mm[Hg]", 6, 1, 0},
}

// monitor is a gateway with one bedside monitor, from the device to the sealed batch.
type monitor struct {
	gateway, patient, device string
	key                      *ecdsa.PrivateKey
	public                   []byte
	epoch                    telemetry.Epoch
	period                   *seal.Period
	signed                   []byte // the sealing record
	boot                     [16]byte
	number, said             uint64
	noise                    *mrand.Rand
}

func newMonitor(n int, to seal.PublicKey) (*monitor, error) {
	m := &monitor{
		gateway: fmt.Sprintf("gw-%06d", n), patient: fmt.Sprintf("PAT%06d", n), device: fmt.Sprintf("0012F8%010X", n),
		noise: mrand.New(mrand.NewPCG(1, uint64(n))),
	}
	var err error
	if m.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if m.public, err = x509.MarshalPKIXPublicKey(&m.key.PublicKey); err != nil {
		return nil, err
	}
	_, _ = rand.Read(m.epoch[:])
	_, _ = rand.Read(m.boot[:])
	if m.period, err = seal.NewPeriod(to, m.epoch, time.Now()); err != nil {
		return nil, err
	}
	m.signed, err = seal.SignRecord(m.period.Record(), m.key)
	return m, err
}

// say is the monitor's next message, as telemetry/hl7 makes it of an ORU^R01.
func (m *monitor) say(at time.Time) telemetry.Message {
	ms, sent := at.UnixMilli(), at.UTC().Format("20060102150405.000-0700")
	m.said++
	msg := telemetry.Message{
		Source: "monitor-1", Digest: sha256.Sum256(fmt.Appendf(nil, "%s %d", m.gateway, m.said)),
		Received: telemetry.Stamp{Wall: ms + 30, Mono: int64(m.said) * 1000},
		Type:     "ORU^R01^ORU_R01", ControlID: fmt.Sprintf("MSG%08d", m.said), Sender: "MONITOR^" + m.device + "^EUI-64", Processing: "P", SentAt: sent,
		Patient: telemetry.Patient{ID: m.patient, Authority: authority, Location: "ICU-3^^BED-" + m.gateway[3:]},
	}
	for i, n := range numerics {
		item, _ := codes.For(n.mdc, n.ucum)
		msg.Observations = append(msg.Observations, telemetry.Observation{
			Index: uint32(i), Type: "NM", Code: telemetry.Code{MDC: n.mdc, ID: strconv.Itoa(int(n.mdc)), Name: item.Ref, Sys: "MDC"},
			Value: strconv.FormatFloat(n.middle+n.spread*m.noise.NormFloat64(), 'f', n.digits, 64), Unit: telemetry.Unit{Sent: n.unit, UCUM: n.ucum},
			SubID: fmt.Sprintf("1.1.%d.1", i+1), Status: "R", Time: sent, At: ms, Device: m.device,
		})
	}
	return msg
}

// batch seals the next messages, the last of them at an instant.
func (m *monitor) batch(last time.Time, messages int, spacing time.Duration) ([]byte, error) {
	b := telemetry.Batch{Boot: m.boot}
	for i := range messages {
		b.Messages = append(b.Messages, m.say(last.Add(-time.Duration(messages-1-i)*spacing)))
	}
	plain, err := telemetry.Encode(b)
	if err != nil {
		return nil, err
	}
	frame, err := m.period.Seal(seal.Header{Lane: telemetry.LaneVitals, Number: m.number, Wall: last.UnixMilli(), Mono: int64(m.said) * 1000}, plain)
	m.number++
	return frame, err
}

// bring is the journal's entry of the sealing record.
func (m *monitor) bring(id audit.EventID) (journal.Entry, error) {
	head, err := audit.EncodeEvent(audit.Event{
		ID: id, Type: audit.SealingBrought, Time: time.Now().UnixMilli(), Outcome: audit.Success,
		Actor: audit.Actor{ID: spiffe.ID{TrustDomain: trustDomain, Kind: spiffe.Gateway, Name: m.gateway}.String()},
	})
	return journal.Entry{ID: id, Kind: journal.KindSealing, Head: head, Blob: m.signed}, err
}

// publish is the journal's entry of a batch, as ingest makes it.
func publish(id audit.EventID, gateway string, frame []byte) (journal.Entry, error) {
	h, err := seal.CheckFrame(frame)
	if err != nil {
		return journal.Entry{}, err
	}
	head, err := audit.EncodeRow(audit.Row{
		ID: id, Session: id, Gateway: gateway, Epoch: h.Epoch, Lane: uint8(h.Lane), Number: h.Number, Frame: seal.FrameHash(frame),
		Received: time.Now().UnixMilli(), Serial: "5f3b6c0f2a9d4e118c7b6a5d4e3f2a1b", Peer: "10.20.30.40:45678", Verdict: "accepted",
	})
	return journal.Entry{ID: id, Kind: journal.KindPublish, Head: head, Blob: frame}, err
}
