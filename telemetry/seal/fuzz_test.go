package seal

import (
	"bytes"
	"testing"
)

func FuzzCheckFrame(f *testing.F) {
	h := newHospital(f)
	f.Add(h.seal(f, Header{Number: 5}, "a reading"))
	f.Add(h.seal(f, Header{}, ""))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, frame []byte) {
		header, err := CheckFrame(frame)
		if err != nil {
			return
		}
		again := header.appendTo(nil, len(frame)-headerSize-hashSize)
		if !bytes.Equal(again, frame[:headerSize]) {
			t.Errorf("header %x reads as %x", frame[:headerSize], again)
		}
	})
}

// Open gets past the hash here, so that the fuzzer reaches the AEAD.
func FuzzOpen(f *testing.F) {
	g := readGolden(f) // every worker of the fuzzer must hold the same key
	signed, err := ParseSigned(g.Signed)
	if err != nil {
		f.Fatal(err)
	}
	priv, err := ParsePrivateKey([]byte(g.RecordsPrivateKey))
	if err != nil {
		f.Fatal(err)
	}
	record, err := signed.Verify(&goldenDevice(f, g.DevicePrivateKey).PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	opener, err := NewOpener(priv, record)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(g.Frame))
	f.Add([]byte(g.Frame[:headerSize+sealOverhead+hashSize]))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > hashSize {
			data = rehash(bytes.Clone(data))
		}
		_, plain, err := opener.Open(data)
		if err == nil && (!bytes.Equal(plain, g.Plaintext) || !bytes.Equal(data, g.Frame)) {
			t.Errorf("opened a frame that was never sealed: %x", data)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add(newHospital(f).period.Record())
	f.Add([]byte{0xa1, 0x01, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := ParseRecord(data)
		if err != nil {
			return
		}
		if again, err := encodeRecord(r); err != nil || !bytes.Equal(again, data) {
			t.Errorf("%x reads as %x, %v", data, again, err)
		}
	})
}

func FuzzParseSigned(f *testing.F) {
	g := readGolden(f)
	device := goldenDevice(f, g.DevicePrivateKey)
	f.Add([]byte(g.Signed))
	f.Add([]byte{0xa3, 0x01, 0x40, 0x02, 0x40, 0x03, 0x40})
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ParseSigned(data)
		if err != nil {
			return
		}
		if _, err := s.Unverified(); err != nil {
			t.Errorf("parsed, but its record does not: %v", err)
		}
		if _, err := s.Verify(&device.PublicKey); err == nil && !bytes.Equal(s.Record, g.SealingRecord) {
			t.Error("verified a record that was never signed")
		}
	})
}

func FuzzParsePublicKey(f *testing.F) {
	f.Add(newHospital(f).priv.Public().Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if k, err := ParsePublicKey(data); err == nil && !bytes.Equal(k.Bytes(), data) {
			t.Error("another key than was given")
		}
	})
}
