package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"wardlink/internal/child"
	"wardlink/server/api/client"
)

// catchUp waits until the log holds what the journal holds, the reads of the comparison among it.
func (t *theatre) catchUp(ctx context.Context) error {
	return child.Until(ctx, "the log", []*child.Process{t.process()}, func(ctx context.Context) (bool, error) {
		var s client.Status
		if err := t.api.Get(ctx, "/v1/status", nil, &s); err != nil {
			return false, err
		}
		return s.LogSeq == s.JournalSeq, nil
	})
}

// verifyLog runs the offline verifier as a stranger would: with the log's files and its public key.
func (t *theatre) verifyLog(ctx context.Context) error {
	t.stages.begin("log")
	out, err := child.Output(ctx, t.bin("wardlink"), "audit", "verify", "--json", "--dir", t.server)
	if err != nil {
		return err
	}
	var report struct {
		Leaves, Rows uint64
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return fmt.Errorf("audit verify: %w", err)
	}
	t.summary.AuditLeaves, t.summary.AuditRows, t.summary.AuditVerified = report.Leaves, report.Rows, true
	if err := t.checkSuccession(out); err != nil {
		return err
	}
	t.stages.done("%d leaves with %d publishes verified offline; the gateways know of %d", report.Leaves, t.summary.AuditRows, t.summary.BatchesAcknowledged)
	return nil
}

// findReads looks in the log for the comparison's own reads: every page that the hospital gave must have left its event.
func (t *theatre) findReads(ctx context.Context) error {
	t.stages.begin("reads")
	out, err := child.Output(ctx, t.bin("wardlink"), "audit", "list", "--json", "--dir", t.server, "--type", "records.read", "--limit", "1000000")
	if err != nil {
		return err
	}
	if t.summary.AuditReads, err = countReads(out, "spiffe://"+trustDomain+"/access/"+readerName); err != nil {
		return fmt.Errorf("audit list: %w", err)
	}
	t.stages.done("%d of the %d FHIR pages read are in the log", t.summary.AuditReads, t.summary.FHIRReads)
	return nil
}

// countReads counts the successful reads of one account in the lines of 'wardlink audit list --json'.
func countReads(lines []byte, actor string) (n int, err error) {
	for dec := json.NewDecoder(bytes.NewReader(lines)); ; {
		var item struct{ Type, Actor, Outcome string }
		switch err := dec.Decode(&item); {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		}
		if item.Type == "records.read" && item.Actor == actor && item.Outcome == "success" {
			n++
		}
	}
}

// proveOne proves one publish, with a bundle that needs no server.
func (t *theatre) proveOne(ctx context.Context) error {
	t.stages.begin("proof")
	g := t.fleet[0]
	bundle := filepath.Join(t.dir, "proof.json")
	s, err := g.status(ctx)
	if err != nil {
		return err
	}
	_, err = child.Output(ctx, t.bin("wardlink"), "audit", "prove", "--dir", t.server,
		"--gateway", g.name, "--lane", g.lane(), "--number", "0", "--epoch", s.Epoch, "--out", bundle)
	if err != nil {
		return err
	}
	if _, err := child.Output(ctx, t.bin("wardlink"), "audit", "check", "--key", filepath.Join(t.server, "public", "log.pub"), bundle); err != nil {
		return err
	}
	t.summary.ProofVerified = true
	t.stages.done("publish %s/%s/0 of %s is in the log; the bundle proves it alone", s.Epoch[:8], g.lane(), g.name)
	return nil
}
