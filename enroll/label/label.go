// Package label draws a gateway's fingerprint as a QR code: for the console of a box, for a terminal, and for paper. The code holds the
// fingerprint alone, so that a scanner types it wherever a person would: behind 'wardlink gateway approve', into a batch file.
package label

import (
	"fmt"
	"strings"

	"rsc.io/qr/coding"
)

// quiet is the light border that a reader needs, in modules (ISO/IEC 18004, 6.3.8).
const quiet = 4

// Code is a QR code of version 1: 21 by 21 modules, error correction level M.
type Code struct{ code *coding.Code }

// QR draws a fingerprint: at most 20 characters of QR's alphanumeric set (digits, capital letters, " $%*+-./:").
func QR(fingerprint string) (Code, error) {
	text := coding.Alpha(fingerprint)
	if err := text.Check(); err != nil {
		return Code{}, fmt.Errorf("QR code: %w", err)
	}
	if n := len(fingerprint); n == 0 || n > 20 {
		return Code{}, fmt.Errorf("QR code: %d characters; expected 1 to 20", n)
	}
	plan, err := coding.NewPlan(1, coding.M, 0)
	if err != nil {
		return Code{}, fmt.Errorf("QR code: %w", err)
	}
	code, err := plan.Encode(text)
	if err != nil {
		return Code{}, fmt.Errorf("QR code: %w", err)
	}
	return Code{code}, nil
}

// Size is the modules of an edge, the quiet zone with them.
func (c Code) Size() int { return c.code.Size + 2*quiet }

// Dark tells whether a module is; (0, 0) is the upper left corner of the quiet zone.
func (c Code) Dark(x, y int) bool {
	x, y = x-quiet, y-quiet
	return x >= 0 && y >= 0 && x < c.code.Size && y < c.code.Size && c.code.Black(x, y)
}

// Lines draws it in half blocks, two modules to a character: 29 wide, 15 high. With light, the light modules are drawn, as
// consoles are dark; without it the dark ones, for black on white.
func (c Code) Lines(light bool) []string {
	var out []string
	for y := 0; y < c.Size(); y += 2 {
		var b strings.Builder
		for x := range c.Size() {
			upper, lower := c.Dark(x, y) != light, y+1 < c.Size() && c.Dark(x, y+1) != light
			switch {
			case upper && lower:
				b.WriteRune('█')
			case upper:
				b.WriteRune('▀')
			case lower:
				b.WriteRune('▄')
			default:
				b.WriteByte(' ')
			}
		}
		out = append(out, b.String())
	}
	return out
}

// SVG is an image that fills what it stands in: dark modules as one path, so that no seams are printed.
func (c Code) SVG() string {
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" shape-rendering="crispEdges"><rect width="100%%" height="100%%" fill="#fff"/><path d="`, c.Size(), c.Size())
	for y := range c.Size() {
		for x := 0; x < c.Size(); x++ {
			run := 0
			for c.Dark(x+run, y) {
				run++
			}
			if run > 0 {
				fmt.Fprintf(&b, "M%d %dh%dv1h-%dz", x, y, run, run)
				x += run
			}
		}
	}
	b.WriteString(`"/></svg>`)
	return b.String()
}
