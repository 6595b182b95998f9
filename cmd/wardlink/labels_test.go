package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// labelsOf runs 'wardlink provision labels' on a batch file, which needs no server.
func labelsOf(t *testing.T, rows string, args ...string) (code int, out, errs string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "gateways.csv")
	if err := os.WriteFile(file, []byte(rows), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	code = run(context.Background(), append([]string{"provision", "labels", "--batch", file}, args...), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func TestLabels(t *testing.T) {
	rows := "id,site,ward,serial,ek_sha256,fingerprint\n" +
		"icu-1,main,\"ICU <b>3</b>, east\",,,abcd-efgh-ijkl-mnop\n" +
		"icu-2,main,ICU 4,S-2,00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff,\n" +
		"icu-3,north,ICU 4,S-3,,\n"
	code, out, errs := labelsOf(t, rows)
	if code != 0 || strings.Count(out, `class="label"`) != 3 || strings.Count(out, "<svg") != 2 || strings.Count(out, "<section") != 1 {
		t.Fatalf("%d, %s\n%s", code, errs, out)
	}
	for _, want := range []string{"ICU &lt;b&gt;3&lt;/b&gt;, east", "ABCD-EFGH-", "AAIS-EM2E-", "serial S-3", "size: A4", "repeat(3, 1fr)"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in the sheet", want)
		}
	}
	if strings.Contains(out, "<script") || strings.Contains(out, "src=") || strings.Contains(out, "<b>") || strings.Contains(out, "ZgotmplZ") {
		t.Error("the sheet needs something from elsewhere, or a ward's name is markup in it")
	}
	if code, out, _ := labelsOf(t, rows, "--ward", "ICU 4", "--site", "main", "--page", "letter", "--columns", "2"); code != 0 || strings.Count(out, `class="label"`) != 1 || !strings.Contains(out, "width: 215.9mm") {
		t.Errorf("chosen by ward and site: %d\n%s", code, out)
	}
	code, out, _ = labelsOf(t, rows, "--format", "text", "--gateway", "icu-2")
	if code != 0 || !strings.Contains(out, "icu-2") || strings.Contains(out, "icu-1") || strings.Count(out, "\n") != 16 {
		t.Errorf("text: %d\n%s", code, out)
	}
	many := "id,fingerprint\n"
	for i := range 25 {
		many += fmt.Sprintf("gw-%d,ABCD-EFGH-IJKL-MNOP\n", i)
	}
	if code, out, _ := labelsOf(t, many); code != 0 || strings.Count(out, "<section") != 2 {
		t.Errorf("25 labels of 24 to a sheet: %d, %d sheets", code, strings.Count(out, "<section"))
	}
	for name, c := range map[string]struct {
		rows, says string
		args       []string
	}{
		"no fingerprint":  {"id,fingerprint\nicu-1,ABCDEFGH\n", "expected one such as", nil},
		"no hash":         {"id,ek_sha256\nicu-1,abcd\n", "64 hex digits", nil},
		"nobody fits":     {rows, "no gateway fits", []string{"--ward", "ICU 9"}},
		"a strange page":  {rows, "A4 or letter", []string{"--page", "A3"}},
		"a strange sheet": {rows, "1 to 10", []string{"--columns", "0"}},
		"both sources":    {rows, "choose one", []string{"--waiting"}},
	} {
		if code, out, errs := labelsOf(t, c.rows, c.args...); code != 1 || !strings.Contains(errs, c.says) || out != "" {
			t.Errorf("%s: %d %q; expected %q", name, code, errs, c.says)
		}
	}
}
