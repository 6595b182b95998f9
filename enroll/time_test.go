package enroll

import (
	"bytes"
	"crypto/ed25519"
	"slices"
	"strings"
	"testing"
	"time"
)

var timeKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

func exampleRequest() TimeRequest {
	r := TimeRequest{Gateway: "icu-3-bed-7"}
	copy(r.Nonce[:], bytes.Repeat([]byte{0xa5}, 32))
	return r
}

func TestSignedTimeAnswersOneRequest(t *testing.T) {
	now := time.UnixMilli(1795357800123).UTC()
	public := timeKey.Public().(ed25519.PublicKey)
	r := NewTimeRequest("icu-7")
	doc, err := SignTime(r, now, timeKey)
	if err != nil {
		t.Fatal(err)
	}
	if at, err := VerifyTime(doc, public, r); err != nil || !at.Equal(now) {
		t.Fatalf("%v, %v; expected %v", at, err, now)
	}
	_, otherKey, _ := ed25519.GenerateKey(nil)
	foreign, err := SignTime(r, now, otherKey)
	if err != nil {
		t.Fatal(err)
	}
	config, err := SignConfiguration(Configuration{Gateway: "icu-7", Version: 1}, timeKey)
	if err != nil {
		t.Fatal(err)
	}
	other, named := r, r
	other.Nonce[31] ^= 1
	named.Gateway = "icu-8"
	for name, c := range map[string]struct {
		doc  []byte
		r    TimeRequest
		want string
	}{
		"foreign key":           {foreign, r, "config key"},
		"recorded":              {doc, NewTimeRequest("icu-7"), "another request"},
		"one bit of the nonce":  {doc, other, "another request"},
		"another gateway":       {doc, named, "gateway"},
		"before it had a name":  {doc, TimeRequest{Nonce: r.Nonce}, "gateway"},
		"configuration as time": {config, r, "config key"},
		"too long":              {append(slices.Clone(doc), make([]byte, MaxTimeBytes)...), r, "at most"},
		"nothing":               {nil, r, "signed time"},
	} {
		if at, err := VerifyTime(c.doc, public, c.r); err == nil || !strings.Contains(err.Error(), c.want) || !at.IsZero() {
			t.Errorf("%s: %v, %v; expected an error with %q", name, at, err, c.want)
		}
	}
	for i := range doc {
		bad := slices.Clone(doc)
		bad[i] ^= 1
		if at, err := VerifyTime(bad, public, r); err == nil {
			t.Fatalf("a flipped bit in byte %d verifies as %v", i, at)
		}
	}
	if _, err := VerifyConfiguration(doc, public, "icu-7", "", 0); err == nil {
		t.Error("a signed time passes for configuration")
	}
	if _, err := SignTime(r, time.Unix(0, 0), timeKey); err == nil {
		t.Error("1970 was signed as the present")
	}
}

func TestTimeRequestIsBounded(t *testing.T) {
	for name, data := range map[string][]byte{
		"empty": nil, "long": make([]byte, MaxTimeBytes+1), "short nonce": {0xa1, 1, 0x41, 0}, "no map": {1},
		"bad name": append(append([]byte{0xa2, 1, 0x58, 32}, make([]byte, 32)...), 2, 0x62, '.', '.'),
	} {
		if r, err := ParseTimeRequest(data); err == nil {
			t.Errorf("%s: read as %+v", name, r)
		}
	}
	if _, err := (TimeRequest{Gateway: "UPPER"}).Marshal(); err == nil {
		t.Error("a name that is none was asked for")
	}
}

func FuzzTime(f *testing.F) {
	r := exampleRequest()
	request, err := r.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	doc, err := SignTime(r, time.UnixMilli(1795357800123), timeKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request)
	f.Add(doc)
	f.Add([]byte{0xa2, 1, 0x40, 2, 0x40})
	f.Fuzz(func(t *testing.T, data []byte) {
		if got, err := ParseTimeRequest(data); err == nil {
			again, err := got.Marshal()
			if err != nil {
				t.Fatalf("%x is read and cannot be written: %v", data, err)
			}
			if back, err := ParseTimeRequest(again); err != nil || back != got {
				t.Fatalf("%+v comes back as %+v, %v", got, back, err)
			}
		}
		if at, err := VerifyTime(data, timeKey.Public().(ed25519.PublicKey), r); err == nil && at.UnixMilli() != 1795357800123 {
			t.Fatalf("%x tells %v, which nobody signed", data, at)
		}
	})
}
