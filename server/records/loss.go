package records

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"wardlink/audit"
	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

// lossRow is what is lost of one stream.
type lossRow struct {
	lost        uint64
	upper       bool
	first, last uint64
}

// keepLoss writes down what is lost of a stream, and an event when that changed: more was reported as evicted or damaged, or something that had
// been called lost came, or is held, after all. Row and event are of one transaction with what told of it, so that a crash leaves both or none.
func (r *Records) keepLoss(tx *sql.Tx, stream int64, b *Balance) error {
	var former, now lossRow
	err := tx.QueryRow("SELECT lost, upper, first, last FROM account_losses WHERE stream = $1", stream).Scan(&former.lost, &former.upper, &former.first, &former.last)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if n := len(b.lost); n > 0 {
		now = lossRow{min(b.Lost, mostLost), b.AtMost&ClassLost != 0, b.lost[0].First, b.lost[n-1].Last}
	}
	if now == former || b.AtMost&ClassMissing != 0 && now.lost < former.lost { // of a lane too torn to be looked at in whole nothing is known to be back
		return nil
	}
	if _, err := tx.Exec(`INSERT INTO account_losses (stream, lost, upper, first, last, noticed) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (stream) DO UPDATE SET lost = excluded.lost, upper = excluded.upper, first = excluded.first, last = excluded.last,
		noticed = CASE WHEN excluded.lost > account_losses.lost THEN excluded.noticed ELSE account_losses.noticed END`,
		stream, int64(now.lost), sqldb.Flag(now.upper), int64(now.first), int64(now.last), r.now().UnixMilli()); err != nil {
		return err
	}
	if now.lost == former.lost {
		return nil
	}
	return r.tellLoss(tx, stream, former, now, b.lost)
}

// mostLost is how many batches of one stream are counted as lost at the most, far above what a gateway can have made: sums of what a gateway
// claims must not overflow, or its claim would hide all others' losses.
const mostLost = 1 << 40

// maxToldRuns bounds the runs of numbers that one event names.
const maxToldRuns = 16

func (r *Records) tellLoss(tx *sql.Tx, stream int64, former, now lossRow, runs []telemetry.Span) error {
	var gateway string
	var epoch []byte
	var lane telemetry.Lane
	if err := tx.QueryRow("SELECT gateway, epoch, lane FROM streams WHERE id = $1", stream).Scan(&gateway, &epoch, &lane); err != nil {
		return err
	}
	ev := audit.Event{
		Type: audit.BatchesLost, Actor: audit.Actor{ID: r.gatewayID(gateway)}, Target: gateway, Outcome: audit.Failed,
		Reason: "evicted or damaged in the gateway before the hospital had them",
		Detail: map[string]string{"epoch": telemetry.Epoch(epoch).String(), "lane": lane.String(), "lost": fmt.Sprint(now.lost)},
	}
	if now.upper {
		ev.Detail["at_most"] = "true"
	}
	if now.lost > former.lost {
		ev.Count = now.lost - former.lost
	} else {
		ev.Type, ev.Outcome, ev.Count, ev.Reason = audit.BatchesFound, audit.Success, former.lost-now.lost, "called lost before"
	}
	if now.lost > 0 {
		ev.Detail["first"], ev.Detail["last"] = fmt.Sprint(now.first), fmt.Sprint(now.last)
		ev.Detail["numbers"] = runsText(runs)
		if err := lossSpan(tx, stream, now, ev.Detail); err != nil {
			return err
		}
	}
	r.log.Warn("what a gateway lost has changed", "gateway", gateway, "lane", lane.String(), "lost", now.lost, "before", former.lost)
	return r.outbox.Add(tx, ev)
}

func runsText(runs []telemetry.Span) (text string) {
	for i, s := range runs {
		switch {
		case i == maxToldRuns:
			return text + " and others"
		case i > 0:
			text += " "
		}
		if text += fmt.Sprint(s.First); s.Last > s.First {
			text += fmt.Sprint("-", s.Last)
		}
	}
	return text
}

// lossSpan says when the hospital received what was numbered directly before and after the lost batches, as far as it has those: between the two
// lies what is missing. It is the server's clock; batches that waited in the gateway came later than they were made.
func lossSpan(tx *sql.Tx, stream int64, l lossRow, detail map[string]string) error {
	for key, query := range map[string]struct {
		text string
		args []any
	}{
		"received_before": {"SELECT received FROM batches WHERE stream = $1 AND number < $2 ORDER BY number DESC LIMIT 1", []any{stream, int64(l.first)}},
		"received_after":  {"SELECT received FROM batches WHERE stream = $1 AND number > $2 ORDER BY number LIMIT 1", []any{stream, int64(l.last)}},
	} {
		var at int64
		switch err := tx.QueryRow(query.text, query.args...).Scan(&at); {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return err
		default:
			detail[key] = time.UnixMilli(at).UTC().Format(time.RFC3339)
		}
	}
	return nil
}

// LossCount is what one gateway reported as lost.
type LossCount struct {
	Gateway string
	Batches int64
	AtMost  bool      // an upper bound
	Noticed time.Time // when it last grew
	Lanes   string    // which lost something, as "vitals waveform"
}

// LossesByGateway counts at most limit gateways' batches that are lost, of streams whose loss grew after a time.
func (r *Records) LossesByGateway(ctx context.Context, after time.Time, limit int) ([]LossCount, error) {
	rows, err := r.db.Query(ctx, lossesByGateway, after.UnixMilli(), limit)
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	defer func() { _ = rows.Close() }()
	var out []LossCount
	for rows.Next() {
		var l LossCount
		var noticed int64
		var lanes uint
		if err := rows.Scan(&l.Gateway, &l.Batches, &l.AtMost, &noticed, &lanes); err != nil {
			return nil, fmt.Errorf("records: %w", err)
		}
		l.Noticed = time.UnixMilli(noticed)
		for lane := range telemetry.Lane(telemetry.LaneCount) {
			if lanes&(1<<lane) != 0 {
				if l.Lanes != "" {
					l.Lanes += " "
				}
				l.Lanes += lane.String()
			}
		}
		out = append(out, l)
	}
	return out, rows.Err()
}

// Each lane's bit once: a sum of distinct powers of two.
const lossesByGateway = `SELECT x.gateway, CAST(SUM(x.lost) AS BIGINT), MAX(x.upper), MAX(x.noticed), SUM(1 << CAST(x.lane AS INTEGER)) FROM (
		SELECT s.gateway, s.lane, CAST(SUM(l.lost) AS BIGINT) AS lost, MAX(l.upper) AS upper, MAX(l.noticed) AS noticed
		FROM account_losses l CROSS JOIN streams s WHERE s.id = l.stream AND l.noticed > $1 AND l.lost > 0 GROUP BY s.gateway, s.lane
	) x GROUP BY x.gateway ORDER BY x.gateway LIMIT $2`

// LossesOf counts what a gateway's streams lost that grew after a time, lane self left out: a report is no data.
func (s *Store) LossesOf(ctx context.Context, gateway string, after time.Time) (lost uint64, err error) {
	err = s.db.QueryRow(ctx, `SELECT CAST(COALESCE(SUM(l.lost), 0) AS BIGINT) FROM streams s JOIN account_losses l ON l.stream = s.id
		WHERE s.gateway = $1 AND s.lane <> $2 AND l.noticed > $3`, gateway, int64(telemetry.LaneSelf), after.UnixMilli()).Scan(&lost)
	if err != nil {
		return 0, fmt.Errorf("records: losses of %s: %w", gateway, err)
	}
	return lost, nil
}
