package main

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

// TestTableOfWideLetters: a ward in Tokyo does not push the columns after it aside.
func TestTableOfWideLetters(t *testing.T) {
	var out bytes.Buffer
	if err := (&tool{out: &out}).table(func(w io.Writer) {
		fmt.Fprintln(w, "WARD\tSTATE\tN")
		fmt.Fprintln(w, "集中治療室\tapproved\t1")
		fmt.Fprintln(w, "ICU 3\twartet für Ｏ\t22")
	}); err != nil {
		t.Fatal(err)
	}
	const want = "WARD        STATE          N\n集中治療室  approved       1\nICU 3       wartet für Ｏ  22\n"
	if out.String() != want {
		t.Errorf("%s\nwant\n%s", out.String(), want)
	}
}
