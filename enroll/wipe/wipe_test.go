package wipe

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"strings"
	"testing"
)

var board = sha256.Sum256([]byte("the board"))

func order(t testing.TB) (doc []byte, public ed25519.PublicKey, private ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other := sha256.Sum256([]byte("its ECC key"))
	doc, err = Sign(Order{Gateway: "gw-1", Boards: [][]byte{other[:], board[:]}, Issued: 1, Reason: "scrapped", Drain: true}, private)
	if err != nil {
		t.Fatal(err)
	}
	return doc, public, private
}

func TestOrder(t *testing.T) {
	doc, public, private := order(t)
	for _, gateway := range []string{"gw-1", ""} {
		if o, err := Verify(doc, public, gateway, board); err != nil || o.Gateway != "gw-1" || o.Reason != "scrapped" || !o.Drain {
			t.Errorf("%+v, %v", o, err)
		}
	}
	strange, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		doc     []byte
		key     ed25519.PublicKey
		gateway string
		board   [32]byte
		says    string
	}{
		"another key":             {doc, strange, "gw-1", board, "config key"},
		"another gateway":         {doc, public, "gw-2", board, "for gateway gw-1"},
		"the gateway's new board": {doc, public, "gw-1", sha256.Sum256([]byte("new")), "another board"},
		"too long":                {make([]byte, MaxDocument+1), public, "gw-1", board, "at most"},
		"empty":                   {nil, public, "gw-1", board, "EOF"},
	} {
		if o, err := Verify(c.doc, c.key, c.gateway, c.board); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %+v, %v", what, o, err)
		}
	}
	for i := range doc {
		bad := bytes.Clone(doc)
		bad[i] ^= 1
		if o, err := Verify(bad, public, "gw-1", board); err == nil {
			t.Fatalf("byte %d changed: %+v", i, o)
		}
	}
	for _, bad := range []Order{{Gateway: "x y", Boards: [][]byte{board[:]}}, {Gateway: "gw-1"}, {Gateway: "gw-1", Boards: [][]byte{{1}}}, {Gateway: "gw-1", Boards: [][]byte{board[:]}, Reason: "a\nb"}} {
		if _, err := Sign(bad, private); err == nil {
			t.Errorf("signed %+v", bad)
		}
	}
}

func TestDone(t *testing.T) {
	doc, _, _ := order(t)
	hash := sha256.Sum256(doc)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	word, err := SignDone(Done{Gateway: "gw-1", Order: hash[:], At: 2, Waiting: 3, Parked: 1}, key)
	if err != nil || len(word) > 512 { // it must fit an event's detail in base64
		t.Fatal(len(word), err)
	}
	if d, err := VerifyDone(word, public, hash); err != nil || d.Gateway != "gw-1" || d.Waiting != 3 || d.Parked != 1 {
		t.Errorf("%+v, %v", d, err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := x509.MarshalPKIXPublicKey(&other.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := VerifyDone(word, foreign, hash); err == nil {
		t.Error("another key's")
	}
	if _, err := VerifyDone(word, public, board); err == nil {
		t.Error("another order's")
	}
	for i := range word {
		bad := bytes.Clone(word)
		bad[i] ^= 1
		if d, err := VerifyDone(bad, public, hash); err == nil {
			t.Fatalf("byte %d changed: %+v", i, d)
		}
	}
}

// FuzzOpen: neither document makes a reader fail otherwise than by an error.
func FuzzOpen(f *testing.F) {
	doc, public, _ := order(f)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	hash := sha256.Sum256(doc)
	word, err := SignDone(Done{Gateway: "gw-1", Order: hash[:]}, key)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add(word)
	f.Add([]byte{0xa2, 1, 0x41, 0xa0, 2, 0x40})
	f.Fuzz(func(t *testing.T, data []byte) {
		if o, err := Verify(data, public, "gw-1", board); err == nil && o.Gateway != "gw-1" {
			t.Errorf("%+v", o)
		}
		if d, err := VerifyDone(data, der, hash); err == nil && d.Gateway != "gw-1" {
			t.Errorf("%+v", d)
		}
	})
}
