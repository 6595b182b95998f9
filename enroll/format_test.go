package enroll

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"os"
	"strings"
	"testing"
	"time"
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

// example reads a document in FORMAT.md.
func example(t *testing.T, name string) []byte {
	t.Helper()
	page, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```hex "+name+"\n")
	text, _, closed := strings.Cut(rest, "```")
	if !ok || !closed {
		t.Fatalf("FORMAT.md has no example of a %s", name)
	}
	data, err := hex.DecodeString(strings.Join(strings.Fields(text), ""))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestFormatPageIsTrue: the examples in FORMAT.md are what this code writes and reads.
func TestFormatPageIsTrue(t *testing.T) {
	want, public := formatExample(t)
	example, request, answer := example(t, "configuration"), example(t, "time-request"), example(t, "signed-time")
	r := exampleRequest()
	if got, err := ParseTimeRequest(request); err != nil || got != r {
		t.Errorf("%+v, %v", got, err)
	}
	if doc, err := SignTime(r, time.UnixMilli(1795357800123), timeKey); err != nil || !bytes.Equal(doc, answer) {
		t.Errorf("FORMAT.md shows\n%x\nthe code writes\n%x, %v", answer, doc, err)
	}
	if at, err := VerifyTime(answer, public, r); err != nil || at.UnixMilli() != 1795357800123 {
		t.Errorf("%v, %v", at, err)
	}
	if !bytes.Equal(example, want) {
		t.Errorf("FORMAT.md shows\n%x\nthe code writes\n%x", example, want)
	}
	c, err := VerifyConfiguration(example, public, "icu-3-bed-7", "", 1)
	if err != nil || c.Site != "main" || c.Version != 2 {
		t.Errorf("%+v, %v", c, err)
	}
}
