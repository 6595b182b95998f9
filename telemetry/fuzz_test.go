package telemetry

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func FuzzDecode(f *testing.F) {
	for seed := range uint64(4) {
		b := newRandom(seed).batch()
		f.Add(mustEncode(f, b))
		plain, err := encoding.Marshal(newWireBatch(&b))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(append([]byte{codecPlain}, plain...))
	}
	f.Add(mustEncode(f, vitals(3, 2)))
	f.Add(mustEncode(f, ecg(1, 2, 2, 20)))
	f.Add(mustEncode(f, configReport()))
	f.Add(mustEncode(f, boundReport()))
	report := exampleReport()
	f.Add(mustEncode(f, report))
	plain, err := encoding.Marshal(newWireReportBatch(&report))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append([]byte{codecPlain}, plain...))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Encode(b)
		if errors.Is(err, ErrTooLarge) { // another encoder may group rows more tightly than ours
			return
		}
		if err != nil {
			t.Fatalf("decoded, but does not encode: %v", err)
		}
		got, err := Decode(again)
		if err != nil {
			t.Fatalf("encoded, but does not decode: %v", err)
		}
		if d := cmp.Diff(b, got); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzParseUp(f *testing.F) {
	for _, topic := range append(badTopics, UpTopic("gw-1", LaneAlarm), KeyTopic("gw-1")) {
		f.Add(topic)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		gateway, lane, key, err := ParseUp(topic)
		if err != nil {
			return
		}
		if key && topic != KeyTopic(gateway) || !key && topic != UpTopic(gateway, lane) {
			t.Errorf("%q is no topic of ours", topic)
		}
	})
}

func FuzzParseDown(f *testing.F) {
	for _, topic := range append(badTopics, DownTopic("gw-1", DocTime)) {
		f.Add(topic)
	}
	f.Fuzz(func(t *testing.T, topic string) {
		if gateway, doc, err := ParseDown(topic); err == nil && topic != DownTopic(gateway, doc) {
			t.Errorf("%q is no topic of ours", topic)
		}
	})
}

func FuzzParseEpoch(f *testing.F) {
	f.Add("000102030405060708090a0b0c0d0e0f")
	f.Add("AB")
	f.Fuzz(func(t *testing.T, s string) {
		if e, err := ParseEpoch(s); err == nil {
			if again, err := ParseEpoch(e.String()); err != nil || again != e {
				t.Errorf("%q: %v", s, err)
			}
		}
	})
}

func FuzzDecodeRefusal(f *testing.F) {
	data, err := EncodeRefusal(Refusal{Epoch: Epoch{1}, Lane: LaneVitals, Number: 9, Reason: "no sealing record"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, err := DecodeRefusal(data); err == nil {
			if again, err := EncodeRefusal(r); err != nil || string(again) != string(data) {
				t.Errorf("accepted %x, encodes as %x (%v)", data, again, err)
			}
		}
	})
}
