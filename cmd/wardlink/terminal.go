package main

import (
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// terminal is the terminal that somebody sits at, if v is one. /dev/null, a character device as well, is none.
func terminal(v any) (*os.File, bool) {
	f, ok := v.(*os.File)
	if !ok {
		return nil, false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return f, err == nil
}

// isTerminal is enough to decide about colour and overwritten lines.
func isTerminal(v any) bool {
	_, ok := terminal(v)
	return ok && os.Getenv("TERM") != "dumb"
}

// wantsColour: a terminal, unless NO_COLOR is set (no-color.org) or the terminal can do none.
func wantsColour(out io.Writer) bool { return isTerminal(out) && os.Getenv("NO_COLOR") == "" }

// screenSize is what a terminal shows, in columns and lines; 0 when nobody knows.
func screenSize(out io.Writer) (width, height int) {
	f, ok := out.(*os.File)
	if !ok {
		return 0, 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return int(size.Col), int(size.Row)
}

// printable keeps from the terminal what a file or a peer put into a word to move the cursor or to hide a line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
