package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"wardlink/server/fhir"
	"wardlink/server/records"
	"wardlink/server/sqldb"
)

// hospital asks a FHIR server over mutual TLS, on connections that live, as an EHR does.
type hospital struct {
	s      *stage
	client *http.Client
	base   string
	noise  *mrand.Rand
	last   time.Time // of the newest reading
	file   string    // whose pages in memory are given up before each request; "" for none
}

// bundle is what is looked at of an answer.
type bundle struct {
	Entry []struct {
		FullURL string `json:"fullUrl"`
	} `json:"entry"`
	Link []struct{ Relation, URL string } `json:"link"`
}

// serve begins serving the database's records; the hospital that it gives is a client of it.
func (s *stage) serve(ctx context.Context) (*hospital, error) {
	handler, err := fhir.New(fhir.Config{
		Store: records.NewStore(s.db, pseudonym), Journal: s.journal, Access: s.registry, Wards: s.registry, Pseudonym: pseudonym,
		TrustDomain: trustDomain, Log: s.log,
	})
	if err != nil {
		return nil, err
	}
	h := &hospital{s: s, noise: mrand.New(mrand.NewPCG(1, 2))}
	if h.base, h.client, err = s.listen(ctx, handler); err != nil {
		return nil, err
	}
	var newest int64
	if err := s.db.QueryRow(ctx, "SELECT at FROM readings WHERE layout = (SELECT MIN(id) FROM layouts) ORDER BY at DESC LIMIT 1").Scan(&newest); err != nil {
		return nil, fmt.Errorf("the database has no observations; fill it first: %w", err)
	}
	h.last = time.UnixMilli(newest)
	return h, nil
}

// get asks one URL and gives the answer, and how long it took until all of it was here.
func (h *hospital) get(ctx context.Context, target string) (b bundle, took time.Duration, err error) {
	if h.file != "" {
		if err := giveUp(h.file); err != nil {
			return b, 0, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return b, 0, err
	}
	begin := time.Now()
	res, err := h.client.Do(req)
	if err != nil {
		return b, 0, err
	}
	data, err := io.ReadAll(res.Body)
	took = time.Since(begin)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return b, 0, err
	}
	if res.StatusCode != http.StatusOK {
		return b, 0, fmt.Errorf("%s: %s: %.300s", target, res.Status, data)
	}
	return b, took, json.Unmarshal(data, &b)
}

// giveUp drops a file's pages from the system's memory, so that the next reader waits for the disk.
func giveUp(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// day is a search for a day of one patient's oxygen saturation: 86,400 readings of a monitor that says one a second.
func (h *hospital) day(count int) string {
	q := url.Values{"patient.identifier": {system + "|" + h.anyone()}, "code": {"59408-5"}, "_count": {fmt.Sprint(count)}}
	from, to := h.last.Add(-24*time.Hour), h.last.Add(time.Second)
	q["date"] = []string{"ge" + from.UTC().Format(time.RFC3339), "lt" + to.UTC().Format(time.RFC3339)}
	return h.base + "/Observation?" + q.Encode()
}

// hour is the same of an hour that may lie anywhere in the day.
func (h *hospital) hour(count int) string {
	q := url.Values{"patient.identifier": {system + "|" + h.anyone()}, "code": {"59408-5"}, "_count": {fmt.Sprint(count)}}
	from := h.last.Add(-time.Duration(h.noise.Int64N(int64(23*time.Hour))) - time.Hour)
	q["date"] = []string{"ge" + from.UTC().Format(time.RFC3339), "lt" + from.Add(time.Hour).UTC().Format(time.RFC3339)}
	return h.base + "/Observation?" + q.Encode()
}

func (h *hospital) newest() string {
	return h.base + "/Observation?" + url.Values{"patient.identifier": {system + "|" + h.anyone()}, "_count": {"10"}}.Encode()
}

func (h *hospital) patient() string {
	return h.base + "/Patient?" + url.Values{"identifier": {system + "|" + h.anyone()}}.Encode()
}

func (h *hospital) anyone() string { return fmt.Sprintf("PAT%06d", h.noise.IntN(h.s.gateways)) }

// ask repeats a request and prints its times.
func (h *hospital) ask(ctx context.Context, what, goal string, requests int, target func() string) error {
	var took []time.Duration
	found, used := 0, cpu()
	for range requests {
		b, t, err := h.get(ctx, target())
		if err != nil {
			return err
		}
		took, found = append(took, t), found+len(b.Entry)
	}
	used = (cpu() - used) / time.Duration(requests)
	row(fmt.Sprintf("%s (%.0f found)", what, float64(found)/float64(requests)), times(took)+fmt.Sprintf("  %.1f", float64(used.Microseconds())/1000), goal)
	return nil
}

// times are the median and the 99th percentile.
func times(took []time.Duration) string {
	ms := func(q float64) float64 { return float64(quantile(took, q).Microseconds()) / 1000 }
	return fmt.Sprintf("%.1f  %.1f ms", ms(0.5), ms(0.99))
}

// walk asks for whole days, page by page.
func (h *hospital) walk(ctx context.Context, days int) error {
	var pages, whole []time.Duration
	found := 0
	for range days {
		sum := time.Duration(0)
		for next := h.day(1000); next != ""; {
			b, t, err := h.get(ctx, next)
			if err != nil {
				return err
			}
			pages, sum, found, next = append(pages, t), sum+t, found+len(b.Entry), ""
			for _, l := range b.Link {
				if l.Relation == "next" {
					next = l.URL
				}
			}
		}
		whole = append(whole, sum)
	}
	row(fmt.Sprintf("  a page of it, all %d walked", len(pages)/days), times(pages), "")
	row(fmt.Sprintf("  the whole day, %d readings: median", found/days), fmt.Sprintf("%.2f s", quantile(whole, 0.5).Seconds()), "")
	return nil
}

func search(ctx context.Context, p plan) (err error) {
	s, err := open(p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	h, err := s.serve(ctx)
	if err != nil {
		return err
	}
	var total int64
	if err := s.db.QueryRow(ctx, "SELECT observations FROM records_totals").Scan(&total); err != nil {
		return err
	}
	row(fmt.Sprintf("among %d observations; FHIR over mutual TLS, each read journaled", total), "median  p99  CPU", "goal, of p99; CPU is server's and client's")
	rounds := []string{"warm"}
	if p.cold {
		rounds = append(rounds, "cold")
	}
	for _, round := range rounds {
		n := p.requests
		if round == "cold" {
			if sqldb.IsPostgres(p.database) {
				return errors.New("cold is for a database in a file; restart PostgreSQL with its files dropped from the cache instead")
			}
			h.file, n = p.database, max(n/5, 1)
		} else if err := h.ask(ctx, "first requests, not counted", "", 20, func() string { return h.day(1000) }); err != nil {
			return err
		}
		for _, q := range []struct {
			what, goal string
			target     func() string
		}{
			{"24 h of one vital of one patient, first page of 100", "<= 50 ms", func() string { return h.day(100) }},
			{"24 h of one vital of one patient, first page of 1000", "", func() string { return h.day(1000) }},
			{"an hour of it, anywhere in the day, page of 100", "<= 50 ms", func() string { return h.hour(100) }},
			{"the newest 10 readings of one patient, of any code", "<= 50 ms", h.newest},
			{"a patient by identifier", "<= 50 ms", h.patient},
		} {
			if err := h.ask(ctx, round+": "+q.what, q.goal, n, q.target); err != nil {
				return err
			}
		}
		if round == "warm" {
			if err := h.walk(ctx, min(p.requests, 3)); err != nil {
				return err
			}
		}
	}
	return nil
}

// full fills a database and asks it.
func full(ctx context.Context, p plan) error {
	if err := fill(ctx, p); err != nil {
		return err
	}
	p.cold = !sqldb.IsPostgres(p.database)
	return search(ctx, p)
}
