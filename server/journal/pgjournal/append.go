package pgjournal

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"wardlink/server/journal"
	"wardlink/server/journal/group"
	"wardlink/server/sqldb"
)

const (
	// probeInterval is how often an idle journal looks whether PostgreSQL answers, and one that is ill whether it can be written again:
	// whoever asks for Health sends no traffic to a node that is ill, and the recovery must not wait for traffic.
	probeInterval = 2 * time.Second
	probeTime     = 10 * time.Second

	// Between two tries to connect, growing, with jitter: all nodes lose PostgreSQL at the same moment.
	minPause = 100 * time.Millisecond
	maxPause = 2 * time.Second
)

// run commits what is queued until Close, everything that gathered during one commit in the next.
func (j *Journal) run(notes chan<- group.Group[journal.Entry]) {
	defer close(notes)
	for {
		g, last := j.queue.Take(commitBytes, commitEntries)
		switch {
		case !g.Empty():
			if len(g.Entries) > 0 {
				g.Err = j.commit(g.Entries)
			}
			notes <- g
		case last:
			return
		default:
			j.idle()
		}
	}
}

// idle waits for something to commit, and looks after the connection meanwhile.
func (j *Journal) idle() {
	t := time.NewTimer(probeInterval)
	defer t.Stop()
	select {
	case <-j.queue.More():
		return
	case <-t.C:
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	if err := j.probe(ctx); err != nil {
		_ = j.failed(err) // told there
		return
	}
	j.mended()
}

// probe asks a healthy journal's connection for a sign of life. An ill one must show that it can take a group's room and commit.
func (j *Journal) probe(ctx context.Context) error {
	if err := j.connect(ctx); err != nil {
		return err
	}
	question := "SELECT 1"
	if j.Health() != nil {
		question = "SELECT public.journal_try()"
	}
	_, err := j.conn.Exec(ctx, question)
	j.keep(err)
	return err
}

// connect makes the committer's connection, unless there is one or it is too early to try again.
func (j *Journal) connect(ctx context.Context) error {
	if j.conn != nil {
		return nil
	}
	if j.refused != nil && time.Now().Before(j.retry) {
		return j.refused
	}
	conn, err := sqldb.ConnectNative(ctx, j.writing)
	if err == nil {
		err = conn.QueryRow(ctx, "SELECT 'public.journal_append(bytea, integer, integer)'::regprocedure::oid").Scan(&j.oid)
		if err != nil {
			_ = conn.Close(context.WithoutCancel(ctx))
		}
	}
	if err != nil {
		j.pause = min(max(2*j.pause, minPause), maxPause)
		j.retry = time.Now().Add(j.pause/2 + rand.N(j.pause/2))
		j.refused = err
		return err
	}
	j.conn, j.pause, j.refused = conn, 0, nil
	return nil
}

// keep gives the connection up unless the error leaves it usable.
func (j *Journal) keep(err error) {
	var answer *pgconn.PgError
	if err == nil || errors.As(err, &answer) && answer.SeverityUnlocalized == "ERROR" && !j.conn.IsClosed() {
		return
	}
	_ = j.hangUp()
}

// hangUp ends the committer's connection. What it was about to do then is in doubt.
func (j *Journal) hangUp() error {
	if j.conn == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := j.conn.Close(ctx)
	j.conn = nil
	return err
}

// commit makes a group durable. After an error nothing of it is there, or, when no answer came, all of it may be.
func (j *Journal) commit(batch []group.Pending[journal.Entry]) error {
	entries, size := make([]journal.Entry, len(batch)), 0
	for i, p := range batch {
		entries[i] = p.Entry
		size += p.Entry.Size()
	}
	ctx, cancel := context.WithTimeout(context.Background(), appendTime)
	defer cancel()
	if err := j.connect(ctx); err != nil {
		return j.failed(err)
	}
	first, err := call(ctx, j.conn.PgConn(), j.oid, journal.Pack(entries), len(batch), size)
	j.keep(err)
	if err != nil {
		return j.failed(err)
	}
	for i := range batch {
		batch[i].Seq = first + uint64(i)
	}
	j.mark.Reach(first + uint64(len(batch)) - 1)
	j.mended()
	return nil
}

// call has PostgreSQL call journal_append, and returns when that is committed. It is the protocol's function call and not a query, because that
// is one message: with a prepared statement PostgreSQL commits at a message of its own (Sync), and a client that stops or is cut off in
// between would hold the lock that everybody waits for.
func call(ctx context.Context, conn *pgconn.PgConn, oid uint32, entries []byte, count, size int) (first uint64, err error) {
	b := []byte{'F', 0, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, oid)
	b = append(b, 0, 1, 0, 1, 0, 3) // one format for all of three arguments: binary
	b = binary.BigEndian.AppendUint32(b, uint32(len(entries)))
	rest := []byte{}
	for _, v := range []int{count, size} {
		rest = append(rest, 0, 0, 0, 4)
		rest = binary.BigEndian.AppendUint32(rest, uint32(v))
	}
	rest = append(rest, 0, 1) // and for the result
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-1+len(entries)+len(rest)))
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.Conn().SetDeadline(deadline); err != nil {
			return 0, err
		}
		defer func() { _ = conn.Conn().SetDeadline(time.Time{}) }()
	}
	for _, part := range [][]byte{b, entries, rest} {
		if _, err := conn.Conn().Write(part); err != nil {
			return 0, fmt.Errorf("the group may be there all the same: %w", err)
		}
	}
	for answered := false; ; {
		m, rerr := conn.ReceiveMessage(ctx)
		if rerr != nil {
			if err == nil {
				err = fmt.Errorf("the group may be there all the same: %w", rerr)
			}
			return 0, err
		}
		switch m := m.(type) {
		case *pgproto3.FunctionCallResponse:
			if answered = len(m.Result) == 8; answered {
				first = binary.BigEndian.Uint64(m.Result)
			}
		case *pgproto3.ErrorResponse:
			err = pgconn.ErrorResponseToPgError(m)
		case *pgproto3.NoticeResponse:
			if err == nil && m.SeverityUnlocalized == "WARNING" {
				err = fmt.Errorf("the group may be there all the same: PostgreSQL warns: %s", m.Message)
			}
		case *pgproto3.ReadyForQuery:
			// The transaction is over, and this comes behind its flush.
			if err == nil && (!answered || m.TxStatus != 'I') {
				err = errors.New("the group may be there all the same: PostgreSQL's answer is not that of journal_append")
			}
			return first, err
		}
	}
}

func (j *Journal) failed(err error) error {
	err = sqldb.Explain(j.c.URL, err)
	if tell, failures := j.fault.Failed(err); tell {
		j.c.Log.Error("the journal cannot be written; nothing is acknowledged", "database", j.name, "error", err, "failures", failures)
	}
	return fmt.Errorf("journal: %w", err)
}

func (j *Journal) mended() {
	if was, failures := j.fault.Mended(); was {
		j.c.Log.Info("the journal can be written again", "database", j.name, "failures", failures)
	}
}
