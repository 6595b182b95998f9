package seal

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"strings"
	"testing"
)

func deviceKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestSignVerify(t *testing.T) {
	h := newHospital(t)
	key := deviceKey(t, elliptic.P256())
	data, err := SignRecord(h.period.Record(), key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ParseSigned(data)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.Record, h.period.Record()) {
		t.Error("the signed record is another")
	}
	if rec, err := s.Unverified(); err != nil || rec.ID != h.period.ID() {
		t.Errorf("Unverified: %x, %v", rec.ID, err)
	}
	rec, err := s.Verify(&key.PublicKey)
	if err != nil || rec.ID != h.period.ID() || rec.Epoch != epoch || rec.Key != h.priv.Public().ID() || rec.Started != start.UnixMilli() {
		t.Errorf("Verify: %+v, %v", rec, err)
	}
}

func TestVerifyRefuses(t *testing.T) {
	h := newHospital(t)
	key, other := deviceKey(t, elliptic.P256()), deviceKey(t, elliptic.P256())
	data, err := SignRecord(h.period.Record(), key)
	if err != nil {
		t.Fatal(err)
	}
	parse := func() Signed {
		s, err := ParseSigned(data)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	sign := func(label string, record []byte) []byte {
		digest := sha256.Sum256(append([]byte(label), record...))
		signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		return signature
	}
	otherSPKI, err := hashSPKI(&other.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		pub    *ecdsa.PublicKey
		change func(s *Signed)
	}{
		"another key":                  {&other.PublicKey, func(*Signed) {}},
		"another key, hash made right": {&other.PublicKey, func(s *Signed) { s.SPKI = otherSPKI }},
		"another key's hash":           {&key.PublicKey, func(s *Signed) { s.SPKI = otherSPKI }},
		"another purpose":              {&key.PublicKey, func(s *Signed) { s.Signature = sign("wardlink/other/1\x00", s.Record) }},
		"no purpose":                   {&key.PublicKey, func(s *Signed) { s.Signature = sign("", s.Record) }},
		"another record":               {&key.PublicKey, func(s *Signed) { s.Record = newHospital(t).period.Record() }},
		"signature cut":                {&key.PublicKey, func(s *Signed) { s.Signature = s.Signature[:len(s.Signature)-1] }},
		"no signature":                 {&key.PublicKey, func(s *Signed) { s.Signature = nil }},
		"no key":                       {nil, func(*Signed) {}},
		"key of another curve":         {&deviceKey(t, elliptic.P384()).PublicKey, func(*Signed) {}},
		"signed, but no record":        {&key.PublicKey, func(s *Signed) { s.Record = []byte{0xa0}; s.Signature = sign(signLabel, s.Record) }},
	} {
		s := parse()
		test.change(&s)
		if rec, err := s.Verify(test.pub); err == nil || rec.Encapsulation != nil {
			t.Errorf("%s: verified", name)
		}
	}
	if s := parse(); s.Signature != nil {
		s.Signature = sign(signLabel, s.Record)
		if _, err := s.Verify(&key.PublicKey); err != nil {
			t.Errorf("signed by hand with the right label: %v", err)
		}
	}
}

func TestSPKIHash(t *testing.T) {
	g := readGolden(t)
	device := goldenDevice(t, g.DevicePrivateKey)
	if got, err := SPKIHash(device.Public()); err != nil || !bytes.Equal(got[:], g.DeviceSPKISHA256) {
		t.Errorf("%x, %v; expected %x", got, err, g.DeviceSPKISHA256)
	}
	for _, pub := range []crypto.PublicKey{nil, ed25519.PublicKey{}, (*ecdsa.PublicKey)(nil), deviceKey(t, elliptic.P384()).Public()} {
		if _, err := SPKIHash(pub); err == nil {
			t.Errorf("%T accepted", pub)
		}
	}
}

func TestEveryBitOfASignedRecordCounts(t *testing.T) {
	h := newHospital(t)
	key := deviceKey(t, elliptic.P256())
	data, err := SignRecord(h.period.Record(), key)
	if err != nil {
		t.Fatal(err)
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		s, err := ParseSigned(bad)
		if err != nil {
			continue
		}
		if _, err := s.Verify(&key.PublicKey); err == nil {
			t.Errorf("a bit of byte %d: verified", i)
		}
	}
}

// faulty is a device key whose signatures are wrong, as a TPM's can be.
type faulty struct{ *ecdsa.PrivateKey }

func (f faulty) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return f.PrivateKey.Sign(r, append(bytes.Clone(digest[1:]), 0), opts)
}

func TestSignRecordRefuses(t *testing.T) {
	record := newHospital(t).period.Record()
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := deviceKey(t, elliptic.P256())
	for name, test := range map[string]struct {
		record []byte
		signer crypto.Signer
	}{
		"not a record": {[]byte("a certificate request, say"), key},
		"ed25519":      {record, ed},
		"P-384":        {record, deviceKey(t, elliptic.P384())},
		"faulty":       {record, faulty{key}},
	} {
		if _, err := SignRecord(test.record, test.signer); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestParseRecordIsStrict(t *testing.T) {
	good := wireRecord{Version: 1, ID: make([]byte, 16), Key: make([]byte, 8), Epoch: make([]byte, 16), Encapsulation: make([]byte, EncapsulationSize)}
	change := func(f func(w *wireRecord)) any { w := good; f(&w); return w }
	fields := func(n int) map[any]any {
		m := map[any]any{1: 1, 2: good.ID, 3: good.Key, 4: good.Epoch, 5: good.Encapsulation, 6: 0, 7: 0}
		for k := n + 1; k <= 7; k++ {
			delete(m, k)
		}
		return m
	}
	null, text, float := fields(6), fields(6), fields(6)
	null[6], text[2], float[6] = nil, strings.Repeat("x", 16), 0.0
	for name, v := range map[string]any{
		"version":       change(func(w *wireRecord) { w.Version = 2 }),
		"short id":      change(func(w *wireRecord) { w.ID = w.ID[1:] }),
		"long key":      change(func(w *wireRecord) { w.Key = make([]byte, 9) }),
		"short epoch":   change(func(w *wireRecord) { w.Epoch = nil }),
		"encapsulation": change(func(w *wireRecord) { w.Encapsulation = w.Encapsulation[1:] }),
		"started":       change(func(w *wireRecord) { w.Started = -1 }),
		"started late":  change(func(w *wireRecord) { w.Started = maxWall + 1 }),
		"key missing":   fields(5),
		"key too many":  fields(7),
		"null":          null,
		"text id":       text,
		"float":         float,
		"an array":      []int{1},
		"nothing":       nil,
	} {
		data, err := encoding.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseRecord(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	data, err := encoding.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseRecord(data); err != nil {
		t.Errorf("the good one: %v", err)
	}
	for name, bad := range map[string][]byte{
		"empty": nil, "trailing": append(bytes.Clone(data), 0), "cut": data[:len(data)-1],
		"integer not shortest": append([]byte{data[0], 1, 0x18, 1}, data[3:]...),
		"over-long":            make([]byte, 65<<10),
	} {
		if _, err := ParseRecord(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestErrorsQuoteNoBytes(t *testing.T) {
	for _, data := range []string{"\xa2\x64EVIL\x01\x64EVIL\x01", "\xa1\x64EVIL\x01", "\xa1\x01\x64EVIL"} {
		_, err := ParseRecord([]byte(data))
		_, err2 := ParseSigned([]byte(data))
		if err == nil || err2 == nil || strings.Contains(err.Error()+err2.Error(), "EVIL") {
			t.Errorf("%q: %v, %v", data, err, err2)
		}
	}
}

func TestParseSignedIsStrict(t *testing.T) {
	record := newHospital(t).period.Record()
	for name, w := range map[string]wireSigned{
		"no record":      {SPKI: make([]byte, 32), Signature: []byte{1}},
		"another record": {Record: []byte{0xa0}, SPKI: make([]byte, 32), Signature: []byte{1}},
		"short hash":     {Record: record, SPKI: make([]byte, 31), Signature: []byte{1}},
		"no signature":   {Record: record, SPKI: make([]byte, 32)},
		"long signature": {Record: record, SPKI: make([]byte, 32), Signature: make([]byte, maxSignature+1)},
	} {
		data, err := encoding.Marshal(w)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseSigned(data); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
