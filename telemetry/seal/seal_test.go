package seal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/internal/secret"
	"wardlink/telemetry"
)

// hospital is a records key, a gateway's period and the opener that fits it.
type hospital struct {
	priv   PrivateKey
	period *Period
	opener *Opener
	record Record
}

var (
	epoch = telemetry.Epoch{1, 2, 3}
	start = time.UnixMilli(1795357800000)
)

func newHospital(t testing.TB) hospital {
	t.Helper()
	priv, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return open(t, priv, epoch)
}

func open(t testing.TB, priv PrivateKey, epoch telemetry.Epoch) hospital {
	t.Helper()
	period, err := NewPeriod(priv.Public(), epoch, start)
	if err != nil {
		t.Fatal(err)
	}
	record, err := ParseRecord(period.Record())
	if err != nil {
		t.Fatal(err)
	}
	opener, err := NewOpener(priv, record)
	if err != nil {
		t.Fatal(err)
	}
	return hospital{priv, period, opener, record}
}

func (h hospital) seal(t testing.TB, header Header, plain string) []byte {
	t.Helper()
	frame, err := h.period.Seal(header, []byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

// rehash makes a frame's hash anew, as whoever tampers with it would.
func rehash(frame []byte) []byte {
	n := len(frame) - hashSize
	sum := sha256.Sum256(frame[:n])
	copy(frame[n:], sum[:])
	return frame
}

func TestSealOpen(t *testing.T) {
	h := newHospital(t)
	for _, in := range []Header{
		{},
		{Lane: telemetry.LaneSelf, Number: math.MaxInt64, Wall: maxWall, Mono: math.MaxInt64, Count: math.MaxUint32},
		{Lane: telemetry.LaneVitals, Number: 7, Wall: 1795357800123, Mono: 5, Count: 20},
	} {
		for _, plain := range []string{"", "x", strings.Repeat("p", MaxPlain)} {
			frame := h.seal(t, in, plain)
			want := in
			want.Epoch, want.Sealing, want.Key = epoch, h.period.ID(), h.priv.Public().ID()
			if got, err := CheckFrame(frame); err != nil || got != want {
				t.Errorf("CheckFrame: %+v, %v; expected %+v", got, err, want)
			}
			got, opened, err := h.opener.Open(frame)
			if err != nil || got != want || string(opened) != plain {
				t.Errorf("Open: %+v, %d bytes, %v; expected %+v and %d bytes", got, len(opened), err, want, len(plain))
			}
			if h, hash, err := CheckAndHash(frame); err != nil || h != want || hash != FrameHash(frame) {
				t.Fatalf("%+v, %x, %v", h, hash, err)
			}
			if FrameHash(frame) != sha256.Sum256(frame) {
				t.Error("FrameHash is not the SHA-256 of the frame")
			}
		}
	}
}

func TestFrameSizes(t *testing.T) {
	h := newHospital(t)
	frame := h.seal(t, Header{}, strings.Repeat("p", MaxPlain))
	if len(frame) != telemetry.MaxFrame || MaxPlain != telemetry.MaxEncoded {
		t.Errorf("the longest frame has %d bytes of %d; it holds %d of an encoded batch's %d",
			len(frame), telemetry.MaxFrame, MaxPlain, telemetry.MaxEncoded)
	}
}

func TestSealingTwiceGivesDifferentBytes(t *testing.T) {
	h := newHospital(t)
	a, b := h.seal(t, Header{Number: 1}, "the same"), h.seal(t, Header{Number: 1}, "the same")
	if !bytes.Equal(a[:headerSize], b[:headerSize]) {
		t.Fatal("the headers differ: this test proves nothing")
	}
	const block = 8
	for i := headerSize; i+block <= len(a); i += block {
		if bytes.Equal(a[i:i+block], b[i:i+block]) {
			t.Errorf("bytes %d to %d are the same in both frames", i, i+block)
		}
	}
}

func TestEveryBitCounts(t *testing.T) {
	h := newHospital(t)
	frame := h.seal(t, Header{Lane: telemetry.LaneVitals, Number: 5, Wall: 1, Mono: 1, Count: 1}, "heart rate 72")
	for bit := range len(frame) * 8 {
		bad := bytes.Clone(frame)
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := CheckFrame(bad); err == nil {
			t.Errorf("bit %d of byte %d: CheckFrame accepts it", bit%8, bit/8)
		}
		if bit/8 >= len(frame)-hashSize {
			continue
		}
		if _, _, err := h.opener.Open(rehash(bad)); err == nil {
			t.Errorf("bit %d of byte %d with its hash made anew: Open accepts it", bit%8, bit/8)
		}
	}
	for n := range len(frame) {
		if _, err := CheckFrame(frame[:n]); err == nil {
			t.Errorf("cut to %d bytes: accepted", n)
		}
	}
	if _, err := CheckFrame(append(bytes.Clone(frame), 0)); err == nil {
		t.Error("a byte too many: accepted")
	}
}

// The header is checked even where AEAD and hash agree with it: a gateway is not believed just for having a key.
func TestCheckFrameValidatesTheHeader(t *testing.T) {
	h := newHospital(t)
	frame := h.seal(t, Header{}, "x")
	for name, change := range map[string]func(f []byte){
		"version":       func(f []byte) { f[offLane-1] = '2' },
		"lane":          func(f []byte) { f[offLane] = telemetry.LaneCount },
		"number":        func(f []byte) { f[offNumber] = 0x80 },
		"wall negative": func(f []byte) { f[offWall] = 0x80 },
		"wall too late": func(f []byte) { binary.BigEndian.PutUint64(f[offWall:], maxWall+1) },
		"mono":          func(f []byte) { f[offMono] = 0x80 },
		"length":        func(f []byte) { binary.BigEndian.PutUint32(f[offLength:], math.MaxUint32) },
	} {
		bad := bytes.Clone(frame)
		change(bad)
		if _, err := CheckFrame(rehash(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := CheckFrame(make([]byte, telemetry.MaxFrame+1)); err == nil {
		t.Error("an over-long frame: accepted")
	}
}

func TestSealRefuses(t *testing.T) {
	h := newHospital(t)
	for name, header := range map[string]Header{
		"lane": {Lane: telemetry.LaneCount}, "number": {Number: math.MaxInt64 + 1}, "wall": {Wall: -1}, "late": {Wall: maxWall + 1}, "mono": {Mono: -1},
	} {
		if _, err := h.period.Seal(header, nil); err == nil || errors.Is(err, ErrOver) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := h.period.Seal(Header{}, make([]byte, MaxPlain+1)); err == nil {
		t.Error("sealed more than a frame can hold")
	}
}

// Whatever does not belong together must not open, even when the frame's clear ids are made to agree with the record.
func TestOpenRefusesOthers(t *testing.T) {
	a := newHospital(t)
	same := open(t, a.priv, epoch)                     // another period of the same gateway
	later := open(t, a.priv, telemetry.Epoch{9})       // another start
	other := newHospital(t)                            // another hospital
	frame := a.seal(t, Header{Number: 3}, "a reading") //
	relabelled := func(id [16]byte, e telemetry.Epoch, key [8]byte) []byte {
		f := bytes.Clone(frame)
		copy(f[offSealing:], id[:])
		copy(f[offEpoch:], e[:])
		copy(f[offKey:], key[:])
		return rehash(f)
	}
	for name, h := range map[string]hospital{"period": same, "epoch": later, "hospital": other} {
		if _, _, err := h.opener.Open(frame); err == nil || !strings.Contains(err.Error(), "it is of sealing") {
			t.Errorf("another %s: %v; expected an error that says whose it is", name, err)
		}
		if _, _, err := h.opener.Open(relabelled(h.record.ID, h.record.Epoch, h.record.Key)); err == nil {
			t.Errorf("another %s opened it, relabelled", name)
		}
	}
	for name, change := range map[string]func(r *Record){
		"sealing id":    func(r *Record) { r.ID[0] ^= 1 },
		"epoch":         func(r *Record) { r.Epoch[15] ^= 1 },
		"encapsulation": func(r *Record) { r.Encapsulation = same.record.Encapsulation },
		"KEM bit":       func(r *Record) { r.Encapsulation[100] ^= 1 },
	} {
		rec := a.record
		rec.Encapsulation = bytes.Clone(rec.Encapsulation)
		change(&rec)
		opener, err := NewOpener(a.priv, rec)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, _, err := opener.Open(relabelled(rec.ID, rec.Epoch, rec.Key)); err == nil {
			t.Errorf("a record with another %s opened it", name)
		}
	}
	if _, err := NewOpener(other.priv, a.record); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%x", a.record.Key)) {
		t.Errorf("another hospital's key: %v; expected an error that names both keys", err)
	}
	swapped := a.record // as if the other hospital's key had the same id
	swapped.Key = other.record.Key
	if opener, err := NewOpener(other.priv, swapped); err != nil {
		t.Error(err)
	} else if _, _, err := opener.Open(relabelled(swapped.ID, swapped.Epoch, swapped.Key)); err == nil {
		t.Error("another hospital's private key opened it")
	}
	rec := a.record
	rec.Encapsulation = rec.Encapsulation[1:]
	if _, err := NewOpener(a.priv, rec); err == nil {
		t.Error("a short encapsulation was accepted")
	}
}

func TestPeriodEnds(t *testing.T) {
	h := newHospital(t)
	for after, want := range map[time.Duration]bool{
		-time.Millisecond: true, 0: false, maxAge - 1: false, maxAge: true,
	} {
		if got := h.period.Over(start.Add(after)); got != want {
			t.Errorf("%v after its start: over is %v", after, got)
		}
	}
	h.period.seals.Store(maxSeals - 1)
	if h.period.Over(start) {
		t.Error("over before its last seal")
	}
	h.seal(t, Header{}, "the last")
	if _, err := h.period.Seal(Header{}, nil); !errors.Is(err, ErrOver) || !h.period.Over(start) {
		t.Errorf("after 2^31 seals: %v", err)
	}
}

func TestForget(t *testing.T) {
	h := newHospital(t)
	frame := h.seal(t, Header{}, "x")
	h.period.Forget()
	if _, err := h.period.Seal(Header{}, nil); !errors.Is(err, ErrOver) || !h.period.Over(start) {
		t.Errorf("sealed after Forget: %v", err)
	}
	if _, _, err := h.opener.Open(frame); err != nil {
		t.Errorf("the hospital cannot open it any more: %v", err)
	}
}

func TestSealConcurrently(t *testing.T) {
	h := newHospital(t)
	var wg sync.WaitGroup
	for n := range uint64(32) {
		wg.Go(func() {
			plain := bytes.Repeat([]byte{byte(n)}, 1000)
			frame, err := h.period.Seal(Header{Number: n}, plain)
			if err != nil {
				t.Error(err)
				return
			}
			if got, opened, err := h.opener.Open(frame); err != nil || got.Number != n || !bytes.Equal(opened, plain) {
				t.Errorf("number %d: %d, %v", n, got.Number, err)
			}
		})
	}
	wg.Wait()
}

func TestKeys(t *testing.T) {
	h := newHospital(t)
	priv, err := ParsePrivateKey(h.priv.Bytes())
	if err != nil || !bytes.Equal(priv.Public().Bytes(), h.priv.Public().Bytes()) {
		t.Fatalf("the private key read back is another: %v", err)
	}
	pub, err := ParsePublicKey(h.priv.Public().Bytes())
	if err != nil || pub.ID() != h.priv.Public().ID() {
		t.Fatalf("the public key read back is another: %v", err)
	}
	seed := h.priv.Bytes()
	seed.Wipe()
	if bytes.Equal(h.priv.Bytes(), seed) {
		t.Error("wiping a copy of the seed wiped the key")
	}
	if _, err := ParsePrivateKey(secret.Bytes(make([]byte, 31))); err == nil {
		t.Error("a short private key was accepted")
	}
	good := pub.Bytes()
	for name, bad := range map[string][]byte{
		"empty": nil, "short": good[1:], "long": append(bytes.Clone(good), 0),
		"ML-KEM out of range": append(bytes.Repeat([]byte{0xff}, 1184), good[1184:]...),
		"point off the curve": append(bytes.Clone(good[:1185]), make([]byte, 64)...),
	} {
		if _, err := ParsePublicKey(bad); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		if printed := fmt.Sprintf(format, h.priv); !strings.HasPrefix(printed, "records private key ") {
			t.Errorf("%s prints %s", format, printed)
		}
	}
	if _, err := NewPeriod(PublicKey{}, epoch, start); err == nil {
		t.Error("a period began with no key")
	}
	if _, err := NewOpener(PrivateKey{}, h.record); err == nil {
		t.Error("an opener was made with no key")
	}
}
