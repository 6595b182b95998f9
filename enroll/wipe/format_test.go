package wipe

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"regexp"
	"testing"
)

// TestFormatExample: the page's order is the one that this package signs with the page's key.
func TestFormatExample(t *testing.T) {
	page, err := os.ReadFile("../FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```hex wipe-order\n(.*?)```").FindSubmatch(page)
	if found == nil {
		t.Fatal("FORMAT.md has no example of an order")
	}
	doc, err := hex.DecodeString(regexp.MustCompile(`\s`).ReplaceAllString(string(found[1]), ""))
	if err != nil {
		t.Fatal(err)
	}
	seed := sha256.Sum256([]byte("config key of the example"))
	key := ed25519.NewKeyFromSeed(seed[:])
	board := sha256.Sum256([]byte("board of the example"))
	want := Order{Gateway: "icu-3-bed-7", Boards: [][]byte{board[:]}, Issued: 1780000000000, Reason: "ward closed", Drain: true}
	made, err := Sign(want, key)
	if err != nil {
		t.Fatal(err)
	}
	if string(made) != string(doc) {
		t.Errorf("FORMAT.md's order is not\n%x", made)
	}
	if o, err := Verify(doc, key.Public().(ed25519.PublicKey), "icu-3-bed-7", board); err != nil || o.Reason != "ward closed" || o.Issued != want.Issued {
		t.Errorf("%+v, %v", o, err)
	}
}
