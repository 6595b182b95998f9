package enroll

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// formatExample is the document in FORMAT.md; its key is the seed that the page names.
func formatExample(t *testing.T) ([]byte, ed25519.PublicKey) {
	t.Helper()
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))
	doc, err := SignConfiguration(Configuration{
		Gateway: "icu-3-bed-7", Version: 2, Issued: 1795357800000, Ward: "icu-3", Profile: "default", Lanes: 15, Site: "main",
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	return doc, key.Public().(ed25519.PublicKey)
}

// TestFormatPageIsTrue: the example in FORMAT.md is what this code writes and reads.
func TestFormatPageIsTrue(t *testing.T) {
	page, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```hex configuration\n")
	text, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatal("FORMAT.md has no example")
	}
	example, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	want, public := formatExample(t)
	if !bytes.Equal(example, want) {
		t.Errorf("FORMAT.md shows\n%x\nthe code writes\n%x", example, want)
	}
	c, err := VerifyConfiguration(example, public, "icu-3-bed-7", "", 1)
	if err != nil || c.Site != "main" || c.Version != 2 {
		t.Errorf("%+v, %v", c, err)
	}
}
