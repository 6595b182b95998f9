package enroll

import (
	"os"
	"strings"
	"testing"
)

const goodSeen = `{"gateway":"icu-7","first":"2026-11-27T08:40:12.25Z","last":"2026-11-27T08:41:12Z","epoch":"000102030405060708090a0b0c0d0e0f"}`

func TestParseSeen(t *testing.T) {
	if s, err := ParseSeen([]byte(goodSeen), "icu-7"); err != nil || s.First.UnixMilli() != 1795768812250 || s.Epoch == "" {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := ParseSeen([]byte(`{"gateway":"icu-7"}`), "icu-7"); err != nil || !s.First.IsZero() {
		t.Errorf("none yet: %+v, %v", s, err)
	}
	for name, text := range map[string]string{
		"another's": strings.Replace(goodSeen, "icu-7", "icu-8", 1), "no JSON": "seen", "a short epoch": strings.Replace(goodSeen, "0001", "", 1),
		"no epoch": `{"gateway":"icu-7","first":"2026-11-27T08:40:12Z","last":"2026-11-27T08:41:12Z"}`, "no first": strings.Replace(goodSeen, "first", "frist", 1),
		"long": goodSeen + strings.Repeat(" ", MaxSeenBytes),
	} {
		if s, err := ParseSeen([]byte(text), "icu-7"); err == nil {
			t.Errorf("%s is taken: %+v", name, s)
		}
	}
}

// TestSeenOnTheFormatPage: its example is read.
func TestSeenOnTheFormatPage(t *testing.T) {
	page, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```json seen\n")
	text, _, closed := strings.Cut(rest, "\n```")
	if s, err := ParseSeen([]byte(text), "icu-3-bed-7"); !ok || !closed || err != nil || s.First.IsZero() {
		t.Errorf("%q: %+v, %v", text, s, err)
	}
}

func FuzzParseSeen(f *testing.F) {
	f.Add([]byte(goodSeen))
	f.Add([]byte(`{"gateway":"icu-7"}`))
	f.Add([]byte(`{"gateway":"icu-7","first":"0001-01-01T00:00:00Z","epoch":""}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := ParseSeen(data, "icu-7"); err == nil && s.Gateway != "icu-7" {
			t.Errorf("%+v", s)
		}
	})
}
