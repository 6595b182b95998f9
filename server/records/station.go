package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

// stations counts what one transaction lets pass.
type stations struct {
	lanes   map[laneKey]*laneCount
	streams map[int64]int64 // batches stored
	sources map[int64]*sourceCount
}

type laneKey struct {
	gateway string
	lane    telemetry.Lane
}

type laneCount struct{ journaled, journaledAt, stored, storedAt int64 }

type sourceCount struct {
	messages, at, identified, identifiedAt, bedded, beddedAt, anonymous, anonymousAt, readings, readingAt, last int64
}

func (st *stations) lane(w *work) *laneCount {
	if st.lanes == nil {
		st.lanes = make(map[laneKey]*laneCount)
	}
	k := laneKey{w.gateway, w.lane}
	if st.lanes[k] == nil {
		st.lanes[k] = &laneCount{}
	}
	return st.lanes[k]
}

// stored counts a batch that came to its end.
func (st *stations) stored(w *work) {
	lane := st.lane(w)
	lane.stored++
	lane.storedAt = max(lane.storedAt, w.received)
	if st.streams == nil {
		st.streams = make(map[int64]int64)
	}
	st.streams[w.stream]++
}

// message counts one that was not known before.
func (st *stations) message(source, id, subject int64, bedded bool, received, readings int64) {
	if st.sources == nil {
		st.sources = make(map[int64]*sourceCount)
	}
	c := st.sources[source]
	if c == nil {
		c = &sourceCount{}
		st.sources[source] = c
	}
	c.messages++
	c.at = max(c.at, received)
	switch {
	case subject != 0:
		c.identified++
		c.identifiedAt = max(c.identifiedAt, received)
	case bedded:
		c.bedded++
		c.beddedAt = max(c.beddedAt, received)
	default:
		c.anonymous++
		c.anonymousAt = max(c.anonymousAt, received)
	}
	if readings > 0 {
		c.readings += readings
		c.readingAt = max(c.readingAt, received)
		c.last = max(c.last, id)
	}
}

var (
	addLanes = bulk{"INSERT INTO lane_stations (gateway, lane, journaled, journaled_at, stored, stored_at) VALUES ",
		` ON CONFLICT (gateway, lane) DO UPDATE SET journaled = lane_stations.journaled + excluded.journaled,
		journaled_at = ` + sqldb.Raised("lane_stations", "journaled_at") + `, stored = lane_stations.stored + excluded.stored,
		stored_at = ` + sqldb.Raised("lane_stations", "stored_at"), "?, ?, ?, ?, ?, ?"}
	addStored = bulk{"INSERT INTO account_stored (stream, stored) VALUES ",
		" ON CONFLICT (stream) DO UPDATE SET stored = account_stored.stored + excluded.stored", "?, ?"}
	addSources = bulk{`INSERT INTO source_stations (source, messages, message_at, identified, identified_at, anonymous, anonymous_at, readings, reading_at, last,
		bedded, bedded_at) VALUES `,
		` ON CONFLICT (source) DO UPDATE SET messages = source_stations.messages + excluded.messages,
		message_at = ` + sqldb.Raised("source_stations", "message_at") + `, identified = source_stations.identified + excluded.identified,
		identified_at = ` + sqldb.Raised("source_stations", "identified_at") + `, anonymous = source_stations.anonymous + excluded.anonymous,
		anonymous_at = ` + sqldb.Raised("source_stations", "anonymous_at") + `, readings = source_stations.readings + excluded.readings,
		reading_at = ` + sqldb.Raised("source_stations", "reading_at") + `, last = ` + sqldb.Raised("source_stations", "last") + `,
		bedded = source_stations.bedded + excluded.bedded, bedded_at = ` + sqldb.Raised("source_stations", "bedded_at"),
		"?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?"}
)

func (r *Records) addStations(tx *sql.Tx, st *stations) error {
	var lanes, streams, sources []any
	for k, c := range st.lanes {
		lanes = append(lanes, k.gateway, int64(k.lane), c.journaled, c.journaledAt, c.stored, c.storedAt)
	}
	for stream, n := range st.streams {
		streams = append(streams, stream, n)
	}
	for source, c := range st.sources {
		sources = append(sources, source, c.messages, c.at, c.identified, c.identifiedAt, c.anonymous, c.anonymousAt, c.readings, c.readingAt, c.last, c.bedded, c.beddedAt)
	}
	_, err := r.in.write(tx, addLanes, lanes)
	if err == nil {
		_, err = r.in.write(tx, addStored, streams)
	}
	if err == nil {
		_, err = r.in.write(tx, addSources, sources)
	}
	return err
}

// Account is what the server knows of one gateway's data. Instants are the server's, of receipt; zero: never.
type Account struct {
	Report   *telemetry.Report // the newest; nil when the gateway never reported
	Boot     [16]byte          // of the gateway's kernel when it did
	Epoch    telemetry.Epoch   // of the report
	Received time.Time         // of the report

	Lanes   [telemetry.LaneCount]LaneAccount
	Sources []SourceAccount // by id
	Gaps    []Gap
}

// LaneAccount counts batches of one lane.
type LaneAccount struct {
	Journaled, Stored     uint64
	JournaledAt, StoredAt time.Time
	Pending, Dead         uint64
	PendingSince          time.Time // receipt of the oldest that is pending
	DeadAt                time.Time // receipt of the newest that is dead
	DeadReason            string    // of that one, a constant text
}

// SourceAccount counts messages of one source.
type SourceAccount struct {
	ID       string
	Reported time.Time     // when a report last named it; zero: never
	Heard    int64         // last message, by the gateway's clock in Unix milliseconds; 0: none that a report told of
	Usual    time.Duration // from message to message; 0: not known

	// Identified messages name a patient; of the others the bedded ones are of a bed that is known, and the anonymous ones are not.
	Messages, Identified, Bedded, Anonymous, Readings         uint64
	MessageAt, IdentifiedAt, BeddedAt, AnonymousAt, ReadingAt time.Time
	last                                                      int64
}

// GatewaysOf names the gateways that have, or had, a source of that id.
func (s *Store) GatewaysOf(ctx context.Context, source string) (out []string, err error) {
	key, _ := keyOf(source)
	rows, err := s.db.Query(ctx, `SELECT gateway FROM gateway_sources WHERE source = $1
		UNION SELECT gateway FROM sources WHERE source IN ($1, $2) ORDER BY 1 LIMIT 1000`, source, key)
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var g string
		if err := rows.Scan(&g); err != nil {
			return nil, fmt.Errorf("records: %w", err)
		}
		out = append(out, g)
	}
	return out, rows.Err()
}

// Account gives what is known of a gateway's data, on one snapshot. A gateway of which nothing is known has an empty one.
func (s *Store) Account(ctx context.Context, gateway string) (a Account, err error) {
	if err = s.db.Read(ctx, func(tx *sql.Tx) error {
		for _, read := range []func(context.Context, *sql.Tx, string, *Account) error{readReport, readLanes, readUnsettled, readSources} {
			if err := read(ctx, tx, gateway, &a); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return Account{}, fmt.Errorf("records: account of %s: %w", gateway, err)
	}
	a.Gaps, err = s.GapsOf(ctx, gateway)
	return a, err
}

func readReport(ctx context.Context, tx *sql.Tx, gateway string, a *Account) error {
	var epoch, data []byte
	var received int64
	err := tx.QueryRowContext(ctx, "SELECT epoch, received, report FROM gateway_reports WHERE gateway = $1", gateway).Scan(&epoch, &received, &data)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return err
	}
	b, err := telemetry.Decode(data)
	if err != nil {
		return err
	}
	a.Report, a.Boot, a.Epoch, a.Received = b.Report, b.Boot, telemetry.Epoch(epoch), instant(received)
	return nil
}

func readLanes(ctx context.Context, tx *sql.Tx, gateway string, a *Account) error {
	return each(ctx, tx, func(rows *sql.Rows) error {
		var lane telemetry.Lane
		var l LaneAccount
		var journaledAt, storedAt int64
		if err := rows.Scan(&lane, &l.Journaled, &journaledAt, &l.Stored, &storedAt); err != nil {
			return err
		}
		l.JournaledAt, l.StoredAt = instant(journaledAt), instant(storedAt)
		if lane < telemetry.LaneCount {
			a.Lanes[lane] = l
		}
		return nil
	}, "SELECT lane, journaled, journaled_at, stored, stored_at FROM lane_stations WHERE gateway = $1", gateway)
}

// readUnsettled walks the index of batches that are not stored, of which there are few on a good day and a bounded number of dead ones.
func readUnsettled(ctx context.Context, tx *sql.Tx, gateway string, a *Account) error {
	return each(ctx, tx, func(rows *sql.Rows) error {
		var lane telemetry.Lane
		var state int
		var n uint64
		var first, last int64
		var reason string
		if err := rows.Scan(&lane, &state, &n, &first, &last, &reason); err != nil {
			return err
		}
		if lane >= telemetry.LaneCount {
			return nil
		}
		l := &a.Lanes[lane]
		if state == stateDead {
			l.Dead, l.DeadAt, l.DeadReason = n, instant(last), reason
			return nil
		}
		if l.Pending == 0 || instant(first).Before(l.PendingSince) {
			l.PendingSince = instant(first)
		}
		l.Pending += n
		return nil
	}, `SELECT s.lane, b.state, COUNT(*), MIN(b.received), MAX(b.received), MAX(b.reason)
		FROM batches b JOIN streams s ON s.id = b.stream WHERE b.state <> 2 AND b.state IN (0, 1, 3) AND s.gateway = $1 GROUP BY s.lane, b.state`, gateway)
}

func readSources(ctx context.Context, tx *sql.Tx, gateway string, a *Account) error {
	byID := map[string]*SourceAccount{}
	of := func(id string) *SourceAccount {
		if byID[id] == nil {
			byID[id] = &SourceAccount{ID: id}
		}
		return byID[id]
	}
	if err := each(ctx, tx, func(rows *sql.Rows) error {
		var id string
		var reported, heard, usual int64
		if err := rows.Scan(&id, &reported, &heard, &usual); err != nil {
			return err
		}
		c := of(id)
		c.Reported, c.Heard, c.Usual = instant(reported), heard, time.Duration(usual)*time.Millisecond
		return nil
	}, "SELECT source, reported, heard, usual FROM gateway_sources WHERE gateway = $1", gateway); err != nil {
		return err
	}
	if err := each(ctx, tx, func(rows *sql.Rows) error {
		var id string
		var at, identifiedAt, anonymousAt, readingAt, beddedAt int64
		var c SourceAccount
		if err := rows.Scan(&id, &c.Messages, &at, &c.Identified, &identifiedAt, &c.Anonymous, &anonymousAt, &c.Readings, &readingAt, &c.last,
			&c.Bedded, &beddedAt); err != nil {
			return err
		}
		o := of(id)
		o.Messages, o.Identified, o.Anonymous, o.Readings, o.last = c.Messages, c.Identified, c.Anonymous, c.Readings, c.last
		o.Bedded, o.BeddedAt = c.Bedded, instant(beddedAt)
		o.MessageAt, o.IdentifiedAt, o.AnonymousAt, o.ReadingAt = instant(at), instant(identifiedAt), instant(anonymousAt), instant(readingAt)
		return nil
	}, `SELECT s.source, t.messages, t.message_at, t.identified, t.identified_at, t.anonymous, t.anonymous_at, t.readings, t.reading_at, t.last, t.bedded, t.bedded_at
		FROM source_stations t JOIN sources s ON s.id = t.source WHERE s.gateway = $1`, gateway); err != nil {
		return err
	}
	for _, c := range byID {
		if err := expand(ctx, tx.QueryRowContext, &c.ID); err != nil {
			return err
		}
		a.Sources = append(a.Sources, *c)
	}
	slices.SortFunc(a.Sources, func(x, y SourceAccount) int {
		if x.ID < y.ID {
			return -1
		}
		return 1
	})
	return nil
}

func each(ctx context.Context, tx *sql.Tx, fn func(*sql.Rows) error, query string, args ...any) error {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	for rows.Next() {
		if err := fn(rows); err != nil {
			return errors.Join(err, rows.Close())
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

// Visible asks for the newest reading of a source in the way that the hospital's search does, and tells whether it is found. What was
// disposed of is not.
func (s *Store) Visible(ctx context.Context, c SourceAccount) (found bool, err error) {
	if c.last == 0 {
		return false, nil
	}
	at, subject, err := s.anyReading(ctx, c.last)
	if errors.Is(err, sql.ErrNoRows) {
		// Of parts of devices alone: what there is of it is one message.
		var n int
		err = s.db.QueryRow(ctx, "SELECT COUNT(*) FROM messages WHERE id = $1", c.last).Scan(&n)
		return n > 0, err
	}
	if err != nil {
		return false, fmt.Errorf("records: %w", err)
	}
	to := at + 1
	q := Query{From: &at, To: &to, Limit: 1}
	if q.NoPatient = subject == 0; !q.NoPatient {
		var patient string
		if err := s.db.QueryRow(ctx, "SELECT patient FROM subjects WHERE id = $1", subject).Scan(&patient); err != nil {
			return false, fmt.Errorf("records: %w", err)
		}
		q.Patients = []string{patient}
	}
	page, err := s.Search(ctx, q)
	return len(page.Observations) > 0, err
}

// anyReading gives the instant and the subject of some reading of a message, or of a chunk of samples; sql.ErrNoRows where it has none.
func (s *Store) anyReading(ctx context.Context, message int64) (at, subject int64, err error) {
	err = s.db.Read(ctx, func(tx *sql.Tx) error {
		first, last := rowsOf(message)
		type row struct {
			at, subject int64
			series      []int64
		}
		var found []row
		if err := each(ctx, tx, func(rows *sql.Rows) error {
			var r row
			var list []byte
			err := rows.Scan(&r.at, &r.subject, &list)
			if err == nil {
				r.series, err = parseSeries(list)
			}
			found = append(found, r)
			return err
		}, "SELECT r.at, l.subject, l.series FROM readings r JOIN layouts l ON l.id = r.layout WHERE r.id BETWEEN $1 AND $2 ORDER BY r.id", first, last); err != nil {
			return err
		}
		isPart := make(map[int64]bool)
		for _, r := range found {
			for _, id := range r.series {
				if _, known := isPart[id]; !known {
					var kind int64
					if err := tx.QueryRowContext(ctx, "SELECT kind FROM series WHERE id = $1", id).Scan(&kind); err != nil {
						return err
					}
					isPart[id] = kind == kindPart
				}
				if !isPart[id] {
					at, subject = r.at, r.subject
					return nil
				}
			}
		}
		return tx.QueryRowContext(ctx, "SELECT w.at, s.subject FROM waveforms w JOIN series s ON s.id = w.series WHERE w.message = $1 ORDER BY w.idx LIMIT 1", message).Scan(&at, &subject)
	})
	return at, subject, err
}

func instant(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
