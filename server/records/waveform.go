package records

import (
	"bytes"
	"compress/flate"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"strings"

	"wardlink/telemetry"
)

//go:embed waveforms_0001.sql
var waveforms1 string

// Kinds of series beside those of readings.
const (
	kindWaveform            = 3
	kindWaveformUnitUnknown = 4
)

func isWaveform(kind int64) bool { return kind == kindWaveform || kind == kindWaveformUnitUnknown }

// channelKey is what the chunks of one channel share.
type channelKey struct {
	kind, name, label, unit, subID, device, status, flags string
	period, factor, origin, lower, upper, bed             string
}

func (k channelKey) owned() channelKey {
	for _, text := range []*string{
		&k.kind, &k.name, &k.label, &k.unit, &k.subID, &k.device, &k.status, &k.flags, &k.period, &k.factor, &k.origin, &k.lower, &k.upper, &k.bed,
	} {
		*text = strings.Clone(*text)
	}
	return k
}

const (
	findChannel   = "SELECT id FROM channels WHERE hash = $1"
	insertChannel = `INSERT INTO channels (hash, type, code_name, label, unit, sub_id, device, status, flags, period, factor, origin, lower, upper, bed)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) RETURNING id`
)

var insertWaveforms = bulk{"INSERT INTO waveforms (message, idx, series, channel, at, time, marks, journaled, count, samples) VALUES ",
	" ON CONFLICT (message, idx) DO NOTHING RETURNING count", "?, ?, ?, ?, ?, ?, ?, ?, ?, ?"}

var waveformQueries = []string{findChannel, insertChannel}

func (in *interner) channel(tx *sql.Tx, k channelKey) (int64, error) {
	if id, ok := in.channels[k]; ok {
		return id, nil
	}
	texts := []string{
		k.kind, k.name, k.label, k.unit, k.subID, k.device, k.status, k.flags, k.period, k.factor, k.origin, k.lower, k.upper,
	}
	hash := bedHash(k.bed, texts...)
	args := []any{hash}
	for _, t := range append(texts, k.bed) {
		args = append(args, t)
	}
	return intern(in, tx, &in.channels, k, findChannel, []any{hash}, insertChannel, args)
}

// waveform adds one chunk.
func (rs *readings) waveform(message int64, s *stored, m *telemetry.Message, w *telemetry.Waveform) error {
	kind := int64(kindWaveform)
	if w.Marks&telemetry.MarkUnknownUnit != 0 {
		kind = kindWaveformUnitUnknown
	}
	series, err := rs.r.in.oneSeries(rs.tx, seriesKey{s.subject, w.Code.MDC, w.Unit.UCUM, w.Code.Sys, w.Code.ID, kind})
	if err != nil {
		return err
	}
	channel, err := rs.r.in.channel(rs.tx, channelKey{
		w.Type, w.Code.Name, w.Label, w.Unit.Sent, w.SubID, w.Device, w.Status, w.Flags, w.Period, w.Factor, w.Origin, w.Lower, w.Upper, m.BedOf(w.Bed),
	})
	if err != nil {
		return err
	}
	samples, err := rs.r.in.pack(w.Samples)
	if err != nil {
		return err
	}
	var sent any
	if w.Time != s.first {
		sent = w.Time
	}
	at, marks := placed(m, w.At, s.o.marked(w.Marks))
	rs.waveforms = append(rs.waveforms, message, int64(w.Index), series, channel, at, sent, int64(marks), s.aged, int64(len(w.Samples)), samples)
	if len(rs.waveforms) >= 10*maxChunks {
		return rs.flushWaveforms()
	}
	return nil
}

// maxChunks bounds what is gathered.
const maxChunks = 16

func (rs *readings) flushWaveforms() error {
	err := rs.r.in.returned(rs.tx, insertWaveforms, rs.waveforms, func(rows *sql.Rows) error {
		var samples int64
		err := rows.Scan(&samples)
		rs.total.waveforms++
		rs.total.samples += samples
		return err
	})
	rs.waveforms = rs.waveforms[:0]
	return err
}

func addWaveforms(tx *sql.Tx, total *totals) error {
	if total.waveforms == 0 {
		return nil
	}
	_, err := tx.Exec("UPDATE waveforms_totals SET chunks = chunks + $1, samples = samples + $2", total.waveforms, total.samples)
	return err
}

// The forms of waveforms.samples.
const (
	samplesPlain    = 0
	samplesDeflated = 1
)

// pack gives the samples as they are kept: tokens, by the length that their frequency asks for where that is shorter. Matches of
// several bytes, which a noisy signal does not have, are not looked for.
func (in *interner) pack(samples []int32) ([]byte, error) {
	tokens := telemetry.AppendSamples([]byte{samplesPlain}, samples)
	in.packed.Reset()
	in.packed.WriteByte(samplesDeflated)
	if in.deflate == nil {
		w, err := flate.NewWriter(io.Discard, flate.HuffmanOnly)
		if err != nil {
			return nil, err
		}
		in.deflate = w
	}
	in.deflate.Reset(&in.packed)
	if _, err := in.deflate.Write(tokens[1:]); err != nil {
		return nil, err
	}
	if err := in.deflate.Close(); err != nil {
		return nil, err
	}
	if in.packed.Len() < len(tokens) {
		return bytes.Clone(in.packed.Bytes()), nil
	}
	return tokens, nil
}

// unpacker reads what pack wrote.
type unpacker struct {
	inflate io.ReadCloser
	tokens  bytes.Buffer
}

// samples reads a chunk of count samples.
func (u *unpacker) samples(kept []byte, count int) ([]int32, error) {
	if len(kept) == 0 || count < 0 || count > telemetry.MaxSamples {
		return nil, errors.New("records: a chunk of samples is damaged")
	}
	tokens := kept[1:]
	if kept[0] == samplesDeflated {
		in := bytes.NewReader(kept[1:])
		if u.inflate == nil {
			u.inflate = flate.NewReader(in)
		} else if err := u.inflate.(flate.Resetter).Reset(in, nil); err != nil {
			return nil, err
		}
		u.tokens.Reset()
		if _, err := u.tokens.ReadFrom(io.LimitReader(u.inflate, telemetry.MaxPlain)); err != nil {
			return nil, fmt.Errorf("records: a chunk of samples is damaged: %w", err)
		}
		tokens = u.tokens.Bytes()
	}
	samples, err := telemetry.ParseSamples(tokens, count)
	if err != nil || len(samples) != count {
		return nil, errors.New("records: a chunk of samples is damaged")
	}
	return samples, nil
}

// Waveform is what an Observation that is one has instead of a value: a sample's value is Origin + sample * Factor, in the
// observation's unit. At is the time of the first sample.
type Waveform struct {
	Label   string // the channel's name as the device shows it
	Period  string // milliseconds between two samples; this and the following are exact decimals
	Factor  string // "" is 1
	Origin  string // "" is 0
	Lower   string // "" is not known
	Upper   string
	Samples []int32 // telemetry.MissingSample stands for none
}

const selectWaveform = `SELECT m.key, w.at, COALESCE(w.time, m.time), w.marks, w.message, w.idx,
	s.mdc, s.code_system, s.code, c.code_name, c.type, c.unit, s.ucum, c.sub_id, c.device, c.status, c.flags,
	COALESCE(p.patient, ''), COALESCE(p.system, ''), COALESCE(p.value, ''),
	src.gateway, src.source, g.location, g.processing, m.wall, m.mono, m.journaled,
	c.bed, c.label, c.period, c.factor, c.origin, c.lower, c.upper, w.count, w.samples
	FROM waveforms w JOIN messages m ON m.id = w.message JOIN series s ON s.id = w.series JOIN channels c ON c.id = w.channel
	JOIN sources src ON src.id = m.source JOIN origins g ON g.id = m.origin LEFT JOIN subjects p ON p.id = s.subject
	WHERE w.message = $1 AND w.idx = $2`

func scanWaveform(row *sql.Rows, u *unpacker) (o Observation, err error) {
	var key, samples []byte
	var count int
	w := &Waveform{}
	err = row.Scan(&key, &o.At, &o.Time, &o.Marks, &o.position.Message, &o.position.Index,
		&o.Code.MDC, &o.Code.Sys, &o.Code.ID, &o.Code.Name, &o.Type, &o.Unit.Sent, &o.Unit.UCUM, &o.SubID, &o.Device, &o.Status, &o.Flags,
		&o.Patient.ID, &o.Patient.System, &o.Patient.Value,
		&o.Gateway, &o.Source, &o.Location, &o.Process, &o.Received.Wall, &o.Received.Mono, &o.Journaled,
		&o.Bed, &w.Label, &w.Period, &w.Factor, &w.Origin, &w.Lower, &w.Upper, &count, &samples)
	if err != nil {
		return Observation{}, err
	}
	if w.Samples, err = u.samples(samples, count); err != nil {
		return Observation{}, err
	}
	o.position.At = o.At
	o.ID = fmt.Sprintf("%x-%d", key, o.position.Index)
	o.Waveform = w
	return o, nil
}

// size is about what an observation takes in an answer, in bytes.
func (o *Observation) size() int {
	n := 1 << 10 // codings, patient, device, times
	if o.Waveform == nil {
		return n + len(o.Value)
	}
	for _, s := range o.Waveform.Samples {
		switch {
		case s == telemetry.MissingSample:
			n += 2
		case s < 0:
			n += 2 + width(-int64(s))
		default:
			n += 1 + width(int64(s))
		}
	}
	return n
}

func width(v int64) (digits int) {
	for digits = 1; v >= 10; v /= 10 {
		digits++
	}
	return digits
}
