package seal

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
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
	h := newHospital(f)
	frame := h.seal(f, Header{Number: 5}, "a reading")
	f.Add(frame)
	f.Add(frame[:headerSize+sealOverhead+hashSize])
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > hashSize {
			data = rehash(bytes.Clone(data))
		}
		_, plain, err := h.opener.Open(data)
		if err == nil && (string(plain) != "a reading" || !bytes.Equal(data, frame)) {
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
	key, other := deviceKey(f, elliptic.P256()), deviceKey(f, elliptic.P256())
	data, err := SignRecord(newHospital(f).period.Record(), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte{0xa3, 0x01, 0x40, 0x02, 0x40, 0x03, 0x40})
	f.Fuzz(func(t *testing.T, bytes []byte) {
		s, err := ParseSigned(bytes)
		if err != nil {
			return
		}
		if _, err := s.Unverified(); err != nil {
			t.Errorf("parsed, but its record does not: %v", err)
		}
		for _, pub := range []*ecdsa.PublicKey{&other.PublicKey} {
			if _, err := s.Verify(pub); err == nil {
				t.Error("verified under a key that signed nothing")
			}
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
