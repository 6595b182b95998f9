package registry

import (
	"encoding/csv"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"wardlink/enroll"
)

// Limits of a manifest.
const (
	maxManifest     = 32 << 20 // bytes
	maxManifestRows = 200_000
	maxRowErrors    = 20 // reported at once
)

var manifestColumns = []string{"id", "ek_sha256", "site", "ward", "profile"}

// ParseManifest reads a CSV file of gateways (RFC 4180, UTF-8). Its header names the columns id, ek_sha256, site, ward and
// profile in any order; id and ek_sha256 are required. ek_sha256 is the SHA-256 of the endorsement key's public key in hex; a TPM
// with several keys has them separated by spaces. Errors name the line and the mend, several at once.
func ParseManifest(r io.Reader) ([]Gateway, error) {
	limited := &io.LimitedReader{R: r, N: maxManifest + 1}
	c := csv.NewReader(limited)
	c.FieldsPerRecord = -1 // counted here, for a better message
	c.ReuseRecord = true
	header, err := c.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("manifest: it is empty; expected the header id,ek_sha256,site,ward,profile")
	}
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	columns, err := parseHeader(header)
	if err != nil {
		return nil, err
	}
	p := manifestParser{columns: columns, ids: make(map[string]int), eks: make(map[[32]byte]int)}
	for {
		row, err := c.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if limited.N <= 0 {
			return nil, fmt.Errorf("manifest: longer than %d MB; split it", maxManifest>>20)
		}
		if err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		line, _ := c.FieldPos(0)
		if len(p.gateways) == maxManifestRows {
			return nil, fmt.Errorf("manifest: line %d: more than %d gateways; split it", line, maxManifestRows)
		}
		if err := p.row(line, row); err != nil {
			p.errs = append(p.errs, fmt.Errorf("manifest: line %d: %w", line, err))
			if len(p.errs) == maxRowErrors {
				break
			}
		}
	}
	if limited.N <= 0 {
		return nil, fmt.Errorf("manifest: longer than %d MB; split it", maxManifest>>20)
	}
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	return p.gateways, nil
}

// parseHeader gives the position of each of manifestColumns, -1 for one that is absent.
func parseHeader(header []string) (columns [5]int, err error) {
	for i := range columns {
		columns[i] = -1
	}
	for pos, name := range header {
		name = strings.TrimSpace(strings.TrimPrefix(name, "\ufeff"))
		i := slices.Index(manifestColumns, name)
		if i < 0 {
			return columns, fmt.Errorf("manifest: line 1: column %.40q is unknown; expected id,ek_sha256,site,ward,profile", name)
		}
		if columns[i] >= 0 {
			return columns, fmt.Errorf("manifest: line 1: column %s is there twice", name)
		}
		columns[i] = pos
	}
	for i, name := range manifestColumns[:2] {
		if columns[i] < 0 {
			return columns, fmt.Errorf("manifest: line 1: column %s is missing; expected the header id,ek_sha256,site,ward,profile", name)
		}
	}
	return columns, nil
}

type manifestParser struct {
	columns  [5]int
	gateways []Gateway
	ids      map[string]int // line on which an id or an EK was given first
	eks      map[[32]byte]int
	errs     []error
}

func (p *manifestParser) row(line int, row []string) error {
	want := 0
	for _, pos := range p.columns {
		want = max(want, pos+1)
	}
	if len(row) != want {
		return fmt.Errorf("%d fields; expected %d as in the header", len(row), want)
	}
	field := func(i int) string {
		if p.columns[i] < 0 {
			return ""
		}
		return strings.Clone(strings.TrimSpace(row[p.columns[i]]))
	}
	g := Gateway{ID: field(0), Site: field(2), Ward: field(3), Profile: field(4)}
	for _, text := range strings.Fields(field(1)) {
		ek, err := hex.DecodeString(text)
		if err != nil || len(ek) != 32 {
			return fmt.Errorf("ek_sha256 %.70q: expected 64 hex digits, as wardlink-agent identity prints them", text)
		}
		g.EKs = append(g.EKs, [32]byte(ek))
	}
	if len(g.EKs) == 0 {
		return errors.New("ek_sha256 is empty; expected 64 hex digits, as wardlink-agent identity prints them")
	}
	if err := g.check(); err != nil {
		return err
	}
	if first, twice := p.ids[g.ID]; twice {
		return fmt.Errorf("id %s is on line %d already; one line per gateway, several keys separated by spaces", g.ID, first)
	}
	for _, ek := range g.EKs {
		if first, twice := p.eks[ek]; twice {
			return fmt.Errorf("endorsement key %s is on line %d already; one TPM is one gateway", enroll.Fingerprint(ek), first)
		}
		p.eks[ek] = line
	}
	p.ids[g.ID] = line
	p.gateways = append(p.gateways, g)
	return nil
}
