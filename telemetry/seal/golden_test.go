package seal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/fips140"
	"crypto/hpke"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wardlink/telemetry"
)

var update = flag.Bool("update", false, "write testdata/golden.json anew; only for a new version of the format")

const goldenFile = "testdata/golden.json"

// golden is one example of everything that is sealed and signed, kept so that the format cannot drift in silence and so that
// another implementation has something to test against. The keys are for this purpose only.
type golden struct {
	RecordsPrivateKey hexBytes `json:"records_private_key"`
	RecordsPublicKey  hexBytes `json:"records_public_key"`
	RecordsKeyID      hexBytes `json:"records_key_id"`
	DevicePrivateKey  hexBytes `json:"device_private_key"` // P-256 scalar
	DeviceSPKISHA256  hexBytes `json:"device_spki_sha256"`
	SealingRecord     hexBytes `json:"sealing_record"`
	SignedDigest      hexBytes `json:"signed_digest"` // what the device key signs
	Signed            hexBytes `json:"signed_sealing_record"`
	HPKEInfo          hexBytes `json:"hpke_info"`
	BatchKey          hexBytes `json:"batch_key"`
	Plaintext         hexBytes `json:"plaintext"`
	Frame             hexBytes `json:"frame"`
}

type hexBytes []byte

func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }

func (b *hexBytes) UnmarshalText(text []byte) (err error) {
	*b, err = hex.DecodeString(string(text))
	return err
}

func readGolden(t testing.TB) (g golden) {
	t.Helper()
	data, err := os.ReadFile(goldenFile)
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&g); err != nil {
		t.Fatal(err)
	}
	return g
}

// goldenHeader and goldenBatch are what the golden frame says.
var goldenHeader = Header{
	Lane: telemetry.LaneVitals, Epoch: telemetry.Epoch([]byte("epoch-0123456789")), Number: 42, Wall: 1795357800250, Mono: 86400250, Count: 3,
}

func goldenBatch() telemetry.Batch {
	message := func(n byte, control, sent string, wall int64, os ...telemetry.Observation) telemetry.Message {
		for i := range os {
			os[i].Time, os[i].At, os[i].Status, os[i].Device = sent, wall-100, "F", "0003B1FFFE000001"
		}
		return telemetry.Message{
			Source: "icu-bed-12", Digest: [32]byte(bytes.Repeat([]byte{n}, 32)), Received: telemetry.Stamp{Wall: wall, Mono: wall - 1795271400000},
			Type: "ORU^R01^ORU_R01", ControlID: control, Sender: "MONITOR", Processing: "T", SentAt: sent,
			Patient:      telemetry.Patient{ID: "4711", Authority: "HOSP", Location: "ICU^12", Visit: "V9"},
			Observations: os,
		}
	}
	rate := telemetry.Observation{
		Index: 1, Type: "NM", Code: telemetry.Code{MDC: 147842, ID: "147842", Name: "MDC_ECG_HEART_RATE", Sys: "MDC"}, SubID: "1.1.1.1",
		Unit: telemetry.Unit{Sent: "264864^MDC_DIM_BEAT_PER_MIN^MDC", UCUM: "{beat}/min"}, Limits: "50-120", Value: "72",
	}
	rate2, other := rate, telemetry.Observation{
		Index: 4, Type: "NM", Code: telemetry.Code{ID: "X1", Name: "HOUSE", Sys: "99ICU"}, Unit: telemetry.Unit{Sent: "furlong"},
		Marks: telemetry.MarkNoReading | telemetry.MarkUnknownCode | telemetry.MarkUnknownUnit, Flags: "INV~NAV",
	}
	rate2.Value = "73.0"
	b := telemetry.Batch{Boot: [16]byte([]byte("boot-id-89abcdef")), Messages: []telemetry.Message{
		message(0xa1, "WL1", "20261122143000+0000", 1795357800100, rate),
		message(0xa2, "WL2", "20261122143000.1+0000", 1795357800200, rate2, other),
	}}
	b.Messages[1].Copy = 1
	b.Messages[1].Raw = []byte("MSH|^~\\&|MONITOR\r")
	b.Messages[1].Problems = []telemetry.Problem{{Where: "OBX[4]-6", Reason: "unit is not known"}}
	return b
}

func goldenDevice(t testing.TB, scalar []byte) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestGolden(t *testing.T) {
	if *update {
		writeGolden(t)
	}
	g := readGolden(t)
	priv, err := ParsePrivateKey([]byte(g.RecordsPrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	id := priv.Public().ID()
	same(t, "records public key", priv.Public().Bytes(), g.RecordsPublicKey)
	same(t, "records key id", id[:], g.RecordsKeyID)

	signed, err := ParseSigned(g.Signed)
	if err != nil {
		t.Fatal(err)
	}
	device := goldenDevice(t, g.DevicePrivateKey)
	same(t, "device key's hash", signed.SPKI[:], g.DeviceSPKISHA256)
	same(t, "what is signed", signedDigest(g.SealingRecord), g.SignedDigest)
	record, err := signed.Verify(&device.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := encodeRecord(record)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "sealing record", encoded, g.SealingRecord)
	same(t, "HPKE info", info(record.ID, record.Epoch), g.HPKEInfo)
	same(t, "batch key", exportedKey(t, priv, record), g.BatchKey)

	opener, err := NewOpener(priv, record)
	if err != nil {
		t.Fatal(err)
	}
	header, plain, err := opener.Open(g.Frame)
	if err != nil {
		t.Fatal(err)
	}
	want := goldenHeader
	want.Sealing, want.Key = record.ID, id
	if header != want {
		t.Errorf("header %+v; expected %+v", header, want)
	}
	same(t, "plaintext", plain, g.Plaintext)
	batch, err := telemetry.Decode(plain)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(goldenBatch(), batch); d != "" {
		t.Errorf("batch:\n%s", d)
	}
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %x; the golden file has %x", what, got, want)
	}
}

// exportedKey derives the batch key without this package's own derivation.
func exportedKey(t *testing.T, priv PrivateKey, record Record) []byte {
	t.Helper()
	context := append([]byte("wardlink/sealing-period/1\x00"), record.ID[:]...)
	context = append(context, record.Epoch[:]...)
	r, err := hpke.NewRecipient(record.Encapsulation, priv.key, hpke.HKDFSHA256(), hpke.ExportOnly(), context)
	if err != nil {
		t.Fatal(err)
	}
	key, err := r.Export("wardlink/batch-key/1", 32)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func writeGolden(t *testing.T) {
	t.Helper()
	g := golden{
		RecordsPrivateKey: []byte("wardlink example records key, 32"),
		DevicePrivateKey:  []byte("wardlink example device key: 32b"),
	}
	priv, err := ParsePrivateKey([]byte(g.RecordsPrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	h := open(t, priv, goldenHeader.Epoch)
	id := priv.Public().ID()
	g.RecordsPublicKey, g.RecordsKeyID, g.SealingRecord = priv.Public().Bytes(), id[:], h.period.Record()
	device := goldenDevice(t, g.DevicePrivateKey)
	if g.Signed, err = SignRecord(g.SealingRecord, device); err != nil {
		t.Fatal(err)
	}
	spki, err := hashSPKI(&device.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	g.DeviceSPKISHA256, g.SignedDigest = spki[:], signedDigest(g.SealingRecord)
	g.HPKEInfo, g.BatchKey = info(h.record.ID, h.record.Epoch), exportedKey(t, priv, h.record)
	if g.Plaintext, err = telemetry.Encode(goldenBatch()); err != nil {
		t.Fatal(err)
	}
	g.Frame = h.seal(t, goldenHeader, string(g.Plaintext))
	data, err := json.MarshalIndent(g, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(goldenFile, append(data, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// What the product seals with is approved: everything here also runs where Go's FIPS 140-3 module refuses all else.
func TestUnderFIPS(t *testing.T) {
	const child = "WARDLINK_SEAL_FIPS_CHILD"
	if os.Getenv(child) != "" {
		if !fips140.Enforced() {
			t.Fatal("GODEBUG=fips140=only has no effect in this build")
		}
		return
	}
	tests := []string{"TestUnderFIPS", "TestGolden", "TestSealOpen", "TestSignVerify", "TestKeys", "TestOpenRefusesOthers"}
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^("+strings.Join(tests, "|")+")$")
	cmd.Env = append(os.Environ(), "GODEBUG=fips140=only", child+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("under GODEBUG=fips140=only: %v\n%s", err, out)
	}
	for _, name := range tests {
		if !strings.Contains(string(out), "--- PASS: "+name+" ") {
			t.Errorf("under GODEBUG=fips140=only, %s did not run:\n%s", name, out)
		}
	}
}
