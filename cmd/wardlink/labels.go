package main

import (
	"bytes"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"wardlink/enroll"
	"wardlink/enroll/label"
	"wardlink/internal/durable"
	"wardlink/server/api/client"
)

//go:embed labels.html
var labelPage string

// sticker is what one label says.
type sticker struct {
	ID, Site, Ward, Serial string
	Fingerprint            string // "" of a batch row that names its gateway by serial number alone
	More                   int    // endorsement keys beside the one whose fingerprint it is
	QR                     template.HTML
	code                   label.Code
}

// labelOptions are the flags of 'provision labels'.
type labelOptions struct {
	batch         string
	gateways      []string
	site, ward    string
	waiting       bool
	format, page  string
	columns, rows int
	out           string
}

// pages are the sizes of paper, in millimetres.
var pages = map[string][2]float64{"A4": {210, 297}, "letter": {215.9, 279.4}}

func (t *tool) labels() *cobra.Command {
	var o labelOptions
	c := &cobra.Command{
		Use: "labels", Short: "Print a sheet of labels: id, ward, fingerprint and its QR code", Args: none(""),
		Long: `Makes a sheet of labels for boxes: id, site, ward, fingerprint, and the fingerprint as a QR code, which a scanner types behind
'wardlink gateway approve' or into a batch file. The labels are those of registered gateways, of gateways that wait (--waiting: the id is
left to be written), or of the rows of a batch file (--batch: needs no server).

The sheet is one HTML page that any browser prints, for self-adhesive sheets of --columns by --rows labels without margins: 3 by 8 labels of
70 x 37 mm on A4 unless told otherwise. Print it at 100 %, without headers and footers. --format text is for a terminal.`,
		Example: `  wardlink provision labels --out labels.html
  wardlink provision labels --ward icu-3 --columns 2 --rows 7 --out labels.html
  wardlink provision labels --waiting --format text
  wardlink provision labels --batch gateways.csv --out labels.html`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			size, known := pages[o.page]
			switch {
			case !known:
				return fmt.Errorf("--page: %q; expected A4 or letter", o.page)
			case o.format != "html" && o.format != "text":
				return fmt.Errorf("--format: %q; expected html or text", o.format)
			case o.columns < 1 || o.columns > 10 || o.rows < 1 || o.rows > 20:
				return errors.New("--columns, --rows: expected 1 to 10 and 1 to 20")
			case o.batch != "" && o.waiting:
				return errors.New("--batch and --waiting: a label is of a batch's row or of a gateway that waits; choose one")
			}
			stickers, err := t.stickers(cmd, o)
			if err != nil {
				return err
			}
			if len(stickers) == 0 {
				return errors.New("no gateway fits; 'wardlink gateway list' shows those that are there")
			}
			var text bytes.Buffer
			if o.format == "text" {
				printStickers(&text, stickers)
			} else if err := writeSheet(&text, stickers, o, size); err != nil {
				return err
			}
			if o.out == "" || o.out == "-" {
				_, err := t.out.Write(text.Bytes())
				return err
			}
			if err := durable.WriteFile(o.out, text.Bytes(), 0o644); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(map[string]any{"file": o.out, "labels": len(stickers)})
			}
			fmt.Fprintf(t.err, "%s: %d labels; open it in a browser and print it at 100 %%\n", o.out, len(stickers))
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&o.batch, "batch", "", "of the rows of this batch `FILE`, as 'gateway approve --batch' reads it")
	f.StringArrayVar(&o.gateways, "gateway", nil, "only of gateway `ID` (may be given again)")
	f.StringVar(&o.site, "site", "", "only of `SITE`")
	f.StringVar(&o.ward, "ward", "", "only of `WARD`")
	f.BoolVar(&o.waiting, "waiting", false, "of the gateways that wait for approval")
	f.StringVar(&o.format, "format", "html", "html or text")
	f.StringVar(&o.page, "page", "A4", "paper: A4 or letter")
	f.IntVar(&o.columns, "columns", 3, "labels beside each other")
	f.IntVar(&o.rows, "rows", 8, "labels below each other")
	f.StringVar(&o.out, "out", "", "write to `FILE` instead of standard output")
	return c
}

// stickers gathers the labels that were asked for, in the order of their source.
func (t *tool) stickers(cmd *cobra.Command, o labelOptions) (out []sticker, err error) {
	if o.batch != "" {
		out, err = batchStickers(o.batch)
	} else {
		out, err = t.listedStickers(cmd, o.waiting)
	}
	if err != nil {
		return nil, err
	}
	out = slices.DeleteFunc(out, func(s sticker) bool {
		return o.site != "" && s.Site != o.site || o.ward != "" && s.Ward != o.ward || len(o.gateways) > 0 && !slices.Contains(o.gateways, s.ID)
	})
	for i := range out {
		s := &out[i]
		if s.Fingerprint == "" {
			continue
		}
		if s.code, err = label.QR(s.Fingerprint); err != nil || !wholeFingerprint(s.Fingerprint) {
			return nil, fmt.Errorf("gateway %s: fingerprint %.40q: expected one such as ABCD-EFGH-IJKL-MNOP", printable(s.ID), s.Fingerprint)
		}
		s.QR = template.HTML(s.code.SVG()) // of digits and our own words alone
	}
	return out, nil
}

func batchStickers(file string) (out []sticker, err error) {
	rows, err := readBatch(file)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		s := sticker{ID: r.ID, Site: r.Site, Ward: r.Ward, Serial: r.Serial, Fingerprint: strings.ToUpper(r.Fingerprint)}
		if r.EK != "" {
			if s.Fingerprint, err = shortOf(r.EK); err != nil {
				return nil, fmt.Errorf("%s: line %d: %w", file, r.Line, err)
			}
		}
		out = append(out, s)
	}
	return out, nil
}

func (t *tool) listedStickers(cmd *cobra.Command, waiting bool) (out []sticker, err error) {
	c, err := t.client()
	if err != nil {
		return nil, err
	}
	var list client.GatewayList
	if err := c.Get(cmd.Context(), "/v1/gateways", nil, &list); err != nil {
		return nil, err
	}
	if waiting {
		for _, w := range list.Waiting {
			out = append(out, sticker{Fingerprint: w.Fingerprint, Serial: w.Serial})
		}
		return out, nil
	}
	for _, g := range list.Gateways {
		s := sticker{ID: g.ID, Site: g.Site, Ward: g.Ward, More: max(0, len(g.EK)-1)}
		if len(g.EK) > 0 {
			if s.Fingerprint, err = shortOf(g.EK[0]); err != nil {
				return nil, fmt.Errorf("gateway %s: %w", g.ID, err)
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// wholeFingerprint tells whether it is as boxes show it: four groups of four.
func wholeFingerprint(s string) bool {
	return len(s) == 19 && s[4] == '-' && s[9] == '-' && s[14] == '-'
}

// shortOf is the fingerprint of an EK hash in hex.
func shortOf(ek string) (string, error) {
	raw, err := hex.DecodeString(ek)
	if err != nil || len(raw) != 32 {
		return "", fmt.Errorf("ek_sha256 %.70q: expected 64 hex digits", ek)
	}
	return enroll.Fingerprint([32]byte(raw)), nil
}

// printStickers draws labels for a terminal: black on white is what a scanner expects, so the light is drawn, for dark screens.
func printStickers(w io.Writer, stickers []sticker) {
	for _, s := range stickers {
		facts := []string{orDash(s.ID), strings.Trim(s.Site+" · "+s.Ward, " ·"), s.Fingerprint}
		if s.Serial != "" {
			facts = append(facts, "serial "+s.Serial)
		}
		if s.More > 0 {
			facts = append(facts, fmt.Sprintf("and %d more of its keys", s.More))
		}
		var lines []string
		if s.Fingerprint != "" {
			lines = s.code.Lines(true)
		}
		for i := range max(len(lines), len(facts)+4) {
			left, right := strings.Repeat(" ", 29), ""
			if i < len(lines) {
				left = lines[i]
			}
			if k := i - 4; k >= 0 && k < len(facts) {
				right = printable(facts[k])
			}
			fmt.Fprintln(w, strings.TrimRight("  "+left+"   "+right, " "))
		}
		fmt.Fprintln(w)
	}
}

// writeSheet makes the HTML page, a sheet after the other.
func writeSheet(w io.Writer, stickers []sticker, o labelOptions, size [2]float64) error {
	page, err := template.New("labels").Parse(labelPage)
	if err != nil {
		return err
	}
	return page.Execute(w, map[string]any{
		"Page": o.page, "Width": size[0], "Height": size[1], "Columns": o.columns, "Rows": o.rows,
		"Sheets": slices.Collect(slices.Chunk(stickers, o.columns*o.rows)),
	})
}
