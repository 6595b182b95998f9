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
	s, url := server(b)
	j := must(b, pgjournal.Config{URL: url, Consumers: journaltest.Consumers()})
	before := processors(b, s.PID())
	journaltest.BenchmarkSubmit(b, j)
	b.ReportMetric((processors(b, s.PID())-before)*1e6/float64(b.N), "us-pg/entry")
	var groups float64
	if err := connect(b, url).QueryRow(b.Context(), "SELECT count(*) FROM journal_groups").Scan(&groups); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/groups, "entries/group")
}

// server is a PostgreSQL on this machine's disk, with a journal.
func server(b *testing.B) (*pgserver.Server, string) {
	b.Helper()
	s := pgtest.Own(b, pgserver.Config{Base: os.TempDir(), Settings: map[string]string{"shared_buffers": "128MB"}})
	if err := s.Exec(b.Context(), "postgres", "CREATE DATABASE wardlink TEMPLATE template0 ENCODING 'UTF8'"); err != nil {
		b.Fatal(err)
	}
	url := s.URL("wardlink", pgserver.Superuser)
	if err := sqldb.Create(url, pgjournal.Migrations()...); err != nil {
		b.Fatal(err)
	}
	return s, url
}

// BenchmarkRead is what log and records do each: they read everything once, 1,000 entries at a time. No group may be fetched
// twice: B/op is some three times an entry's 1,250 bytes at most.
func BenchmarkRead(b *testing.B) {
	s, url := server(b)
	j := must(b, pgjournal.Config{URL: url, Consumers: journaltest.Consumers()})
	journaltest.BenchmarkSubmit(b, j)
	before, began := processors(b, s.PID()), journaltest.Processor()
	b.ResetTimer()
	for from := uint64(1); from <= uint64(b.N); {
		got, err := j.Read(from, 1000)
		if err != nil || len(got) == 0 {
			b.Fatal(len(got), err)
		}
		from = got[len(got)-1].Seq + 1
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
	b.ReportMetric((processors(b, s.PID())-before)*1e6/float64(b.N), "us-pg/entry")
	b.ReportMetric(float64(journaltest.Processor()-began)/float64(b.N), "us-own/entry")
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
