package api

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
	"wardlink/server/records"
	"wardlink/telemetry"
)

// Records are what the API needs of the records: the batches that could not be opened.
type Records interface {
	Dead(ctx context.Context, f records.BatchFilter, limit int) (records.DeadBatches, error)
	Reopen(ctx context.Context, actor audit.Actor, peer string, f records.BatchFilter) (records.Reopening, error)
	Reopening(ctx context.Context, id int64) (records.Reopening, error)
	Retention
}

// Retention is what the API needs of disposal.
type Retention interface {
	Retention(ctx context.Context) (records.RetentionState, error)
	ClockIsRight(ctx context.Context, actor audit.Actor, peer string) error
}

// maxDead bounds one list of dead batches.
const maxDead = 10_000

func (a *API) deadBatches(w http.ResponseWriter, r *http.Request, who who) error {
	q := r.URL.Query()
	f, err := batchFilter(client.BatchFilter{
		Gateway: q.Get("gateway"), Epoch: q.Get("epoch"), Lane: q.Get("lane"), Number: q.Get("number"), Reason: q.Get("reason"),
	})
	if err != nil {
		return badRequest{err}
	}
	limit := 1000
	if text := q.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxDead {
			return badRequest{fmt.Errorf("limit: %q; expected 1 to %d", text, maxDead)}
		}
	}
	list, err := a.Records.Dead(r.Context(), f, limit)
	if err != nil {
		return err
	}
	if err := a.event(r, who, audit.Event{
		Type: audit.BatchesRead, Target: f.Gateway, Outcome: audit.Success, Count: uint64(len(list.Batches)),
	}); err != nil {
		return err
	}
	out := client.DeadBatches{Batches: []client.DeadBatch{}, Total: list.Total}
	for _, d := range list.Batches {
		out.Batches = append(out.Batches, client.DeadBatch{
			Gateway: d.Gateway, Epoch: d.ID.Epoch.String(), Lane: d.ID.Lane.String(), Number: d.ID.Number, Reason: d.Reason,
			Received: time.UnixMilli(d.Received).UTC(), Attempts: d.Attempts, Bytes: d.Bytes, Frame: hex.EncodeToString(d.Frame[:]),
			JournalSeq: d.Seq, Kept: d.Kept,
		})
	}
	return writeJSON(w, out)
}

// reopenBatches has dead batches tried again. An empty filter must be meant: All says so.
func (a *API) reopenBatches(w http.ResponseWriter, r *http.Request, who who) error {
	var in client.ReopenRequest
	if err := readJSON(r, &in); err != nil {
		return err
	}
	f, err := batchFilter(in.BatchFilter)
	if err != nil {
		return badRequest{err}
	}
	switch {
	case f.Gateway == "":
		return badRequest{errors.New("gateway: missing; name the gateway whose batches are to be opened again")}
	case in.All == (f.Epoch != nil || f.Lane != nil || f.Number != nil || f.Reason != ""):
		return badRequest{errors.New("name batches (epoch, lane and number), a reason, or all")}
	case !in.All && f.Reason == "" && (f.Epoch == nil || f.Lane == nil || f.Number == nil):
		return badRequest{errors.New("a batch is named by epoch, lane and number together, as the list of dead batches shows them")}
	}
	done, err := a.Records.Reopen(r.Context(), who.actor, who.peer, f)
	if errors.Is(err, records.ErrNoBatch) {
		writeProblem(w, http.StatusNotFound, "not found", "no dead batch of that gateway matches; 'wardlink records dead' lists them")
		return nil
	}
	if err != nil {
		return err
	}
	return writeJSON(w, showReopening(done))
}

func (a *API) reopening(w http.ResponseWriter, r *http.Request, _ who) error {
	id, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
	if err != nil {
		return badRequest{fmt.Errorf("reopening: %q; expected its number", r.PathValue("n"))}
	}
	now, err := a.Records.Reopening(r.Context(), id)
	if errors.Is(err, records.ErrNotFound) {
		writeProblem(w, http.StatusNotFound, "not found", "no such reopening; the outcome of the latest ones is kept")
		return nil
	}
	if err != nil {
		return err
	}
	return writeJSON(w, showReopening(now))
}

func showReopening(r records.Reopening) client.Reopening {
	out := client.Reopening{
		ID: r.ID, Batches: r.Batches, NoRoom: r.NoRoom, Gone: r.Gone, Stored: r.Stored, Pending: r.Pending, Dead: r.Dead, Outcomes: []client.Outcome{},
	}
	for _, o := range r.Outcomes {
		state := "pending"
		if o.Dead {
			state = "dead"
		}
		out.Outcomes = append(out.Outcomes, client.Outcome{State: state, Reason: o.Reason, Count: o.Count})
	}
	return out
}

// maxReason bounds what is looked for; the reasons are sentences of this program.
const maxReason = 200

func batchFilter(in client.BatchFilter) (f records.BatchFilter, err error) {
	f.Gateway, f.Reason = in.Gateway, in.Reason
	if err := spiffe.ValidName(in.Gateway); in.Gateway != "" && err != nil { // it becomes part of the log, which keeps for ever
		return f, fmt.Errorf("gateway: %w", err)
	}
	if len(in.Reason) > maxReason {
		return f, fmt.Errorf("reason: %d bytes; at most %d", len(in.Reason), maxReason)
	}
	if in.Epoch != "" {
		epoch, err := telemetry.ParseEpoch(in.Epoch)
		if err != nil {
			return f, err
		}
		f.Epoch = &epoch
	}
	if in.Lane != "" {
		lane, err := telemetry.ParseLane(in.Lane)
		if err != nil {
			return f, err
		}
		f.Lane = &lane
	}
	if in.Number != "" {
		n, err := strconv.ParseUint(in.Number, 10, 63)
		if err != nil {
			return f, fmt.Errorf("number: %.40q; expected a batch number", in.Number)
		}
		f.Number = &n
	}
	return f, nil
}

func (a *API) retention(w http.ResponseWriter, r *http.Request, _ who) error {
	s, err := a.Records.Retention(r.Context())
	if err != nil {
		return err
	}
	out := client.Retention{Suspended: s.Suspended, DriftSeconds: int64(s.Drift / time.Second), Classes: []client.Class{}}
	for _, c := range s.Classes {
		out.Classes = append(out.Classes, client.Class{
			Class: string(c.Class), KeepHours: int64(c.Keep / time.Hour), Oldest: moment(c.Oldest), Checked: moment(c.Checked),
			Disposal: moment(c.Disposal), Disposed: c.Disposed,
		})
	}
	return writeJSON(w, out)
}

// moment is nil for a time that never was.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
