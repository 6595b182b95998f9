package pgjournal_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
	"wardlink/server/journal/journaltest"
	"wardlink/server/journal/pgjournal"
	"wardlink/server/sqldb"
)

// BenchmarkSubmit is journaltest's on a PostgreSQL of its own whose files are on this machine's disk. Goal for the whole of ingest with
// TLS and audit on two cores: 10,000 entries/s. us-pg/entry is processor time of all of PostgreSQL's processes.
func BenchmarkSubmit(b *testing.B) {
	s := pgtest.Own(b, pgserver.Config{Base: os.TempDir(), Settings: map[string]string{"shared_buffers": "128MB"}})
	if err := s.Exec(b.Context(), "postgres", "CREATE DATABASE wardlink TEMPLATE template0 ENCODING 'UTF8'"); err != nil {
		b.Fatal(err)
	}
	url := s.URL("wardlink", pgserver.Superuser)
	if err := sqldb.Create(url, pgjournal.Migrations()...); err != nil {
		b.Fatal(err)
	}
	j := must(b, pgjournal.Config{URL: url, Consumers: journaltest.Consumers()})
	before := processors(b, s.Pid())
	journaltest.BenchmarkSubmit(b, j)
	b.ReportMetric((processors(b, s.Pid())-before)*1e6/float64(b.N), "us-pg/entry")
	var groups float64
	if err := connect(b, url).QueryRow(b.Context(), "SELECT count(*) FROM journal_groups").Scan(&groups); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/groups, "entries/group")
}

// processors are the seconds of processor time that a process and its children that live have used.
func processors(b *testing.B, pid int) (seconds float64) {
	b.Helper()
	children, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range children {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it ended
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		words := strings.Fields(rest)
		if filepath.Base(filepath.Dir(path)) != strconv.Itoa(pid) && words[1] != strconv.Itoa(pid) {
			continue
		}
		for _, w := range words[11:13] {
			ticks, err := strconv.ParseFloat(w, 64)
			if err != nil {
				b.Fatal(err)
			}
			seconds += ticks / 100
		}
	}
	return seconds
}
