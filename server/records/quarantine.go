package records

import (
	_ "embed"

	"wardlink/audit"
	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

//go:embed quarantine_0001.sql
var quarantine1 string

func quarantineMigrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "records_quarantine", Version: 1, SQL: quarantine1}}
}

// quarantined tells whether a batch was journaled while its gateway was in quarantine. The verdict of its row is what decides, so that a
// release later changes nothing of it, and a database that is filled again from the journal says the same.
func quarantined(verdict string) bool {
	return verdict == audit.AcceptedQuarantined || verdict == audit.SalvagedQuarantined
}

// marked gives a reading's marks as they are stored: the one of the quarantine is the hospital's word, whatever the gateway sent.
func (w *work) marked(marks telemetry.Marks) telemetry.Marks {
	if w.quarantined {
		return marks | telemetry.MarkQuarantined
	}
	return marks &^ telemetry.MarkQuarantined
}

// flag is a boolean as the tables have it.
func flag(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
