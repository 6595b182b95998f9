package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// stages prints one line for each stage; the line of the present stage is rewritten where the terminal can.
type stages struct {
	out   io.Writer
	plain bool

	mu      sync.Mutex
	name    string
	started time.Time
	width   int
}

func (s *stages) begin(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name, s.started, s.width = name, time.Now(), 0
	if !s.plain {
		s.line("…", "")
	}
}

// progress rewrites the line; a plain output is spared it.
func (s *stages) progress(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.plain {
		s.line("…", fmt.Sprintf(format, args...))
	}
}

// note prints a line within a stage.
func (s *stages) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.plain {
		fmt.Fprintf(s.out, "\r%s\r", strings.Repeat(" ", s.width))
	}
	fmt.Fprintf(s.out, "     %s\n", fmt.Sprintf(format, args...))
}

func (s *stages) done(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.line("ok", fmt.Sprintf(format, args...))
	fmt.Fprintln(s.out)
}

func (s *stages) line(mark, text string) {
	paint := func(m string) string { return m }
	if !s.plain && mark == "ok" {
		paint = func(m string) string { return "\x1b[32m" + m + "\x1b[0m" }
	}
	body := fmt.Sprintf("%-12s %s", s.name, text)
	if mark == "ok" {
		body += fmt.Sprintf("  (%.1f s)", time.Since(s.started).Seconds())
	}
	pad := max(0, s.width-len([]rune(body)))
	s.width = len([]rune(body))
	lead := "\r"
	if s.plain {
		lead = ""
	}
	fmt.Fprintf(s.out, "%s%s%s%s%s", lead, paint(fmt.Sprintf("%2s", mark)), "   ", body, strings.Repeat(" ", pad))
}
