package main

import (
	"bytes"
	"io"
	"text/tabwriter"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// table prints columns that are aligned where a terminal shows them: it gives letters of East Asia two places (Unicode, UAX #11), and
// tabwriter counts each as one.
func (t *tool) table(fill func(w io.Writer)) error {
	w := tabwriter.NewWriter(unfilled{t.out}, 0, 0, 2, ' ', 0)
	fill(filled{w})
	return w.Flush()
}

// filler stands for the second place of a wide letter on its way through tabwriter; it is no character, and in no text.
const filler = '\ufdd0'

type filled struct{ to io.Writer }

func (f filled) Write(b []byte) (int, error) {
	out := make([]byte, 0, len(b))
	for _, r := range string(b) {
		out = utf8.AppendRune(out, r)
		switch width.LookupRune(r).Kind() {
		case width.EastAsianWide, width.EastAsianFullwidth:
			out = utf8.AppendRune(out, filler)
		}
	}
	if _, err := f.to.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}

type unfilled struct{ to io.Writer }

func (u unfilled) Write(b []byte) (int, error) {
	if _, err := u.to.Write(bytes.ReplaceAll(b, []byte(string(filler)), nil)); err != nil {
		return 0, err
	}
	return len(b), nil
}
