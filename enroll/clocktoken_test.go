package enroll

import (
	"bytes"
	"crypto/ed25519"
	"os"
	"strings"
	"testing"
	"time"
)

func TestClockTokenServesOneGatewayAndOneChallenge(t *testing.T) {
	now := time.UnixMilli(1795357800123).UTC()
	public := timeKey.Public().(ed25519.PublicKey)
	c := NewClockChallenge()
	if again, err := ParseClockChallenge(strings.ToLower(strings.ReplaceAll(c.String(), "-", " "))); err != nil || again != c {
		t.Fatalf("%v, %v; expected %v", again, err, c)
	}
	token, err := SignClockToken("icu-7", c, now, timeKey)
	if err != nil {
		t.Fatal(err)
	}
	// As people hand it on: lower case, wrapped, digits for letters that look like them.
	spoken := strings.NewReplacer("-", " ", "O", "0", "I", "1", "B", "8").Replace(token)
	for _, text := range []string{token, strings.ToLower(token), token[:75] + "\n  " + token[75:] + "\r\n", spoken} {
		if at, err := VerifyClockToken(text, public, "icu-7", c); err != nil || !at.Equal(now) {
			t.Errorf("%q: %v, %v; expected %v", text, at, err, now)
		}
	}
	_, foreignKey, _ := ed25519.GenerateKey(nil)
	foreign, err := SignClockToken("icu-7", c, now, foreignKey)
	if err != nil {
		t.Fatal(err)
	}
	letter := "A"
	if token[20:21] == "A" {
		letter = "B"
	}
	for name, c := range map[string]struct {
		token, gateway string
		challenge      ClockChallenge
	}{
		"foreign key":       {foreign, "icu-7", c},
		"another gateway":   {token, "icu-8", c},
		"not enrolled":      {token, "", c},
		"another challenge": {token, "icu-7", NewClockChallenge()},
		"a wrong letter":    {token[:20] + letter + token[21:], "icu-7", c},
		"another time":      {"AAAA-DIQD-VH3M" + token[14:], "icu-7", c},
		"half":              {token[:len(token)/2], "icu-7", c},
		"more":              {token + "-AAAA", "icu-7", c},
		"nothing":           {"", "icu-7", c},
		"long":              {token + strings.Repeat(" ", maxClockToken), "icu-7", c},
	} {
		if at, err := VerifyClockToken(c.token, public, c.gateway, c.challenge); err == nil || !at.IsZero() || !strings.Contains(err.Error(), "clock token") {
			t.Errorf("%s: %v, %v", name, at, err)
		}
	}
	for _, at := range []time.Time{time.Unix(60, 0), time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if _, err := SignClockToken("icu-7", c, at, timeKey); err == nil {
			t.Errorf("%v is signed", at)
		}
	}
	if _, err := SignClockToken("Icu 7", c, now, timeKey); err == nil {
		t.Error("a name that no gateway has is signed")
	}
}

// TestClockTokenOfThePage: FORMAT.md's example is what this code writes and reads.
func TestClockTokenOfThePage(t *testing.T) {
	page, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "```text clock-token\n")
	shown, _, closed := strings.Cut(rest, "```")
	c, err := ParseClockChallenge("AAAQEAYEAUDAOCAJ")
	if err != nil || !ok || !closed {
		t.Fatal(err, ok, closed)
	}
	token, err := SignClockToken("icu-3-bed-7", c, time.UnixMilli(1795357800123), formatKey)
	if err != nil || token != strings.TrimSpace(shown) {
		t.Errorf("FORMAT.md shows\n%s\nthe code writes\n%s, %v", shown, token, err)
	}
}

func FuzzVerifyClockToken(f *testing.F) {
	c := ClockChallenge(bytes.Repeat([]byte{1}, 10))
	public := timeKey.Public().(ed25519.PublicKey)
	token, err := SignClockToken("icu-7", c, time.UnixMilli(1795357800123), timeKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if at, err := VerifyClockToken(text, public, "icu-7", c); err == nil && at.UnixMilli() != 1795357800123 {
			t.Errorf("%q sets the floor to %v", text, at)
		} else if err == nil {
			if data, _ := ungrouped(text); grouped(data) != token {
				t.Errorf("%q counts as %s", text, token)
			}
		}
		if c, err := ParseClockChallenge(text); err == nil {
			if again, err := ParseClockChallenge(c.String()); err != nil || again != c {
				t.Errorf("%q: %v, %v", text, again, err)
			}
		}
	})
}
