package server

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"wardlink/server/api/client"
)

// storage are the sizes of what the server keeps. The log's directory is not walked: it has hundreds of thousands of files a day until
// they are packed. What is left of the file system says what matters about it.
func (s *Server) storage(ctx context.Context) (out client.Storage, err error) {
	if out.Database, out.DatabaseFree, err = s.db.Sizes(ctx); err != nil {
		return client.Storage{}, err
	}
	files, err := filepath.Glob(filepath.Join(journalDir(s.dir), "*.seg"))
	if err != nil {
		return client.Storage{}, err
	}
	for _, f := range files {
		if info, err := os.Stat(f); err == nil { // one may be disposed of meanwhile
			out.Journal += info.Size()
		}
	}
	var fs syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &fs); err != nil {
		return client.Storage{}, err
	}
	out.Disk, out.DiskFree = int64(fs.Blocks)*fs.Bsize, int64(fs.Bavail)*fs.Bsize
	return out, nil
}

// keptMetrics are the figures of storage and retention, read once a scrape.
type keptMetrics struct {
	s *Server

	database, databaseFree, journal, unopened, unkept, suspended, oldest, disposal, disposed *prometheus.Desc
}

func newKeptMetrics(s *Server) *keptMetrics {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("wardlink_"+name, help, labels, nil)
	}
	return &keptMetrics{
		s:            s,
		database:     desc("database_bytes", "Size of the database's file."),
		databaseFree: desc("database_free_bytes", "Part of it that is free for new rows."),
		journal:      desc("journal_bytes", "Size of the journal's files."),
		unopened:     desc("unopened_bytes", "Frames kept of pending and dead batches."),
		unkept:       desc("batches_dead_unkept", "Dead batches whose frames are in the journal only, since their gateway's room is full."),
		suspended:    desc("retention_suspended", "1 while nothing is disposed of because the server's clock moved too far."),
		oldest:       desc("retention_oldest_seconds", "Unix time of receipt of the oldest that is kept.", "class"),
		disposal:     desc("retention_disposal_seconds", "Unix time of the last disposal.", "class"),
		disposed:     desc("retention_disposed_total", "Items disposed of.", "class"),
	}
}

// Describe implements prometheus.Collector.
func (k *keptMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{k.database, k.databaseFree, k.journal, k.unopened, k.unkept, k.suspended, k.oldest, k.disposal, k.disposed} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. What cannot be read is left out, and its absence shows.
func (k *keptMetrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if z, err := k.s.storage(ctx); err == nil {
		gauge(k.database, float64(z.Database))
		gauge(k.databaseFree, float64(z.DatabaseFree))
		gauge(k.journal, float64(z.Journal))
	}
	if st, err := k.s.records.Stats(ctx); err == nil {
		gauge(k.unopened, float64(st.KeptBytes))
		gauge(k.unkept, float64(st.DeadUnkept))
	}
	r, err := k.s.records.Retention(ctx)
	if err != nil {
		return
	}
	suspended := 0.0
	if r.Suspended {
		suspended = 1
	}
	gauge(k.suspended, suspended)
	for _, c := range r.Classes {
		if !c.Oldest.IsZero() {
			gauge(k.oldest, float64(c.Oldest.Unix()), string(c.Class))
		}
		if !c.Disposal.IsZero() {
			gauge(k.disposal, float64(c.Disposal.Unix()), string(c.Class))
		}
		ch <- prometheus.MustNewConstMetric(k.disposed, prometheus.CounterValue, float64(c.Disposed), string(c.Class))
	}
}
