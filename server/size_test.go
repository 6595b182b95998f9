package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"log/slog"
	"math"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/internal/spiffe"
	"wardlink/server/journal"
	"wardlink/server/records"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// oneKey is a registry of one gateway's key.
type oneKey struct{ key registry.Key }

func (k oneKey) KeyBySPKI(context.Context, [32]byte) (registry.Key, error) { return k.key, nil }

// scales weighs what one gateway's batches take.
type scales struct {
	t       *testing.T
	key     seal.PrivateKey
	device  *ecdsa.PrivateKey
	public  []byte
	period  *seal.Period
	journal *sqldbtest.Journal
	number  uint64
	message int
	noise   *mrand.Rand
}

func newScales(t *testing.T) *scales {
	t.Helper()
	s := &scales{t: t, journal: &sqldbtest.Journal{}, noise: mrand.New(mrand.NewPCG(1, 2))}
	var err error
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	s.key, err = seal.GenerateKey()
	must(err)
	s.device, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	s.public, err = x509.MarshalPKIXPublicKey(&s.device.PublicKey)
	must(err)
	s.period, err = seal.NewPeriod(s.key.Public(), telemetry.Epoch{1}, time.Now())
	must(err)
	signed, err := seal.SignRecord(s.period.Record(), s.device)
	must(err)
	ev := audit.Event{
		ID: s.journal.NextID(), Type: audit.SealingBrought, Time: time.Now().UnixMilli(), Outcome: audit.Success,
		Actor: audit.Actor{ID: spiffe.ID{TrustDomain: "ward.example", Kind: spiffe.Gateway, Name: "icu-3-bed-7"}.String()},
	}
	head, err := audit.EncodeEvent(ev)
	must(err)
	must(s.journal.Append(t.Context(), journal.Entry{ID: ev.ID, Kind: journal.KindSealing, Head: head, Blob: signed}))
	return s
}

// reading is the next message of a monitor, as telemetry/hl7 makes it of an ORU^R01.
func (s *scales) reading(readings int) telemetry.Message {
	s.message++
	at := int64(1_795_000_000_000) + int64(s.message)*1000
	text := time.UnixMilli(at).UTC().Format("20060102150405.000-0700")
	m := telemetry.Message{
		Source: "monitor-1", Digest: sha256.Sum256(fmt.Append(nil, s.message)), Received: telemetry.Stamp{Wall: at + 30, Mono: int64(s.message) * 1000},
		Type: "ORU^R01^ORU_R01", ControlID: fmt.Sprintf("MSG%08d", s.message), Sender: "MONITOR^0012F8000001^EUI-64", Processing: "P", SentAt: text,
		Patient: telemetry.Patient{ID: fmt.Sprintf("PAT%06d", s.message%40), Authority: "HOSPITAL", Location: "ICU-3^^BED-7"},
	}
	for i := range readings {
		m.Observations = append(m.Observations, telemetry.Observation{
			Index: uint32(i), Type: "NM", Code: telemetry.Code{MDC: 147842 + uint32(i), ID: fmt.Sprint(147842 + i), Name: "MDC_ECG_HEART_RATE", Sys: "MDC"},
			Value: fmt.Sprint(50 + s.noise.IntN(80)), Unit: telemetry.Unit{Sent: "264864^MDC_DIM_BEAT_PER_MIN^MDC", UCUM: "/min"}, SubID: fmt.Sprintf("1.1.%d.1", i),
			Status: "F", Time: text, At: at, Device: "0012F8000001",
		})
	}
	return m
}

// wave is a chunk of a second for each of the channels: a beat with noise in its last bits, as an ECG has.
func (s *scales) wave(channels, hz int) telemetry.Message {
	m := s.reading(0)
	m.Type = "ORU^W01^ORU_W01"
	for c := range channels {
		samples := make([]int32, hz)
		for i := range samples {
			x := float64(i)/float64(hz) + float64(c)/7
			samples[i] = int32(300*math.Sin(2*math.Pi*x)+900*math.Exp(-400*math.Pow(math.Mod(x, 0.8)-0.4, 2))) + int32(s.noise.IntN(9)) - 4
		}
		m.Waveforms = append(m.Waveforms, telemetry.Waveform{
			Index: uint32(c), Type: "NA", Code: telemetry.Code{MDC: 131329 + uint32(c), ID: fmt.Sprint(131329 + c), Name: "MDC_ECG_LEAD_I", Sys: "MDC"},
			Label: "I", Unit: telemetry.Unit{Sent: "266418^MDC_DIM_MILLI_VOLT^MDC", UCUM: "mV"}, SubID: fmt.Sprintf("1.2.1.%d", c), Status: "F",
			Time: m.SentAt, At: m.Received.Wall, Device: "0012F8000001", Period: "4", Factor: "0.001", Samples: samples,
		})
	}
	return m
}

// frame seals a batch.
func (s *scales) frame(messages ...telemetry.Message) []byte {
	s.t.Helper()
	plain, err := telemetry.Encode(telemetry.Batch{Boot: [16]byte{1}, Messages: messages})
	if err != nil {
		s.t.Fatal(err)
	}
	f, err := s.period.Seal(seal.Header{Lane: telemetry.LaneVitals, Number: s.number, Wall: 1, Mono: 1}, plain)
	if err != nil {
		s.t.Fatal(err)
	}
	s.number++
	return f
}

// entry is the journal's entry of a publish.
func (s *scales) entry(id audit.EventID, frame []byte) journal.Entry {
	s.t.Helper()
	h, err := seal.CheckFrame(frame)
	if err != nil {
		s.t.Fatal(err)
	}
	head, err := audit.EncodeRow(audit.Row{
		ID: id, Session: id, Gateway: "icu-3-bed-7", Epoch: h.Epoch, Lane: uint8(h.Lane), Number: h.Number, Frame: seal.FrameHash(frame),
		Received: time.Now().UnixMilli(), Serial: "5f3b6c0f2a9d4e118c7b6a5d4e3f2a1b", Peer: "10.20.30.40:45678", Verdict: "accepted",
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return journal.Entry{ID: id, Kind: journal.KindPublish, Head: head, Blob: frame}
}

// stored gives how many bytes the database grows by, with these frames.
func (s *scales) stored(frames [][]byte) float64 {
	s.t.Helper()
	migrations := slices.Concat(sqldb.OutboxMigrations(), records.Migrations())
	db, _ := sqldbtest.New(s.t, migrations...)
	before, _, err := db.Sizes(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	j := &sqldbtest.Journal{}
	first, err := s.journal.Read(1, 1)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := j.Append(s.t.Context(), first[0]); err != nil {
		s.t.Fatal(err)
	}
	for range 2 {
		j.NextID()
	}
	for _, f := range frames {
		if err := j.Append(s.t.Context(), s.entry(j.NextID(), f)); err != nil {
			s.t.Fatal(err)
		}
	}
	outbox, err := sqldb.NewOutbox(db, j, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := records.New(records.Config{
		DB: db, Outbox: outbox, Journal: j, Key: s.key, Pseudonym: []byte("sixteen bytes or more of a test key"), Log: slog.New(slog.DiscardHandler),
		Registry: oneKey{registry.Key{Gateway: "icu-3-bed-7", SPKI: sha256.Sum256(s.public), Public: s.public}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	for {
		st, err := r.Stats(ctx)
		if err != nil {
			s.t.Fatal(err)
		}
		if st.Batches == int64(len(frames)) {
			break
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("not stored: %+v", st)
		case <-time.After(5 * time.Millisecond):
		}
	}
	cancel()
	if err := <-ended; err != nil {
		s.t.Fatal(err)
	}
	after, _, err := db.Sizes(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return float64(after - before)
}

// Each figure of size.go is what the real parts take, within a quarter.
func TestSizesAreMeasured(t *testing.T) {
	s := newScales(t)
	near := func(what string, constant, measured float64) {
		t.Helper()
		t.Logf("%-40s %8.1f measured, %8.1f in size.go", what, measured, constant)
		if measured > constant*1.25 || measured < constant*0.75 {
			t.Errorf("%s: size.go says %.1f bytes, measured are %.1f", what, constant, measured)
		}
	}
	size := func(frames [][]byte) (n float64) {
		for _, f := range frames {
			n += float64(len(f))
		}
		return n
	}
	many := func(n int, f func() []byte) (out [][]byte) {
		for range n {
			out = append(out, f())
		}
		return out
	}

	const n = 1600
	six := many(n, func() []byte { return s.frame(s.reading(sixReadings)) })
	twelve := many(n, func() []byte { return s.frame(s.reading(2 * sixReadings)) })
	near("frame", sizeFrame, size(six)/n)
	near("frame, a further reading", sizeFrameReading, (size(twelve)-size(six))/n/sixReadings)
	a, b := s.stored(six), s.stored(twelve)
	reading := (b - a) / n / sixReadings
	near("a reading", sizeReading, reading)
	together := many(n/40, func() []byte {
		var ms []telemetry.Message
		for range 40 {
			ms = append(ms, s.reading(sixReadings))
		}
		return s.frame(ms...)
	})
	c := s.stored(together)
	batch := (a - c) / (n - n/40)
	near("a batch's row", sizeBatchRow, batch)
	near("a message's row and the one of its readings", sizeMessageRow+sizeReadingsRow, c/n-sixReadings*reading-batch/40)

	const w = 240
	coarse, fine := many(w, func() []byte { return s.frame(s.wave(4, 125)) }), many(w, func() []byte { return s.frame(s.wave(4, 500)) })
	d, e := s.stored(coarse), s.stored(fine)
	sample := (e - d) / w / 4 / 375
	near("a sample", sizeSample, sample)
	half := s.stored(coarse[:w/2]) // what a database takes before its first chunk is in both
	near("a chunk's row", sizeChunkRow, ((d-half)/(w/2)-sizeMessageRow-sizeBatchRow)/4-125*sample)

	s.journalFigures(near, six[:400])
	s.logFigures(near, six)
}

// journalFigures appends to a real journal, each entry in a flush of its own.
func (s *scales) journalFigures(near func(string, float64, float64), frames [][]byte) {
	s.t.Helper()
	alone := func() float64 {
		c := journal.Config{Dir: filepath.Join(s.t.TempDir(), "journal"), Node: 1, SegmentSize: 1 << 20}
		if err := journal.Create(c); err != nil {
			s.t.Fatal(err)
		}
		j, err := journal.Open(c)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, f := range frames {
			if err := j.Append(s.t.Context(), s.entry(j.NextID(), f)); err != nil {
				s.t.Fatal(err)
			}
		}
		if err := j.Close(); err != nil {
			s.t.Fatal(err)
		}
		files, err := filepath.Glob(filepath.Join(c.Dir, "*.seg"))
		if err != nil || len(files) == 0 {
			s.t.Fatal(files, err)
		}
		total := 0.0
		for _, f := range files {
			info, err := os.Stat(f)
			if err != nil {
				s.t.Fatal(err)
			}
			total += float64(info.Size())
		}
		return total
	}()
	bytes := 0.0
	for _, f := range frames {
		bytes += float64(len(f))
	}
	n := float64(len(frames))
	near("journal entry beside its frame", sizeEntry, float64(len(s.entry(audit.EventID{1}, frames[0]).Head)+25))
	near("journal flush beside its entries", sizeCommit, (alone-bytes)/n-sizeEntry)
}

// logFigures makes the files of windows.
func (s *scales) logFigures(near func(string, float64, float64), frames [][]byte) {
	s.t.Helper()
	var detail []byte
	var packed []audit.Packed
	rows := 0
	first := uint64(1)
	for g := range slices.Chunk(frames, 50) {
		var raw [][]byte
		var one []byte
		for _, f := range g {
			rows++
			head := s.entry(s.journal.NextID(), f).Head
			raw, one = append(raw, head), append(one, head...)
		}
		detail = append(detail, one...)
		packed = append(packed, audit.Packed{First: first, Last: first + uint64(len(g)) - 1, Data: one})
		win, _, err := audit.NewWindow("ward.example/log/1", first, first+uint64(len(g))-1, time.Now().UnixMilli(), raw)
		if err != nil {
			s.t.Fatal(err)
		}
		if first == 1 {
			leaf, err := audit.EncodeWindow(win)
			if err != nil {
				s.t.Fatal(err)
			}
			// In its bundle with its length, in a tile with its hash, and the hashes above it.
			near("leaf of a window", sizeLeaf, float64(len(leaf))+2+32*256/255.0)
		}
		first += uint64(len(g))
	}
	near("access detail of a publish", sizeDetail, float64(len(detail))/float64(rows))
	pack, err := audit.EncodePack(packed)
	if err != nil {
		s.t.Fatal(err)
	}
	near("the same, packed", sizeDetailPacked, float64(len(pack))/float64(rows))
}

// What a load takes grows with it, and with the retention; what is for ever grows each year.
func TestReckon(t *testing.T) {
	l := DefaultLoad()
	l.Gateways = 100
	one := Reckon(l, DefaultRetention())
	l.Gateways = 200
	two := Reckon(l, DefaultRetention())
	if one.AfterYear <= 0 || two.AfterYear < 1.5*one.AfterYear || two.AfterYear > 2*one.AfterYear || one.EveryYear <= 0 || one.EveryYear >= one.AfterYear {
		t.Errorf("%+v\n%+v", one, two)
	}
	longer := DefaultRetention()
	longer.Vitals = Period(2 * year)
	if more := Reckon(l, longer); more.AfterYear < 2*two.AfterYear || more.EveryYear < two.EveryYear {
		t.Errorf("%+v", more)
	}
	l.Channels, l.Hz = 4, 250
	if waves := Reckon(l, DefaultRetention()); waves.AfterYear < two.AfterYear+72*3600*200*1000*sizeSample {
		t.Errorf("%+v", waves)
	}
	for _, bad := range []Load{{}, {Gateways: 1}, {Gateways: 1, Sources: 1, Rate: math.NaN()}, {Gateways: 1, Sources: 1, Channels: 65}} {
		if bad.Check() == nil {
			t.Errorf("%+v passes", bad)
		}
	}
	for _, text := range []string{"", "4", "4x", "x250", "0x250", "4x-1", "4x250x1"} {
		if c, hz, err := ParseWaveforms(text); err == nil {
			t.Errorf("%q: %d %d", text, c, hz)
		}
	}
}
