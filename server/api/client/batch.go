package client

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// BatchColumns are those of a batch file, in the order in which they are written. reason is for people, and not read.
var BatchColumns = []string{"id", "site", "ward", "profile", "serial", "ek_sha256", "fingerprint", "reason"}

// Bounds of a batch file.
const (
	maxBatchBytes  = 4 << 20
	maxBatchRows   = 20_000
	maxBatchErrors = 20
)

// BatchFileRow is a row of a batch file and the line on which it stands.
type BatchFileRow struct {
	ApprovalRow
	Line int
}

// ParseBatch reads a CSV file of gateways to approve (RFC 4180, UTF-8): a header with the columns of BatchColumns in any order, id and at
// least one of serial, ek_sha256 and fingerprint among them. Errors name the line and the mend, several at once. What an id, a ward or a
// fingerprint may look like is the server's to say, for each row.
func ParseBatch(r io.Reader) ([]BatchFileRow, error) {
	limited := &io.LimitedReader{R: r, N: maxBatchBytes + 1}
	c := csv.NewReader(limited)
	c.FieldsPerRecord = -1 // counted here, for a better message
	header, err := c.Read()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("batch: it is empty; expected the header id,site,ward,profile and one of serial, ek_sha256, fingerprint")
	}
	if err != nil {
		return nil, fmt.Errorf("batch: %w", err)
	}
	at, err := batchHeader(header)
	if err != nil {
		return nil, err
	}
	var rows []BatchFileRow
	var errs []error
	ids := map[string]int{}
	for len(errs) < maxBatchErrors {
		fields, err := c.Read()
		if limited.N <= 0 {
			return nil, fmt.Errorf("batch: longer than %d MB; split it", maxBatchBytes>>20)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("batch: %w", err)
		}
		line, _ := c.FieldPos(0)
		field := func(name string) string {
			if i, ok := at[name]; ok {
				return strings.TrimSpace(fields[i])
			}
			return ""
		}
		if len(fields) != len(header) {
			errs = append(errs, fmt.Errorf("batch: line %d: %d fields; expected %d as in the header", line, len(fields), len(header)))
			continue
		}
		row := BatchFileRow{Line: line, ApprovalRow: ApprovalRow{ID: field("id"), Site: field("site"), Ward: field("ward"), Profile: field("profile"),
			Serial: field("serial"), EK: strings.ToLower(field("ek_sha256")), Fingerprint: field("fingerprint")}}
		first, twice := ids[row.ID]
		switch {
		case row.ID == "":
			errs = append(errs, fmt.Errorf("batch: line %d: id is empty; it is the gateway's name for ever", line))
		case twice:
			errs = append(errs, fmt.Errorf("batch: line %d: id %.64q is on line %d already", line, row.ID, first))
		case row.Serial == "" && row.EK == "" && row.Fingerprint == "":
			errs = append(errs, fmt.Errorf("batch: line %d: none of serial, ek_sha256 and fingerprint is given", line))
		case len(rows) == maxBatchRows:
			return nil, fmt.Errorf("batch: line %d: more than %d gateways; split it", line, maxBatchRows)
		}
		ids[row.ID] = line
		rows = append(rows, row)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if len(rows) == 0 {
		return nil, errors.New("batch: it has a header and no rows")
	}
	return rows, nil
}

// batchHeader gives the position of each column that is there.
func batchHeader(header []string) (map[string]int, error) {
	at := map[string]int{}
	for i, name := range header {
		name = strings.ToLower(strings.TrimSpace(strings.TrimPrefix(name, "\ufeff")))
		if !slices.Contains(BatchColumns, name) {
			return nil, fmt.Errorf("batch: line 1: column %.40q is unknown; expected %s", name, strings.Join(BatchColumns, ","))
		}
		if _, twice := at[name]; twice {
			return nil, fmt.Errorf("batch: line 1: column %s is there twice", name)
		}
		at[name] = i
	}
	if _, ok := at["id"]; !ok {
		return nil, errors.New("batch: line 1: column id is missing")
	}
	for _, name := range []string{"serial", "ek_sha256", "fingerprint"} {
		if _, ok := at[name]; ok {
			return at, nil
		}
	}
	return nil, errors.New("batch: line 1: none of the columns serial, ek_sha256 and fingerprint is there; one of them says which TPM a gateway is")
}

// WriteBatch writes rows as ParseBatch reads them, with a reason for each; reasons may be nil.
func WriteBatch(w io.Writer, rows []BatchFileRow, reasons []string) error {
	c := csv.NewWriter(w)
	_ = c.Write(BatchColumns) // Error below tells
	for i, r := range rows {
		reason := ""
		if i < len(reasons) {
			reason = reasons[i]
		}
		_ = c.Write([]string{r.ID, r.Site, r.Ward, r.Profile, r.Serial, r.EK, r.Fingerprint, reason})
	}
	c.Flush()
	return c.Error()
}
