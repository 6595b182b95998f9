package records

import (
	_ "embed"

	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

//go:embed beds_0001.sql
var beds1 string

func bedMigrations() []sqldb.Migration {
	// Domains apply in the order of their names: this one comes after those whose tables it changes.
	return []sqldb.Migration{{Domain: "waveforms_beds", Version: 1, SQL: beds1}}
}

// bedHash is textHash of what rows share, and of their bed where they have one: rows of before there were beds keep their hash.
func bedHash(bed string, texts ...string) []byte {
	if bed != "" {
		texts = append(texts[:len(texts):len(texts)], "bed", bed)
	}
	return textHash(texts...)
}

// bedded tells whether it is known for all that a message holds which bed it is of.
func bedded(m *telemetry.Message) bool {
	if m.Bed != "" {
		return true
	}
	for i := range m.Observations {
		if m.Observations[i].Bed == "" {
			return false
		}
	}
	for i := range m.Waveforms {
		if m.Waveforms[i].Bed == "" {
			return false
		}
	}
	return len(m.Observations)+len(m.Waveforms) > 0
}
