package telemetry_test

import (
	"bytes"
	"compress/flate"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// examples are the hex blocks of WIRE.md by name.
func examples(t *testing.T) map[string][]byte {
	t.Helper()
	page, err := os.ReadFile("WIRE.md")
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string][]byte)
	for _, m := range regexp.MustCompile("(?s)```hex ([a-z-]+)\n(.*?)```").FindAllSubmatch(page, -1) {
		data, err := hex.DecodeString(strings.Join(strings.Fields(string(m[2])), ""))
		if err != nil {
			t.Fatalf("WIRE.md, %s: %v", m[1], err)
		}
		found[string(m[1])] = data
	}
	for _, name := range []string{"header", "frame", "sealing-record", "signed-sealing-record", "plaintext", "batch", "waveform-batch", "refusal", "resend", "report-batch", "hello", "hint"} {
		if found[name] == nil {
			t.Fatalf("WIRE.md has no example of a %s", name)
		}
	}
	return found
}

func goldenKey(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("seal/testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden map[string]string
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	key, err := hex.DecodeString(golden[name])
	if err != nil || len(key) == 0 {
		t.Fatalf("golden.json: %s: %v", name, err)
	}
	return key
}

// The examples of WIRE.md are one story: the record opens the frame, the frame holds the plaintext, the plaintext is the batch.
func TestExamplesOfWire(t *testing.T) {
	ex := examples(t)
	device, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), goldenKey(t, "device_private_key"))
	if err != nil {
		t.Fatal(err)
	}
	records, err := seal.ParsePrivateKey(goldenKey(t, "records_private_key"))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := seal.ParseSigned(ex["signed-sealing-record"])
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "record within the signed one", signed.Record, ex["sealing-record"])
	record, err := signed.Verify(&device.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	opener, err := seal.NewOpener(records, record)
	if err != nil {
		t.Fatal(err)
	}
	header, plaintext, err := opener.Open(ex["frame"])
	if err != nil {
		t.Fatal(err)
	}
	if header.Lane != telemetry.LaneVitals || header.Number != 42 || header.Wall != 1795357800250 || header.Mono != 86400250 || header.Count != 3 {
		t.Errorf("header %+v is not what WIRE.md says of it", header)
	}
	equal(t, "header", ex["frame"][:77], ex["header"])
	equal(t, "plaintext", plaintext, ex["plaintext"])
	batch, err := telemetry.Decode(plaintext)
	if err != nil {
		t.Fatal(err)
	}
	plainBatch, err := telemetry.Decode(append([]byte{0}, ex["batch"]...))
	if err != nil {
		t.Fatal(err)
	}
	if got := plainBatch.Messages[1].Observations[0].Value; got != "73.0" || len(batch.Messages) != 2 {
		t.Errorf("the batch reads as value %q and %d messages", got, len(batch.Messages))
	}
	again, err := telemetry.Encode(plainBatch)
	if err != nil {
		t.Fatal(err)
	}
	fromFrame, err := telemetry.Encode(batch)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "batch", again, fromFrame)
}

func TestWaveformsOfWire(t *testing.T) {
	ex := examples(t)
	waves, err := telemetry.Decode(append([]byte{0}, ex["waveform-batch"]...))
	if err != nil {
		t.Fatal(err)
	}
	wave := waves.Messages[0].Waveforms[0]
	if want := []int32{12, 13, telemetry.MissingSample, -5, -105}; !slices.Equal(wave.Samples, want) || wave.Period != "2" || wave.Factor != "0.001" {
		t.Errorf("the waveform reads as %+v", wave)
	}
	again, err := telemetry.Encode(waves)
	if err != nil {
		t.Fatal(err)
	}
	unpacked, err := io.ReadAll(flate.NewReader(bytes.NewReader(again[1:])))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "batch of waveforms", unpacked, ex["waveform-batch"])
}

func TestDocumentsOfWire(t *testing.T) {
	ex := examples(t)
	header, err := seal.CheckFrame(ex["frame"])
	if err != nil {
		t.Fatal(err)
	}
	hello, err := telemetry.DecodeWelcome(ex["hello"])
	if err != nil || hello != (telemetry.Welcome{Version: 2, Server: telemetry.Versions{Oldest: 1, Newest: 2}, Build: "0.2.0"}) {
		t.Errorf("hello: %+v, %v", hello, err)
	}
	refusal, err := telemetry.DecodeRefusal(ex["refusal"])
	if err != nil || refusal.Epoch != header.Epoch || refusal.Lane != header.Lane || refusal.Number != header.Number {
		t.Errorf("refusal %+v, %v", refusal, err)
	}
	hint, err := telemetry.DecodeHint(ex["hint"])
	if err != nil || hint.After != 30*time.Second {
		t.Errorf("hint: %+v, %v", hint, err)
	}
	resend, err := telemetry.DecodeResend(ex["resend"])
	if want := []telemetry.Span{{First: 0, Last: 41}, {First: 43, Last: 96}}; err != nil || string(resend.Generation[:]) != "restore-01234567" ||
		len(resend.Held) != 1 || resend.Held[0].Epoch != header.Epoch || !slices.Equal(resend.Held[0].Runs, want) {
		t.Errorf("resend %+v, %v", resend, err)
	}
	page, err := os.ReadFile("WIRE.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(page), `"`+refusal.Reason+`"`) {
		t.Errorf("WIRE.md does not quote its example's reason %q", refusal.Reason)
	}
}

func equal(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("%s: %x; WIRE.md has %x", what, got, want)
	}
}

// rule is one map of wire.cddl.
type rule map[uint64]struct {
	kind     string // what stands after the colon
	optional bool
}

var (
	ruleRE  = regexp.MustCompile(`(?ms)^([a-z-]+) = \{[^\n]*\n(.*?)^\}`)
	entryRE = regexp.MustCompile(`(?m)^  (\? )?([0-9]+): ([^,;\n]+)`)
	tableRE = regexp.MustCompile(`^(?:\[\+ )?([a-z-]+)\]?$`)
)

func rules(t *testing.T) map[string]rule {
	t.Helper()
	text, err := os.ReadFile("wire.cddl")
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]rule)
	for _, m := range ruleRE.FindAllStringSubmatch(string(text), -1) {
		r := make(rule)
		for _, e := range entryRE.FindAllStringSubmatch(m[2], -1) {
			var key uint64
			if err := json.Unmarshal([]byte(e[2]), &key); err != nil {
				t.Fatal(err)
			}
			entry := r[key]
			if entry.kind != "" {
				t.Errorf("wire.cddl: %s has key %d twice", m[1], key)
			}
			entry.kind, entry.optional = strings.TrimSpace(e[3]), e[1] != ""
			r[key] = entry
		}
		all[m[1]] = r
	}
	return all
}

// The examples hold no key that wire.cddl does not name, and none is missing: read by a decoder that knows nothing of our types.
func TestExamplesFollowTheCDDL(t *testing.T) {
	all, ex := rules(t), examples(t)
	for _, name := range []string{"signed-sealing-record", "sealing-record", "batch", "waveform-batch", "report-batch", "refusal"} {
		var value any
		if err := cbor.Unmarshal(ex[name], &value); err != nil {
			t.Fatal(err)
		}
		used := make(map[string]bool)
		rule := strings.TrimPrefix(name, "waveform-")
		follow(t, all, rule, value, used)
		if name == "waveform-batch" && !used["waveforms"] {
			t.Error("the batch of waveforms shows none")
		}
		if name == "report-batch" && len(used) != 8 {
			t.Errorf("the report shows only %v of the eight kinds of map that a gateway without a trusted time sends", used)
		}
		if name == "batch" && len(used) != 7 {
			t.Errorf("the batch shows only %v of the seven kinds of map in it", used)
		}
	}
}

func follow(t *testing.T, all map[string]rule, name string, value any, used map[string]bool) {
	t.Helper()
	if items, ok := value.([]any); ok {
		for _, item := range items {
			follow(t, all, name, item, used)
		}
		return
	}
	used[name] = true
	pairs, ok := value.(map[any]any)
	if !ok {
		t.Errorf("%s is %T; expected a map", name, value)
		return
	}
	for key, v := range pairs {
		number, _ := key.(uint64)
		entry := all[name][number]
		if entry.kind == "" {
			t.Errorf("%s: key %v is not in wire.cddl", name, key)
		}
		if m := tableRE.FindStringSubmatch(entry.kind); m != nil && all[m[1]] != nil {
			follow(t, all, m[1], v, used)
		}
	}
	for key, entry := range all[name] {
		if _, ok := pairs[key]; !ok && !entry.optional {
			t.Errorf("%s: key %d is missing, and not optional in wire.cddl", name, key)
		}
	}
}
