package label

import (
	"crypto/sha256"
	"fmt"
	"image"
	"image/color"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/makiuchi-d/gozxing"
	"github.com/makiuchi-d/gozxing/qrcode"

	"wardlink/enroll"
)

// read is what a scanner makes of an image.
func read(t *testing.T, dark func(x, y int) bool, size int) string {
	t.Helper()
	const scale = 4
	img := image.NewGray(image.Rect(0, 0, size*scale, size*scale))
	for y := range size * scale {
		for x := range size * scale {
			c := color.Gray{Y: 255}
			if dark(x/scale, y/scale) {
				c.Y = 0
			}
			img.SetGray(x, y, c)
		}
	}
	bmp, err := gozxing.NewBinaryBitmapFromImage(img)
	if err != nil {
		t.Fatal(err)
	}
	got, err := qrcode.NewQRCodeReader().Decode(bmp, nil)
	if err != nil {
		t.Fatalf("not readable: %v", err)
	}
	return got.GetText()
}

// TestScannersReadIt: an independent reader finds each fingerprint in the modules, in the characters of a console and in the SVG.
func TestScannersReadIt(t *testing.T) {
	for i := range 200 {
		want := enroll.Fingerprint(sha256.Sum256([]byte(fmt.Sprint(i))))
		c, err := QR(want)
		if err != nil {
			t.Fatal(err)
		}
		if got := read(t, c.Dark, c.Size()); got != want {
			t.Fatalf("read %q; expected %q", got, want)
		}
		if i > 20 {
			continue
		}
		for _, light := range []bool{true, false} {
			lines := c.Lines(light)
			if n := utf8.RuneCountInString(lines[0]); n != 29 || len(lines) != 15 {
				t.Fatalf("%d by %d characters", n, len(lines))
			}
			drawn := func(x, y int) bool {
				r := []rune(lines[y/2])[x]
				return r == '█' || r == '▀' && y%2 == 0 || r == '▄' && y%2 == 1
			}
			if got := read(t, func(x, y int) bool { return drawn(x, y) != light }, c.Size()); got != want {
				t.Errorf("from characters: %q; expected %q", got, want)
			}
		}
		dark := map[[2]int]bool{}
		for _, m := range regexp.MustCompile(`M(\d+) (\d+)h(\d+)v1h-(\d+)z`).FindAllStringSubmatch(c.SVG(), -1) {
			x, y, n := number(t, m[1]), number(t, m[2]), number(t, m[3])
			for k := range n {
				dark[[2]int{x + k, y}] = true
			}
		}
		if got := read(t, func(x, y int) bool { return dark[[2]int{x, y}] }, c.Size()); got != want {
			t.Errorf("from SVG: %q; expected %q", got, want)
		}
	}
}

func number(t *testing.T, s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestWhatIsNoFingerprint(t *testing.T) {
	for _, text := range []string{"", "abcd", strings.Repeat("A", 21), "A\x1b"} {
		if _, err := QR(text); err == nil {
			t.Errorf("%q is drawn", text)
		}
	}
}
