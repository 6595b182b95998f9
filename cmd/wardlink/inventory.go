package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardlink/internal/durable"
	"wardlink/server/api/client"
)

func (t *tool) inventory() *cobra.Command {
	return group("inventory", "Export all gateways for a register of assets", t.inventoryExport())
}

// assetColumns are the columns of the CSV. New ones are added at the end.
var assetColumns = []struct {
	name  string
	value func(client.Asset) string
}{
	{"id", func(a client.Asset) string { return a.ID }},
	{"state", func(a client.Asset) string { return a.State }},
	{"site", func(a client.Asset) string { return a.Site }},
	{"ward", func(a client.Asset) string { return a.Ward }},
	{"profile", func(a client.Asset) string { return a.Profile }},
	{"not_before", func(a client.Asset) string { return instantCell(a.NotBefore) }},
	{"not_after", func(a client.Asset) string { return instantCell(a.NotAfter) }},
	{"ek_sha256", func(a client.Asset) string { return strings.Join(a.EK, " ") }},
	{"tpm_manufacturer", func(a client.Asset) string { return a.Maker }},
	{"tpm_model", func(a client.Asset) string { return a.Model }},
	{"tpm_firmware", func(a client.Asset) string { return a.Firmware }},
	{"serial_number", func(a client.Asset) string { return a.Serial }},
	{"agent_version", func(a client.Asset) string { return a.Agent }},
	{"first_registered", func(a client.Asset) string { return instantCell(a.Added) }},
	{"last_seen", func(a client.Asset) string { return instantCell(a.Seen) }},
	{"certificate_ends", func(a client.Asset) string { return instantCell(a.CertificateEnds) }},
	{"boot_state", func(a client.Asset) string { return a.Boot }},
	{"boot_policy", func(a client.Asset) string { return a.BootPolicy }},
	{"quarantined_since", func(a client.Asset) string { return instantCell(a.Quarantined) }},
}

func instantCell(at *time.Time) string {
	if at == nil {
		return ""
	}
	return at.UTC().Format(time.RFC3339)
}

// formula is where a spreadsheet would take what follows for a formula (OWASP, CSV Injection): at the beginning of a cell, blanks before it or not, and behind
// what some country's spreadsheet takes for a separator or for the end of a quoted cell.
var formula = regexp.MustCompile("(^|[;,|\"])([\\s\\p{Z}]*[=+\\-@\uff1d\uff0b\uff0d\uff20])")

// cell makes a text that others chose harmless to a spreadsheet, and quotes it (RFC 4180).
func cell(s string) string {
	return `"` + strings.ReplaceAll(formula.ReplaceAllString(printable(s), "$1'$2"), `"`, `""`) + `"`
}

// writeAssets writes assets as CSV (RFC 4180), with a header.
func writeAssets(w io.Writer, assets []client.Asset) error {
	var text strings.Builder
	line := func(value func(i int) string) {
		for i := range assetColumns {
			if i > 0 {
				text.WriteByte(',')
			}
			text.WriteString(cell(value(i)))
		}
		text.WriteString("\r\n")
	}
	line(func(i int) string { return assetColumns[i].name })
	for _, a := range assets {
		line(func(i int) string { return assetColumns[i].value(a) })
	}
	_, err := io.WriteString(w, text.String())
	return err
}

func (t *tool) inventoryExport() *cobra.Command {
	var format, file string
	c := &cobra.Command{
		Use: "export [--format csv|json] [--out FILE]", Short: "Write every gateway, those that are gone among them", Args: none("--out"),
		Long: "Writes every gateway that was ever registered: identity, TPM, place, state, versions, certificate and boot. Columns keep their names and places; new\n" +
			"ones come at the end. Times are UTC. In CSV a text that a spreadsheet would take for a formula has an apostrophe before it. What the box says of its\n" +
			"serial number and its TPM proves nothing; ek_sha256 does. It holds no patient.",
		Example: `  wardlink inventory export --out gateways.csv
  wardlink inventory export --format json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if t.json {
				format = "json"
			}
			if format != "csv" && format != "json" {
				return errors.New("--format: expected csv or json")
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			var assets []client.Asset
			if err := c.Get(cmd.Context(), "/v1/inventory", nil, &assets); err != nil {
				return err
			}
			var text strings.Builder
			to := io.Writer(&text)
			if file == "" || file == "-" {
				to = t.out
			}
			if format == "csv" {
				err = writeAssets(to, assets)
			} else {
				err = writeIndented(to, assets)
			}
			if err != nil || to == t.out {
				return err
			}
			if err := durable.WriteFile(file, []byte(text.String()), os.FileMode(0o644)); err != nil {
				return err
			}
			fmt.Fprintf(t.err, "%s: %d gateways\n", file, len(assets))
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", "csv", "`FORMAT`: csv or json")
	c.Flags().StringVar(&file, "out", "", "write to `FILE` instead of standard output")
	return c
}
