package records

import (
	"bytes"
	"compress/flate"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"

	"wardlink/internal/secret"
	"wardlink/server/sqldb"
	"wardlink/telemetry"
)

// The texts that rows share. Each is kept once and found again by a key that is a Go value, so that the usual reading costs map
// look-ups instead of queries.
type (
	sourceKey struct{ gateway, source string }
	bootKey   struct {
		gateway string
		boot    [16]byte
	}
	streamKey struct {
		gateway string
		epoch   telemetry.Epoch
		lane    telemetry.Lane
	}
	originKey  struct{ kind, sender, processing, location, visit string }
	subjectKey struct{ authority, id string }
	seriesKey  struct {
		subject            int64
		mdc                uint32
		ucum, system, code string
		kind               int64
	}
	formKey struct{ kind, name, unit, subID, limits, device, status, flags, bed string }
)

// interned is a key of a cache. Its texts are parts of the batch, or of the row of access, that it was met in first; owned gives one that does not keep
// all of that in memory.
type interned[K any] interface {
	comparable
	owned() K
}

func (k sourceKey) owned() sourceKey {
	return sourceKey{strings.Clone(k.gateway), strings.Clone(k.source)}
}

func (k bootKey) owned() bootKey { return bootKey{strings.Clone(k.gateway), k.boot} }

func (k streamKey) owned() streamKey {
	return streamKey{strings.Clone(k.gateway), k.epoch, k.lane}
}

func (k originKey) owned() originKey {
	return originKey{strings.Clone(k.kind), strings.Clone(k.sender), strings.Clone(k.processing), strings.Clone(k.location), strings.Clone(k.visit)}
}

func (k subjectKey) owned() subjectKey {
	return subjectKey{strings.Clone(k.authority), strings.Clone(k.id)}
}

func (k seriesKey) owned() seriesKey {
	return seriesKey{k.subject, k.mdc, strings.Clone(k.ucum), strings.Clone(k.system), strings.Clone(k.code), k.kind}
}

func (k formKey) owned() formKey {
	return formKey{
		strings.Clone(k.kind), strings.Clone(k.name), strings.Clone(k.unit), strings.Clone(k.subID), strings.Clone(k.limits), strings.Clone(k.device),
		strings.Clone(k.status), strings.Clone(k.flags), strings.Clone(k.bed),
	}
}

// maxInterned bounds each cache's keys and maxInternedSize the bytes of one; a full cache is emptied, a long key is not kept, both of
// which cost queries and nothing else.
const (
	maxInterned     = 50_000
	maxInternedSize = 1 << 10
)

// cache holds the ids of one table's rows. It may hold only what is committed: after a failed transaction all caches are emptied.
type cache[K comparable] map[K]int64

// interner finds or makes the rows that others refer to.
type interner struct {
	patientKey secret.Bytes
	stmts      map[string]*sql.Stmt // by query text
	bulks      map[bulk]sized

	streams  cache[streamKey]
	sources  cache[sourceKey]
	boots    cache[bootKey]
	origins  cache[originKey]
	subjects cache[subjectKey]
	series   cache[seriesKey]
	forms    cache[formKey]
	channels cache[channelKey]
	layouts  cache[string] // by layouts.series

	listed  []byte
	deflate *flate.Writer
	packed  bytes.Buffer
	tops    map[int64]topRun // by stream
	ranged  map[int64]int64  // by stream: the last number of batch_ranges
}

func newInterner(key secret.Bytes) *interner {
	in := &interner{patientKey: key, stmts: make(map[string]*sql.Stmt), bulks: make(map[bulk]sized)}
	in.forget()
	return in
}

// forget empties all caches.
func (in *interner) forget() {
	in.streams = make(cache[streamKey])
	in.sources = make(cache[sourceKey])
	in.boots = make(cache[bootKey])
	in.origins = make(cache[originKey])
	in.subjects = make(cache[subjectKey])
	in.series = make(cache[seriesKey])
	in.forms = make(cache[formKey])
	in.channels = make(cache[channelKey])
	in.layouts = make(cache[string])
	in.tops = make(map[int64]topRun)
	in.ranged = make(map[int64]int64)
}

// keepTop remembers a stream's highest run.
func (in *interner) keepTop(stream int64, top topRun) {
	if len(in.tops) >= maxInterned {
		clear(in.tops)
	}
	in.tops[stream] = top
}

// prepare makes the statements ready, once per database.
func (in *interner) prepare(ctx context.Context, db *sqldb.DB, queries ...string) error {
	for _, q := range queries {
		if in.stmts[q] != nil {
			continue
		}
		s, err := db.Prepare(ctx, q)
		if err != nil {
			return err
		}
		in.stmts[q] = s
	}
	return nil
}

// noCancel is for the statements of one transaction: the driver starts a goroutine for each statement whose context can be
// cancelled, which costs more than the statement. Cancelling is looked at between transactions.
var noCancel = context.Background()

func (in *interner) exec(tx *sql.Tx, query string, args ...any) (sql.Result, error) {
	if in.stmts[query] == nil { // an upgrade prepares nothing
		return tx.ExecContext(noCancel, query, args...)
	}
	return tx.StmtContext(noCancel, in.stmts[query]).ExecContext(noCancel, args...)
}

func (in *interner) row(tx *sql.Tx, query string, args ...any) *sql.Row {
	if in.stmts[query] == nil {
		return tx.QueryRowContext(noCancel, query, args...)
	}
	return tx.StmtContext(noCancel, in.stmts[query]).QueryRowContext(noCancel, args...)
}

// intern gives the id of the row that find selects by its arguments, inserting it when it is not there.
func intern[K interned[K]](in *interner, tx *sql.Tx, c *cache[K], key K, find string, findArgs []any, insert string, insertArgs []any) (int64, error) {
	var id int64
	err := in.row(tx, find, findArgs...).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		err = in.row(tx, insert, insertArgs...).Scan(&id)
	}
	if err != nil {
		return 0, err
	}
	size := 0
	for _, a := range insertArgs {
		if text, ok := a.(string); ok {
			size += len(text)
		}
	}
	if size > maxInternedSize {
		return id, nil
	}
	if len(*c) >= maxInterned {
		clear(*c)
	}
	(*c)[key.owned()] = id
	return id, nil
}

const (
	findStream    = "SELECT id FROM streams WHERE gateway = $1 AND epoch = $2 AND lane = $3"
	insertStream  = "INSERT INTO streams (gateway, epoch, lane) VALUES ($1, $2, $3) RETURNING id"
	findSource    = "SELECT id FROM sources WHERE gateway = $1 AND source = $2"
	insertSource  = "INSERT INTO sources (gateway, source) VALUES ($1, $2) RETURNING id"
	findBoot      = "SELECT id FROM boots WHERE gateway = $1 AND boot = $2"
	insertBoot    = "INSERT INTO boots (gateway, boot) VALUES ($1, $2) RETURNING id"
	findOrigin    = "SELECT id FROM origins WHERE hash = $1"
	insertOrigin  = "INSERT INTO origins (hash, type, sender, processing, location, visit) VALUES ($1, $2, $3, $4, $5, $6) RETURNING id"
	findSubject   = "SELECT id FROM subjects WHERE patient = $1"
	insertSubject = "INSERT INTO subjects (patient, system, authority, value) VALUES ($1, $2, $3, $4) RETURNING id"
	findSeries    = "SELECT id FROM series WHERE subject = $1 AND mdc = $2 AND ucum = $3 AND code_system = $4 AND code = $5 AND kind = $6"
	insertSeries  = "INSERT INTO series (subject, mdc, ucum, code_system, code, kind) VALUES ($1, $2, $3, $4, $5, $6) RETURNING id"
	findForm      = "SELECT id FROM forms WHERE hash = $1"
	insertForm    = "INSERT INTO forms (hash, type, code_name, unit, sub_id, limits, device, status, flags, bed) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING id"
)

var internQueries = []string{
	findStream, insertStream, findSource, insertSource, findBoot, insertBoot, findOrigin, insertOrigin,
	findSubject, insertSubject, findSeries, insertSeries, findForm, insertForm,
}

func (in *interner) stream(tx *sql.Tx, k streamKey) (int64, error) {
	if id, ok := in.streams[k]; ok {
		return id, nil
	}
	args := []any{k.gateway, k.epoch[:], int64(k.lane)}
	return intern(in, tx, &in.streams, k, findStream, args, insertStream, args)
}

func (in *interner) source(tx *sql.Tx, k sourceKey) (int64, error) {
	if id, ok := in.sources[k]; ok {
		return id, nil
	}
	text := k.source
	if err := keep(tx, &text); err != nil {
		return 0, err
	}
	args := []any{k.gateway, text}
	return intern(in, tx, &in.sources, k, findSource, args, insertSource, args)
}

func (in *interner) boot(tx *sql.Tx, k bootKey) (int64, error) {
	if id, ok := in.boots[k]; ok {
		return id, nil
	}
	args := []any{k.gateway, k.boot[:]}
	return intern(in, tx, &in.boots, k, findBoot, args, insertBoot, args)
}

func (in *interner) origin(tx *sql.Tx, k originKey) (int64, error) {
	if id, ok := in.origins[k]; ok {
		return id, nil
	}
	hash := textHash(k.kind, k.sender, k.processing, k.location, k.visit)
	return intern(in, tx, &in.origins, k, findOrigin, []any{hash}, insertOrigin,
		[]any{hash, k.kind, k.sender, k.processing, k.location, k.visit})
}

// subject is 0 for a message whose device knows no patient.
func (in *interner) subject(tx *sql.Tx, k subjectKey) (int64, error) {
	if k.id == "" {
		return 0, nil
	}
	if id, ok := in.subjects[k]; ok {
		return id, nil
	}
	system := AuthoritySystem(k.authority)
	patient := PatientID(in.patientKey, system, k.id)
	value := k.id
	if err := keep(tx, &value); err != nil {
		return 0, err
	}
	return intern(in, tx, &in.subjects, k, findSubject, []any{patient}, insertSubject, []any{patient, system, k.authority, value})
}

func (in *interner) oneSeries(tx *sql.Tx, k seriesKey) (int64, error) {
	if id, ok := in.series[k]; ok {
		return id, nil
	}
	ucum, system, code := k.ucum, k.system, k.code
	if err := keep(tx, &ucum, &system, &code); err != nil {
		return 0, err
	}
	args := []any{k.subject, int64(k.mdc), ucum, system, code, k.kind}
	return intern(in, tx, &in.series, k, findSeries, args, insertSeries, args)
}

func (in *interner) form(tx *sql.Tx, k formKey) (int64, error) {
	if id, ok := in.forms[k]; ok {
		return id, nil
	}
	hash := bedHash(k.bed, k.kind, k.name, k.unit, k.subID, k.limits, k.device, k.status, k.flags)
	return intern(in, tx, &in.forms, k, findForm, []any{hash}, insertForm,
		[]any{hash, k.kind, k.name, k.unit, k.subID, k.limits, k.device, k.status, k.flags, k.bed})
}

// textHash stands for long texts in a unique index: SHA-256 over the texts, each with its length before it.
func textHash(texts ...string) []byte {
	h := sha256.New()
	var length [4]byte
	for _, t := range texts {
		binary.BigEndian.PutUint32(length[:], uint32(len(t)))
		h.Write(length[:])
		h.Write([]byte(t))
	}
	return h.Sum(nil)
}

// messageKey is the key of one message for ever.
func messageKey(gateway, source string, digest [32]byte, n uint32) [16]byte {
	of := make([]byte, 0, 256)
	of = append(of, "wardlink/message/1\x00"...)
	for _, text := range []string{gateway, source} {
		of = append(strconv.AppendInt(of, int64(len(text)), 10), ':')
		of = append(of, text...)
	}
	of = append(of, digest[:]...)
	of = binary.BigEndian.AppendUint32(of, n)
	sum := sha256.Sum256(of)
	return [16]byte(sum[:16])
}

// close gives the statements back.
func (in *interner) close() {
	for q, s := range in.stmts {
		_ = s.Close()
		delete(in.stmts, q)
	}
}
