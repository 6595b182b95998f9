package main

import (
	"bytes"
	"encoding/csv"
	"strings"
	"testing"
	"time"
	"unicode"

	"wardlink/server/api/client"
)

// TestAssetsAreSafeInASpreadsheet: nothing that a box or an operator chose begins a formula, a row or a column.
func TestAssetsAreSafeInASpreadsheet(t *testing.T) {
	seen := time.Date(2026, 5, 4, 3, 2, 1, 0, time.FixedZone("", 3600))
	bad := []string{"=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "a,b\"c", "a\r\n=1", " =1", "\u00a0 -1", "a;=1", "a; @b", "a|+1", "a\"=1", "\uff1d1"}
	var assets []client.Asset
	for _, s := range bad {
		assets = append(assets, client.Asset{ID: "gw-1", Ward: s, Serial: s, Model: s, EK: []string{"ab", "cd"}, Seen: &seen})
	}
	var out bytes.Buffer
	if err := writeAssets(&out, assets); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, `"`) || !strings.HasSuffix(line, "\"\r\n") || strings.Count(line, `","`) != len(assetColumns)-1 {
			t.Errorf("not quoted: %q", line)
		}
	}
	rows, err := csv.NewReader(&out).ReadAll()
	if err != nil || len(rows) != len(bad)+1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	for _, row := range rows[1:] {
		for i, v := range row {
			for _, part := range strings.FieldsFunc(" "+v, func(r rune) bool { return strings.ContainsRune(";,|\"", r) }) { // as any spreadsheet may take it apart
				if part = strings.TrimFunc(part, unicode.IsSpace); part != "" && strings.ContainsRune("=+-@\uff1d", []rune(part)[0]) || strings.ContainsAny(v, "\t\r\n") {
					t.Errorf("%s: %q", rows[0][i], v)
				}
			}
		}
		if row[0] != "gw-1" || row[7] != "ab cd" || row[14] != "2026-05-04T02:02:01Z" {
			t.Errorf("row %q", row)
		}
	}
	want := "id state site ward profile not_before not_after ek_sha256 tpm_manufacturer tpm_model tpm_firmware serial_number agent_version first_registered last_seen certificate_ends boot_state boot_policy quarantined_since"
	if got := strings.Join(rows[0], " "); got != want { // others read them by name and place
		t.Errorf("columns %q", got)
	}
}
