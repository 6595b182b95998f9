package client

import (
	"bytes"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseBatch(t *testing.T) {
	rows, err := ParseBatch(strings.NewReader("\ufeffward,id,fingerprint,serial\nICU 2,icu-1,ABCD-EFGH-IJKL-MNOP,\nICU 2, icu-2 ,,10000000abcdef01\n"))
	want := []BatchFileRow{
		{ApprovalRow{ID: "icu-1", Ward: "ICU 2", Fingerprint: "ABCD-EFGH-IJKL-MNOP"}, 2},
		{ApprovalRow{ID: "icu-2", Ward: "ICU 2", Serial: "10000000abcdef01"}, 3},
	}
	if err != nil || !cmp.Equal(rows, want) {
		t.Errorf("%v, %s", err, cmp.Diff(want, rows))
	}
	for text, reason := range map[string]string{
		"":                                       "empty",
		"id,ward\na,b\n":                         "none of the columns",
		"serial\n1\n":                            "column id is missing",
		"id,serial,bed\na,1,2\n":                 `column "bed" is unknown`,
		"id,serial,id\na,1,2\n":                  "twice",
		"id,serial\n":                            "no rows",
		"id,serial\na\n":                         "line 2: 1 fields",
		"id,serial\n,1\n":                        "line 2: id is empty",
		"id,serial\na,\n":                        "line 2: none of",
		"id,serial\na,1\nb,2\na,3\n":             "line 4: id \"a\" is on line 2",
		"id,serial\n\"a,1\n":                     "batch:",
		"id,serial\n" + longRows(maxBatchRows+1): "more than",
	} {
		if _, err := ParseBatch(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%.40q: %v; expected %q", text, err, reason)
		}
	}
}

func longRows(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("g" + strings.Repeat("x", i%3) + string(rune('a'+i%26)) + strconv.Itoa(i) + ",1\n")
	}
	return b.String()
}

// FuzzParseBatch: whatever is read can be written and read again.
func FuzzParseBatch(f *testing.F) {
	f.Add("id,site,ward,profile,serial\nicu-1,main,\"ICU, 2\",default,123\n")
	f.Add("id,fingerprint,reason\nicu-1,ABCD-EFGH-IJKL-MNOP,\"refused: \"\"x\"\"\"\n")
	f.Add("id;serial\n")
	f.Fuzz(func(t *testing.T, text string) {
		rows, err := ParseBatch(strings.NewReader(text))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := WriteBatch(&out, rows, nil); err != nil {
			t.Fatal(err)
		}
		again, err := ParseBatch(&out)
		if err != nil || len(again) != len(rows) {
			t.Fatalf("%q: %d rows become %d, %v", text, len(rows), len(again), err)
		}
		for i := range rows {
			// A line break of another kind becomes the CSV's own.
			if clean(rows[i].ApprovalRow) != clean(again[i].ApprovalRow) {
				t.Errorf("%+v becomes %+v", rows[i], again[i])
			}
		}
	})
}

func clean(r ApprovalRow) ApprovalRow {
	r.Site, r.Ward, r.ID, r.Profile = strings.ReplaceAll(r.Site, "\r", ""), strings.ReplaceAll(r.Ward, "\r", ""), strings.ReplaceAll(r.ID, "\r", ""), strings.ReplaceAll(r.Profile, "\r", "")
	r.Serial, r.EK, r.Fingerprint = strings.ReplaceAll(r.Serial, "\r", ""), strings.ReplaceAll(r.EK, "\r", ""), strings.ReplaceAll(r.Fingerprint, "\r", "")
	return r
}
