package sqldb

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzEscapeText: what PostgreSQL is given it can keep, and it is the same text again, and no other's.
func FuzzEscapeText(f *testing.F) {
	for _, s := range []string{"", "plain", "Größe", "a\x00b", "\x00", "\xff\xfe", "\xc3", textEscape, textEscape + "00", "\x00" + textEscape + "ef", "\ufffd", "\xed\xa0\x80", "\xf4\x90\x80\x80"} {
		f.Add(s, s+"\x00")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		kept, other := escapeText(a), escapeText(b)
		if !utf8.ValidString(kept) || strings.IndexByte(kept, 0) >= 0 {
			t.Errorf("%q: PostgreSQL refuses %q", a, kept)
		}
		if unescapeText(kept) != a {
			t.Errorf("%q: %q comes back as %q", a, kept, unescapeText(kept))
		}
		if (a == b) != (kept == other) {
			t.Errorf("%q and %q are kept as %q and %q", a, b, kept, other)
		}
		unescapeText(a) // of whatever is there
	})
}
