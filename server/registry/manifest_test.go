package registry_test

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"wardlink/internal/spiffe"
	"wardlink/server/registry"
)

func hexEK(s string) string { e := ek(s); return hex.EncodeToString(e[:]) }

func TestParseManifest(t *testing.T) {
	in := "\ufeffward,id,ek_sha256,profile\r\n" +
		`"ICU 2, left",gw-1,` + hexEK("one") + " " + strings.ToUpper(hexEK("two")) + ",default\r\n\r\n" +
		"ICU 3,gw-2, " + hexEK("three") + " ,\r\n"
	got, err := registry.ParseManifest(strings.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Ward != "ICU 2, left" || got[0].Profile != "default" || got[1].Profile != "default" || got[1].ID != "gw-2" ||
		!slices.Equal(got[0].EKs, [][32]byte{ek("one"), ek("two")}) {
		t.Fatalf("%+v", got)
	}
}

func TestParseManifestErrorsNameLineAndMend(t *testing.T) {
	one, two := hexEK("one"), hexEK("two")
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"empty":          {"", []string{"empty", "id,ek_sha256,site,ward,profile"}},
		"unknown column": {"id,ek_sha256,bed\n", []string{"line 1", `"bed"`, "expected"}},
		"missing column": {"id,site\n", []string{"line 1", "ek_sha256", "missing"}},
		"column twice":   {"id,id,ek_sha256\n", []string{"line 1", "twice"}},
		"fields":         {"id,ek_sha256\ngw-1\n", []string{"line 2", "1 fields", "expected 2"}},
		"bad id":         {"id,ek_sha256\nGW 1," + one + "\n", []string{"line 2", "a-z"}},
		"bad hash":       {"id,ek_sha256\ngw-1,abc\n", []string{"line 2", "64 hex digits"}},
		"no hash":        {"id,ek_sha256\ngw-1,\n", []string{"line 2", "64 hex digits"}},
		"bad profile":    {"id,ek_sha256,profile\ngw-1," + one + ",All\n", []string{"line 2", "profile"}},
		"id twice":       {"id,ek_sha256\ngw-1," + one + "\ngw-1," + two + "\n", []string{"line 3", "line 2 already"}},
		"key twice":      {"id,ek_sha256\ngw-1," + one + "\ngw-2," + one + "\n", []string{"line 3", "line 2 already", "one TPM is one gateway"}},
		"several":        {"id,ek_sha256\nA," + one + "\n\nB," + two + "\n", []string{"line 2", "line 4"}},
		"quote":          {"id,ek_sha256\ngw-1,\"" + one + "\n", []string{"line"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := registry.ParseManifest(strings.NewReader(c.in))
			if err == nil {
				t.Fatalf("taken: %+v", got)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

type endless struct{ n int }

func (e *endless) Read(p []byte) (int, error) {
	e.n += len(p)
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

func TestParseManifestIsBounded(t *testing.T) {
	e := &endless{}
	if _, err := registry.ParseManifest(e); err == nil {
		t.Error("an endless line was taken")
	}
	if e.n > 64<<20 {
		t.Errorf("%d bytes were read", e.n)
	}
	var b strings.Builder
	b.WriteString("id,ek_sha256\n")
	for i := range 30 {
		fmt.Fprintf(&b, "bad id %d,x\n", i)
	}
	_, err := registry.ParseManifest(strings.NewReader(b.String()))
	if n := strings.Count(fmt.Sprint(err), "\n") + 1; n > 20 {
		t.Errorf("%d errors reported at once", n)
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add([]byte("id,ek_sha256,site,ward,profile\ngw-1," + hexEK("one") + ",North,ICU,default\n"))
	f.Add([]byte("\xef\xbb\xbfek_sha256,id\r\n\"" + hexEK("one") + " " + hexEK("two") + "\",gw-1\r\n"))
	f.Add([]byte("id,ek_sha256\n\"a\nb\",\"\"\"\n"))
	f.Add([]byte("id,ek_sha256,site\ngw-1,zz,\x00\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		gs, err := registry.ParseManifest(strings.NewReader(string(data)))
		if err != nil {
			return
		}
		seen := make(map[[32]byte]bool)
		for _, g := range gs {
			if spiffe.ValidName(g.ID) != nil || len(g.EKs) == 0 || g.Profile == "" {
				t.Errorf("%+v", g)
			}
			for _, e := range g.EKs {
				if seen[e] {
					t.Errorf("one key twice: %+v", g)
				}
				seen[e] = true
			}
		}
	})
}
