package records_test

import (
	"fmt"
	"slices"
	"testing"

	"wardlink/audit"
	"wardlink/server/records"
	"wardlink/telemetry"
)

// held gives the values of a patient that bear the mark of the quarantine, and those that do not.
func (f *fixture) held(patient string) (marked, free []string) {
	f.t.Helper()
	s := f.store()
	page, err := s.Search(f.ctx, records.Query{Patients: []string{s.PatientID("urn:oid:2.25.77", patient)}, Limit: 100})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, o := range page.Observations {
		if o.Marks&telemetry.MarkQuarantined != 0 {
			marked = append(marked, o.Value)
		} else {
			free = append(free, o.Value)
		}
	}
	return marked, free
}

// The verdict under which a batch was journaled marks what it holds, whenever it is opened and however often it is tried.
func TestQuarantineMarks(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	sent := message("p1", 4, "74")
	sent.Observations[0].Marks = telemetry.MarkQuarantined // a gateway's word for it does not count
	g.publishAs(audit.Accepted, "gw-1", g.sealBatch(message("p1", 1, "71"), sent))
	g.publishAs(audit.AcceptedQuarantined, "gw-1", g.sealBatch(message("p1", 2, "72")))
	g.salvage(audit.SalvagedQuarantined, g.sealBatch(message("p1", 3, "73")))
	f.until("stored", stored(3))
	if marked, free := f.held("p1"); fmt.Sprint(marked, free) != "[73 72] [74 71]" {
		t.Errorf("marked %v, not marked %v", marked, free)
	}
	// Sent again after the release: the first stands, with its mark.
	g.publishAs(audit.Accepted, "gw-1", g.sealBatch(message("p1", 2, "72")))
	f.until("stored", stored(4))
	if marked, _ := f.held("p1"); !slices.Contains(marked, "72") {
		t.Error("a resend took the mark away")
	}
}

func TestQuarantineMarksWhatWaited(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1")
	g.publishAs(audit.AcceptedQuarantined, "gw-1", g.sealBatch(message("p1", 1, "71")))
	f.until("pending without a sealing record", func(s records.Stats) bool { return s.Pending == 1 })
	g.enrol().bring("gw-1") // in a later life of the server, which knows the batch from its row alone
	f.until("stored", stored(1))
	if marked, free := f.held("p1"); fmt.Sprint(marked, free) != "[71] []" {
		t.Errorf("marked %v, not marked %v", marked, free)
	}
}

// Of two frames under one number the second stands when the first is dead, each with its own verdict.
func TestQuarantineMarksTheFrameThatStands(t *testing.T) {
	f := setup(t)
	g := f.gateway("gw-1").enrol().bring("gw-1")
	junk := g.seal([]byte("no batch"))
	g.next = 0
	second := g.sealBatch(message("p1", 1, "71"))
	g.publishAs(audit.Accepted, "gw-1", junk)
	g.publishAs(audit.AcceptedQuarantined, "gw-1", second)
	f.until("the second", stored(1))
	if marked, free := f.held("p1"); fmt.Sprint(marked, free) != "[71] []" {
		t.Errorf("marked %v, not marked %v", marked, free)
	}
}
