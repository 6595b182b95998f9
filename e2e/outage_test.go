package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/server/journal"
	"wardlink/telemetry"
)

// TestAnAlarmAfterAnOutageComesFirst: while the hospital's server is off, a ward's monitors go on, and an alarm is raised at the end. Once the
// server is back the alarm is among the first that it journals, before hundreds of batches that waited longer; the backlog follows, and
// the account balances. An outage of minutes is stood for by its volume.
func TestAnAlarmAfterAnOutageComesFirst(t *testing.T) {
	t.Parallel()
	h := newHospital(t)
	b := h.newBox("box", h.kit())
	b.reportsOften()
	b.deliverAs("icu-7")
	h.proc.Stop()
	const monitors, messages = 4, 120
	b.outage(monitors, messages)
	if ack := b.exchange(alarm("ALARM")); !strings.Contains(ack, "MSA|CA|ALARM") {
		t.Fatalf("the alarm is acknowledged by %q", ack)
	}
	h.run()
	b.awaitIdle()
	a := h.balanced(t, "icu-7")
	v, _ := lane(a, "vitals")
	l, _ := lane(a, "alarm")
	if l.Stored != 1 || v.Stored < messages || v.Stored != v.Assigned {
		t.Errorf("alarm %+v, vitals %+v", l, v)
	}
	h.proc.Stop()

	// The last session that carried an alarm is the one after the outage.
	rows := h.journaled("icu-7")
	at := -1
	for i, r := range rows {
		if telemetry.Lane(r.Lane) == telemetry.LaneAlarm {
			at = i
		}
	}
	if at < 0 {
		t.Fatal("the alarm is not in the journal")
	}
	before, after := 0, 0
	for i, r := range rows {
		if r.Session == rows[at].Session && telemetry.Lane(r.Lane) == telemetry.LaneVitals {
			if i < at {
				before++
			} else {
				after++
			}
		}
	}
	t.Logf("the alarm came after %d and before %d batches of vitals, %s after the first of its session", before, after,
		time.Duration(rows[at].Received-first(rows, rows[at].Session).Received)*time.Millisecond)
	if before > 0 || after < messages/2 {
		t.Errorf("the alarm came after %d and before %d batches of vitals that had waited", before, after)
	}
}

func first(rows []audit.Row, session audit.EventID) audit.Row {
	for _, r := range rows {
		if r.Session == session {
			return r
		}
	}
	return audit.Row{}
}

// outage has monitors send messages, each waiting for its acknowledgements.
func (b *box) outage(monitors, messages int) {
	b.t.Helper()
	var all sync.WaitGroup
	for m := range monitors {
		all.Go(func() {
			conn, err := net.Dial("tcp", b.mllp)
			if err != nil {
				b.t.Error(err)
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			answers := bufio.NewReader(conn)
			for n := range messages {
				if _, err := io.WriteString(conn, "\x0b"+vitals(fmt.Sprintf("O%d-%d", m, n))+"\x1c\r"); err != nil {
					b.t.Error(err)
					return
				}
				if ack, err := answers.ReadString('\x1c'); err != nil || !strings.Contains(ack, "MSA|CA|") {
					b.t.Errorf("%q, %v", ack, err)
					return
				}
			}
		})
	}
	all.Wait()
}

// journaled are the rows of a gateway's publishes in the order of the journal of a server that is stopped.
func (h *hospital) journaled(gateway string) (rows []audit.Row) {
	h.t.Helper()
	j, err := journal.Open(journal.Config{Dir: filepath.Join(h.server(), "journal"), Node: 1, Consumers: []string{"log", "records"}})
	if err != nil {
		h.t.Fatal(err)
	}
	defer j.Close()
	for after := uint64(0); ; {
		entries, err := j.Read(after+1, 1000)
		if err != nil {
			h.t.Fatal(err)
		}
		if len(entries) == 0 {
			return rows
		}
		for _, e := range entries {
			after = e.Seq
			if e.Kind != journal.KindPublish {
				continue
			}
			row, err := audit.DecodeRow(e.Head)
			if err != nil {
				h.t.Fatal(err)
			}
			if row.Gateway == gateway {
				rows = append(rows, row)
			}
		}
	}
}
