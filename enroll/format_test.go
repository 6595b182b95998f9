package enroll

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// formatKey signs the page's documents; its seed is the one that the page names.
var formatKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))

func siteExample() Configuration {
	return Configuration{
		ForSite: "main", Version: 5, Issued: 1795357800000,
		Settings: Settings{Servers: []string{"wardlink.hospital.example:443", "10.20.0.5:8883"}, ReportEvery: 300_000},
	}
}

// formatExample is the document in FORMAT.md; its key is the seed that the page names.
func formatExample(t *testing.T) ([]byte, ed25519.PublicKey) {
	t.Helper()
	doc, err := SignConfiguration(Configuration{
		Gateway: "icu-3-bed-7", Version: 2, Issued: 1795357800000, Ward: "icu-3", Profile: "default", Lanes: 15, Site: "main",
	}, formatKey)
	if err != nil {
		t.Fatal(err)
	}
	return doc, formatKey.Public().(ed25519.PublicKey)
}

// exampleOf reads a document in FORMAT.md.
func exampleOf(t *testing.T, name string) []byte {
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
	example, request, answer := exampleOf(t, "configuration"), exampleOf(t, "time-request"), exampleOf(t, "signed-time")
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
	site, err := SignConfiguration(siteExample(), formatKey)
	if err != nil {
		t.Fatal(err)
	}
	if shown := exampleOf(t, "site-configuration"); !bytes.Equal(shown, site) {
		t.Errorf("FORMAT.md shows\n%x\nthe code writes\n%x", shown, site)
	}
	if c, err := VerifyConfiguration(site, public, "icu-3-bed-7", "main", 4); err != nil || !reflect.DeepEqual(c, siteExample()) {
		t.Errorf("%+v, %v", c, err)
	}
	c, err := VerifyConfiguration(example, public, "icu-3-bed-7", "", 1)
	if err != nil || c.Site != "main" || c.Version != 2 {
		t.Errorf("%+v, %v", c, err)
	}
}
