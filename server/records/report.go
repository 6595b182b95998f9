package records

import (
	"cmp"
	"database/sql"
	"errors"
	"slices"
	"time"

	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

// storeReport keeps what a gateway says of itself: the newest report as it came, and of every one what accounts need.
//
// Which of two reports is the newer: of one epoch the one with the greater number, of one boot the one made later since then; otherwise
// the one that arrived later, since a gateway sends its reports in the order it made them. Only what a gateway sends once more, for a restored
// server, arrives behind what is newer: a report of another boot that was made earlier, by the hospital's own time, is not the newest.
func (r *Records) storeReport(tx *sql.Tx, o *opened) error {
	if err := beat(tx, o); err != nil {
		return err
	}
	newest, err := r.newestReport(tx, o)
	if err != nil {
		return err
	}
	if err := r.storeConfig(tx, o, newest); err != nil {
		return err
	}
	// While the disk cannot read some files nobody knows what they hold; and a report that is full may have left former epochs out.
	readable := o.batch.Report.Buffer.Unread == 0
	whole := readable && len(o.batch.Report.Lanes) < telemetry.MaxLanes
	touched := map[int64]bool{}
	if newest {
		if err := r.noteWallStep(tx, o); err != nil {
			return err
		}
		if err := r.keepReport(tx, o, touched, whole); err != nil {
			return err
		}
	}
	listed := map[int64]bool{}
	room := maxNamed
	for i := range o.batch.Report.Lanes {
		l := &o.batch.Report.Lanes[i]
		epoch := l.Epoch
		if epoch == (telemetry.Epoch{}) {
			epoch = o.epoch
		} else if ok, err := r.mayName(tx, streamKey{o.gateway, epoch, l.Lane}, &room); err != nil {
			return err
		} else if !ok {
			continue
		}
		stream, err := r.in.stream(tx, streamKey{o.gateway, epoch, l.Lane})
		if err != nil {
			return err
		}
		listed[stream], touched[stream] = true, true
		if err := storeLane(tx, stream, l, newest, epoch == o.epoch, readable); err != nil {
			return err
		}
	}
	for stream := range touched {
		if newest && !listed[stream] && whole {
			if err := r.coverFormer(tx, stream, o); err != nil {
				return err
			}
		}
		if err := r.recount(tx, stream); err != nil {
			return err
		}
	}
	return nil
}

// What a gateway may only name, without ever sending anything of it: a report is small and names much.
const (
	maxNamed       = 1024 // epochs and lanes
	maxNamedSource = 4096 // sources
)

// mayName tells whether a report may speak of a former epoch's lane: of what anything came always, of the rest as far as there is room. room is of
// one report. What is over that is ignored, and said in the log once a report.
func (r *Records) mayName(tx *sql.Tx, k streamKey, room *int) (bool, error) {
	if _, ok := r.in.streams[k]; ok {
		return true, nil
	}
	var n int
	if err := tx.QueryRow("SELECT COUNT(*) FROM streams WHERE gateway = $1 AND epoch = $2 AND lane = $3", k.gateway, k.epoch[:], int64(k.lane)).Scan(&n); err != nil || n > 0 {
		return err == nil, err
	}
	if *room == maxNamed { // not counted yet
		if err := tx.QueryRow(`SELECT COUNT(*) FROM streams s WHERE s.gateway = $1
			AND NOT EXISTS (SELECT 1 FROM account_runs r WHERE r.stream = s.id)`, k.gateway).Scan(&n); err != nil {
			return false, err
		}
		*room -= n
	}
	if *room <= 0 {
		if *room > -maxNamed {
			r.log.Warn("a report names more former epochs than a gateway may that never sent anything of them; the rest is ignored",
				"gateway", k.gateway, "at_most", maxNamed)
		}
		*room = -maxNamed
		return false, nil
	}
	*room--
	return true, nil
}

func (r *Records) newestReport(tx *sql.Tx, o *opened) (bool, error) {
	var epoch, boot, data []byte
	var number uint64
	var mono, received int64
	err := tx.QueryRow("SELECT epoch, number, boot, mono, received, report FROM gateway_reports WHERE gateway = $1", o.gateway).
		Scan(&epoch, &number, &boot, &mono, &received, &data)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return true, nil
	case err != nil:
		return false, err
	case o.former && [16]byte(epoch) != o.epoch:
		return false, nil // the board that is there now has spoken, or will
	case [16]byte(epoch) == o.epoch:
		return o.number > number, nil
	case [16]byte(boot) == o.batch.Boot:
		return o.batch.Report.At.Mono >= mono, nil
	}
	former, err := telemetry.Decode(data)
	if err == nil && former.Report != nil && r.earlier(o.batch.Report, former.Report) {
		return false, nil
	}
	return o.received >= received, nil
}

// earlier tells whether a was made before b by the hospital's time, which each says only if its gateway was told that time in that boot. One
// that claims a time which is still to come was told by a clock that was wrong, and is no measure: it must not stand for years.
func (r *Records) earlier(a, b *telemetry.Report) bool {
	if !a.Clock.Trusted || !b.Clock.Trusted {
		return false
	}
	made := b.At.Wall + b.Clock.Offset
	return a.At.Wall+a.Clock.Offset < made && made <= r.now().Add(clockSlack).UnixMilli()
}

// clockSlack is how far the offset of a gateway may be out.
const clockSlack = time.Minute

// keepReport puts the report in the place of the former. Every stream of the gateway of which the former said that something is held, or
// that has a gap, is looked at again. What the former said is held stays so unless this one names all that is.
func (r *Records) keepReport(tx *sql.Tx, o *opened, touched map[int64]bool, whole bool) error {
	rep := o.batch.Report
	data, err := telemetry.Encode(o.batch)
	if err != nil {
		return err
	}
	received, err := heard(tx, o)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(`INSERT INTO gateway_reports (gateway, epoch, number, boot, mono, received, report) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (gateway) DO UPDATE SET epoch = excluded.epoch, number = excluded.number, boot = excluded.boot, mono = excluded.mono,
		received = excluded.received, report = excluded.report`,
		o.gateway, o.epoch[:], int64(o.number), o.batch.Boot[:], rep.At.Mono, received, data); err != nil {
		return err
	}
	var sources int
	if err := tx.QueryRow("SELECT COUNT(*) FROM gateway_sources WHERE gateway = $1", o.gateway).Scan(&sources); err != nil {
		return err
	}
	for i := range rep.Sources {
		s := &rep.Sources[i]
		if sources >= maxNamedSource {
			var known int
			if err := tx.QueryRow("SELECT COUNT(*) FROM gateway_sources WHERE gateway = $1 AND source = $2", o.gateway, s.ID).Scan(&known); err != nil {
				return err
			}
			if known == 0 {
				continue
			}
		}
		if _, err := tx.Exec(`INSERT INTO gateway_sources (gateway, source, reported, heard, usual) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (gateway, source) DO UPDATE SET reported = excluded.reported,
			heard = CASE WHEN excluded.heard > 0 THEN excluded.heard ELSE gateway_sources.heard END,
			usual = CASE WHEN excluded.usual > 0 THEN excluded.usual ELSE gateway_sources.usual END`,
			o.gateway, s.ID, received, s.ReceivedAt, int64(s.Interval)); err != nil {
			return err
		}
	}
	rows, err := tx.Query(`SELECT stream FROM account_sets WHERE kind = $1 AND stream IN (SELECT id FROM streams WHERE gateway = $2)
		UNION SELECT stream FROM account_gaps WHERE stream IN (SELECT id FROM streams WHERE gateway = $2)`, setHeld, o.gateway)
	if err != nil {
		return err
	}
	for rows.Next() {
		var stream int64
		if err := rows.Scan(&stream); err != nil {
			return errors.Join(err, rows.Close())
		}
		touched[stream] = true
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	for stream := range touched {
		if !whole {
			break
		}
		if _, err := tx.Exec("DELETE FROM account_sets WHERE stream = $1 AND kind = $2", stream, setHeld); err != nil {
			return err
		}
	}
	return nil
}

// storeLane keeps what one report says of one stream. What was assigned only grows, and void and lost numbers stay so: an agent forgets
// them when it stops.
func storeLane(tx *sql.Tx, stream int64, l *telemetry.LaneReport, newest, own, complete bool) error {
	covered := uint64(0)
	if newest && complete {
		covered = l.Assigned
		if !own { // of a former epoch the gateway knows what it holds, and nothing more will come
			var high uint64
			if err := tx.QueryRow("SELECT COALESCE(MAX(last) + 1, 0) FROM account_runs WHERE stream = $1", stream).Scan(&high); err != nil {
				return err
			}
			covered = max(covered, high)
		}
	}
	if _, err := tx.Exec(`INSERT INTO account_streams (stream, assigned, covered) VALUES ($1, $2, $3)
		ON CONFLICT (stream) DO UPDATE SET assigned = `+sqldb.Raised("account_streams", "assigned")+", covered = "+sqldb.Raised("account_streams", "covered"),
		stream, int64(l.Assigned), int64(covered)); err != nil {
		return err
	}
	if newest {
		if complete {
			if _, err := tx.Exec("DELETE FROM account_sets WHERE stream = $1 AND kind = $2", stream, setHeld); err != nil {
				return err
			}
		} else {
			l.Held.Upper = true // what was held before may be in a file that cannot be read
		}
		if err := addSet(tx, stream, setHeld, l.Held); err != nil {
			return err
		}
	}
	for kind, set := range map[int]telemetry.Spans{setVoid: l.Void, setLost: l.Lost} {
		if len(set.Runs) == 0 {
			continue
		}
		if err := addSet(tx, stream, kind, set); err != nil {
			return err
		}
	}
	return nil
}

// addSet joins a set with what was told before.
func addSet(tx *sql.Tx, stream int64, kind int, set telemetry.Spans) error {
	before, err := spansOf(tx, "SELECT first, last FROM account_sets WHERE stream = $1 AND kind = $2", stream, kind)
	if err != nil {
		return err
	}
	var upper bool
	if err := tx.QueryRow("SELECT COALESCE(MAX(upper), 0) FROM account_sets WHERE stream = $1 AND kind = $2", stream, kind).Scan(&upper); err != nil {
		return err
	}
	all := append(before, set.Runs...)
	sortSpans(all)
	if _, err := tx.Exec("DELETE FROM account_sets WHERE stream = $1 AND kind = $2", stream, kind); err != nil {
		return err
	}
	return putSet(tx, stream, kind, telemetry.NewSpans(all, upper || set.Upper))
}

func putSet(tx *sql.Tx, stream int64, kind int, set telemetry.Spans) error {
	for _, s := range set.Runs {
		if _, err := tx.Exec("INSERT INTO account_sets (stream, kind, first, last, upper) VALUES ($1, $2, $3, $4, $5)",
			stream, kind, int64(s.First), int64(s.Last), sqldb.Flag(set.Upper)); err != nil {
			return err
		}
	}
	return nil
}

// coverFormer is for a stream that the newest report does not list: of a former epoch, so the gateway has nothing of it any more. An epoch
// of which nothing had arrived before the report's own is not taken for a former one: it may be a later one, whose first report is still
// to come. Which came first the streams' ids say and not the times, which may be the same, or those of two nodes' clocks.
func (r *Records) coverFormer(tx *sql.Tx, stream int64, o *opened) error {
	if _, err := tx.Exec(`UPDATE account_streams SET covered = `+sqldb.Greater("covered", "assigned")+` WHERE stream = $1
		AND stream NOT IN (SELECT id FROM streams WHERE epoch = $2)`, stream, o.epoch[:]); err != nil {
		return err
	}
	_, err := tx.Exec(`INSERT INTO account_streams (stream, assigned, covered)
		SELECT r.stream, 0, MAX(r.last) + 1 FROM account_runs r JOIN streams s ON s.id = r.stream
		WHERE r.stream = $1 AND s.epoch <> $2 AND r.stream <
			(SELECT MIN(o.stream) FROM account_runs o JOIN streams q ON q.id = o.stream WHERE q.gateway = $3 AND q.epoch = $2) GROUP BY r.stream
		ON CONFLICT (stream) DO UPDATE SET covered = `+sqldb.Greater("account_streams.covered", "account_streams.assigned", "excluded.covered"),
		stream, o.epoch[:], o.gateway)
	return err
}

func sortSpans(spans []telemetry.Span) {
	slices.SortFunc(spans, func(a, b telemetry.Span) int { return cmp.Compare(a.First, b.First) })
}
