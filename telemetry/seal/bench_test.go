package seal

import (
	"bytes"
	"crypto/elliptic"
	"fmt"
	"testing"
)

func BenchmarkSeal(b *testing.B) {
	h := newHospital(b)
	for _, size := range []int{1 << 10, 20 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			plain := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := h.period.Seal(Header{}, plain); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	h := newHospital(b)
	for _, size := range []int{1 << 10, 20 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			frame := h.seal(b, Header{}, string(bytes.Repeat([]byte("p"), size)))
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := h.opener.Open(frame); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCheckFrame(b *testing.B) {
	frame := newHospital(b).seal(b, Header{}, string(make([]byte, 1<<10)))
	b.SetBytes(int64(len(frame)))
	for b.Loop() {
		if _, err := CheckFrame(frame); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewPeriod(b *testing.B) {
	h := newHospital(b)
	for b.Loop() {
		if _, err := NewPeriod(h.priv.Public(), epoch, start); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewOpener(b *testing.B) {
	h := newHospital(b)
	for b.Loop() {
		if _, err := NewOpener(h.priv, h.record); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	h := newHospital(b)
	key := deviceKey(b, elliptic.P256())
	data, err := SignRecord(h.period.Record(), key)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := ParseSigned(data)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Verify(&key.PublicKey); err != nil {
			b.Fatal(err)
		}
	}
}
