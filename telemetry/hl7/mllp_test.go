package hl7

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// frames reads a stream to its end: messages as they are, errors as their text in angle brackets.
func frames(r *Reader) []string {
	var got []string
	for range 100 {
		msg, err := r.Next()
		switch {
		case err == nil:
			got = append(got, string(msg))
		case errors.Is(err, ErrFraming):
			got = append(got, "<framing:"+string(msg)+">")
		case errors.Is(err, ErrTooLong):
			if got = append(got, "<long:"+string(msg)+">"); r.Lost() {
				return got
			}
		case errors.Is(err, io.EOF):
			return got
		default:
			return append(got, "<"+err.Error()+">")
		}
	}
	return append(got, "<endless>")
}

func TestReader(t *testing.T) {
	const max = 10
	for name, c := range map[string]struct {
		in   string
		want []string
	}{
		"nothing":                {"", nil},
		"one":                    {"\vMSH\x1c\r", []string{"MSH"}},
		"pipelined":              {"\va\x1c\r\vb\x1c\r", []string{"a", "b"}},
		"empty message":          {"\v\x1c\r\vb\x1c\r", []string{"", "b"}},
		"blanks between":         {"\r\n \va\x1c\r\r\n\x00\vb\x1c\r\n", []string{"a", "b"}},
		"longest":                {"\v0123456789\x1c\r", []string{"0123456789"}},
		"too long":               {"\v0123456789A\x1c\r\vb\x1c\r", []string{"<long:0123456789>", "b"}},
		"too long, with FS":      {"\v0123456789A\x1cB\x1c\r \vb\x1c\r", []string{"<long:0123456789>", "b"}},
		"too long by much":       {"\v" + strings.Repeat("x", 165) + "\x1c\r\vb\x1c\r", []string{"<long:xxxxxxxxxx>", "b"}},
		"too long by far":        {"\v" + strings.Repeat("x", 180) + "\x1c\r\vb\x1c\r", []string{"<long:xxxxxxxxxx>", "<long:>"}},
		"too long, x after":      {"\v0123456789A\x1c\rx\vb\x1c\rx\vc\x1c\r", []string{"<long:0123456789>", "b", "<framing:x>", "c"}},
		"too long without end":   {"\v" + strings.Repeat("x", 50), []string{"<long:xxxxxxxxxx>"}},
		"junk, then a frame":     {"junk\vb\x1c\r", []string{"<framing:junk>", "b"}},
		"endless junk":           {strings.Repeat("x", 50), []string{"<framing:xxxxxxxxxx", "<long:>"}},
		"sender begins anew":     {"\vhalf\vb\x1c\r", []string{"<framing:half>", "b"}},
		"FS without CR":          {"\va\x1c\vb\x1c\r", []string{"<framing:a>", "b"}},
		"FS within":              {"\va\x1cz\x1c\r\vb\x1c\r", []string{"<framing:a>", "b"}},
		"ends within":            {"\va", []string{"<unexpected EOF>"}},
		"ends within the ending": {"\va\x1c", []string{"<unexpected EOF>"}},
	} {
		for way, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "by byte": iotest.OneByteReader} {
			got := frames(NewReader(wrap(strings.NewReader(c.in)), max))
			if name == "endless junk" || strings.Contains(name, "junk") && way == "by byte" {
				// How much junk comes with the error depends on how it arrives; what follows does not.
				if len(got) == 0 || !strings.HasPrefix(got[0], "<framing:") || name != "endless junk" && got[len(got)-1] != "b" {
					t.Errorf("%s, %s: %q", name, way, got)
				}
				continue
			}
			if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
				t.Errorf("%s, %s: %q, want %q", name, way, got, c.want)
			}
		}
	}
}

func TestReaderBoundsJunk(t *testing.T) {
	r := NewReader(strings.NewReader(strings.Repeat("x", 1<<20)), 100)
	if _, err := r.Next(); !errors.Is(err, ErrFraming) {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := r.Next(); !errors.Is(err, ErrTooLong) {
			t.Fatal(err)
		}
	}
}

func TestWriteFrame(t *testing.T) {
	var b bytes.Buffer
	if err := WriteFrame(&b, []byte("MSH|")); err != nil || b.String() != "\vMSH|\x1c\r" {
		t.Errorf("%q, %v", b.String(), err)
	}
	for _, msg := range []string{"a\x1cb", "a\vb"} {
		if err := WriteFrame(io.Discard, []byte(msg)); err == nil {
			t.Errorf("%q is written as one frame", msg)
		}
	}
}

func FuzzReader(f *testing.F) {
	for _, s := range []string{"", "\vMSH\x1c\r", "x\va\x1cb\x1c\r\vc", "\va\v\x1c\r", "\r\n\x00\v\x1c\r\x1c\v"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		const max = 64
		whole, byByte := NewReader(bytes.NewReader(in), max), NewReader(iotest.OneByteReader(bytes.NewReader(in)), max)
		a, b := messages(t, whole, max), messages(t, byByte, max)
		if strings.Join(a, "\v") != strings.Join(b, "\v") {
			t.Errorf("messages depend on how bytes arrive: %q and %q", a, b)
		}
		for _, m := range a {
			var again bytes.Buffer
			if err := WriteFrame(&again, []byte(m)); err != nil || !bytes.Contains(in, again.Bytes()) {
				t.Errorf("%q was not framed in the stream", m)
			}
		}
	})
}

func messages(t *testing.T, r *Reader, max int) []string {
	var got []string
	for {
		msg, err := r.Next()
		if len(msg) > max && !errors.Is(err, ErrFraming) {
			t.Fatalf("%d bytes of at most %d", len(msg), max)
		}
		switch {
		case err == nil:
			got = append(got, string(msg))
		case !errors.Is(err, ErrFraming) && (!errors.Is(err, ErrTooLong) || r.Lost()):
			return got
		}
	}
}
