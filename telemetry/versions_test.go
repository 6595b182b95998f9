package telemetry

import (
	"strings"
	"testing"
)

func TestHello(t *testing.T) {
	for _, h := range []Hello{{Versions{1, 2}, "0.1.0-dev"}, {Versions{9999, 9999}, strings.Repeat("x", 64)}, OwnHello("1.0 (dirty)\x1b[2J"), OwnHello(""), OwnHello(strings.Repeat("y", 99))} {
		if got, err := ParseHello(h.String()); err != nil || got != h {
			t.Errorf("%s: %+v, %v", h, got, err)
		}
	}
	for _, s := range []string{"", "wl/", "wl/0-1/x", "wl/2-1/x", "wl/1-10000/x", "wl/1-2/", "wl/1-2/a b", "wl/1-2/a\n", "wl/1/x", "WL/1-2/x", "wl/1-2/" + strings.Repeat("x", 65), "wl/01-2/x"} {
		if h, err := ParseHello(s); err == nil {
			t.Errorf("%q is read as %+v", s, h)
		}
	}
}

func TestCommonVersion(t *testing.T) {
	for _, tc := range []struct {
		a, b Versions
		want uint16
	}{{Versions{1, 2}, Versions{1, 2}, 2}, {Versions{1, 1}, Versions{1, 3}, 1}, {Versions{2, 5}, Versions{3, 9}, 5}, {Versions{1, 2}, Versions{3, 4}, 0}} {
		if got := tc.a.Common(tc.b); got != tc.want || tc.b.Common(tc.a) != got {
			t.Errorf("%s with %s: %d, expected %d", tc.a, tc.b, got, tc.want)
		}
	}
}

// FuzzWelcome: what is read of a server's hello is in its bounds and can be written again.
func FuzzWelcome(f *testing.F) {
	for _, w := range []Welcome{{2, Versions{1, 2}, "0.1.0"}, {9, Versions{9, 9}, "x"}} {
		b, err := EncodeWelcome(w)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte{0xa1, 1, 2})
	f.Add([]byte{0xa5, 1, 1, 2, 1, 3, 1, 4, 0x61, 'x', 5, 0xf6})
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := DecodeWelcome(b)
		if err != nil {
			return
		}
		again, err := EncodeWelcome(w)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := DecodeWelcome(again); err != nil || got != w {
			t.Errorf("%+v, %v; expected %+v", got, err, w)
		}
	})
}

func FuzzParseHello(f *testing.F) {
	f.Add("wl/1-2/0.1.0-dev")
	f.Add("wl/9999-9999/x")
	f.Fuzz(func(t *testing.T, s string) {
		if h, err := ParseHello(s); err == nil && (h.String() != s || h.Oldest == 0 || h.Oldest > h.Newest || len(s) > 80) {
			t.Errorf("%q is read as %s", s, h)
		}
	})
}
