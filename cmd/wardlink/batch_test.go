package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// TestBatchOfASpreadsheet: what Excel writes in Germany is read like what it writes elsewhere.
func TestBatchOfASpreadsheet(t *testing.T) {
	read := func(text string) any {
		t.Helper()
		file := filepath.Join(t.TempDir(), "batch.csv")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		rows, err := readBatch(file)
		if err != nil || len(rows) != 2 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		return rows
	}
	commas := read("\ufeffid,ward,fingerprint\r\nicu-1,\"ICU 3, left\",ABCD-EFGH-IJKL-MNOP\r\nicu-2,a;b,ABCD-EFGH-IJKL-MNOQ\r\n")
	semicolons := read("\ufeffid;ward;fingerprint\r\nicu-1;ICU 3, left;ABCD-EFGH-IJKL-MNOP\r\nicu-2;\"a;b\";ABCD-EFGH-IJKL-MNOQ\r\n")
	if !reflect.DeepEqual(commas, semicolons) {
		t.Errorf("%+v\n%+v", commas, semicolons)
	}
}
