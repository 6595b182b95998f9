package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wardlink/agent/source"
	"wardlink/buffer"
	"wardlink/telemetry"
	"wardlink/telemetry/hl7"
	"wardlink/telemetry/seal"
)

// station is an intake over a real buffer, with the hospital's key to look inside.
type station struct {
	t    *testing.T
	in   *intake
	buf  *buffer.Buffer
	key  seal.PrivateKey
	stop func()
}

func newStation(t *testing.T, dir string, key seal.PrivateKey) *station {
	t.Helper()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg := buffer.Config{
		Dir: dir, Lanes: laneNames(), Cap: 64 << 20, Log: log,
		Verify: func(frame []byte) error { _, err := seal.CheckFrame(frame); return err },
	}
	buf, err := buffer.Open(cfg)
	if errors.Is(err, buffer.ErrMissing) {
		if err := buffer.Create(cfg); err != nil {
			t.Fatal(err)
		}
		buf, err = buffer.Open(cfg)
	}
	if err != nil {
		t.Fatal(err)
	}
	clk, err := newClock()
	if err != nil {
		t.Fatal(err)
	}
	var epoch telemetry.Epoch
	for i := range epoch {
		epoch[i] = byte(rand.N(256))
	}
	in, err := newIntake(buf, key.Public(), epoch, clk, log)
	if err != nil {
		t.Fatal(err)
	}
	s := &station{t: t, in: in, buf: buf, key: key, stop: runIntake(t, in, buf)}
	t.Cleanup(s.stop)
	return s
}

// runIntake runs an intake until the function that it gives is called, which closes the buffer too.
func runIntake(t *testing.T, in *intake, buf *buffer.Buffer) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = in.run(ctx) }()
	return sync.OnceFunc(func() {
		cancel()
		<-done
		if err := buf.Close(); err != nil {
			t.Error(err)
		}
	})
}

func newKey(t *testing.T) seal.PrivateKey {
	t.Helper()
	key, err := seal.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func oru(control, value string) []byte {
	return []byte("MSH|^~\\&|MON|ICU|WL|WL|20261122120000+0000||ORU^R01^ORU_R01|" + control + "|T|2.6\r" +
		"PID|||WL1^^^HOSP&1.2.3&ISO\rOBR|1|||X|||20261122120000+0000\r" +
		"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.5.1.1|" + value + "|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\r")
}

func delivery(t *testing.T, raw []byte) source.Delivery {
	t.Helper()
	m, err := hl7.Understand(raw, hl7.Options{Source: "bed-1", Zone: time.UTC})
	if err != nil {
		t.Fatal(err)
	}
	return source.Delivery{Source: "bed-1", Raw: raw, Message: m}
}

func (s *station) accept(raw []byte) error {
	return s.in.accept(context.Background(), delivery(s.t, raw), true)
}

// messages opens everything in the buffer as the hospital would.
func (s *station) messages() (out []telemetry.Message) {
	s.t.Helper()
	for _, o := range s.open() {
		out = append(out, o.batch.Messages...)
	}
	return out
}

// openedBatch is a batch as the hospital sees it.
type openedBatch struct {
	id    buffer.ID
	batch telemetry.Batch
}

// open takes and opens every batch that is not out already.
func (s *station) open() (out []openedBatch) {
	s.t.Helper()
	openers := map[[16]byte]*seal.Opener{}
	for {
		batches, err := s.buf.Take(64)
		if err != nil {
			s.t.Fatal(err)
		}
		if len(batches) == 0 {
			return out
		}
		for _, b := range batches {
			o := openers[b.Sealing]
			if o == nil {
				record, err := s.buf.Sealing(b.Sealing)
				if err != nil {
					s.t.Fatal(err)
				}
				r, err := seal.ParseRecord(record)
				if err != nil {
					s.t.Fatal(err)
				}
				if o, err = seal.NewOpener(s.key, r); err != nil {
					s.t.Fatal(err)
				}
				openers[b.Sealing] = o
			}
			_, plain, err := o.Open(b.Frame)
			if err != nil {
				s.t.Fatal(err)
			}
			batch, err := telemetry.Decode(plain)
			if err != nil {
				s.t.Fatal(err)
			}
			out = append(out, openedBatch{b.ID, batch})
		}
	}
}

func TestAcceptedIsDurableAndAResendIsOne(t *testing.T) {
	dir, key := filepath.Join(t.TempDir(), "buffer"), newKey(t)
	s := newStation(t, dir, key)
	for i := range 5 {
		if err := s.accept(oru(fmt.Sprint("C", i), "72")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.accept(oru("C3", "72")); err != nil {
		t.Fatal(err)
	}
	if c := s.in.counters(); c.Messages != 5 || c.Resent != 1 || c.Observations != 5 {
		t.Errorf("%+v", c)
	}
	s.stop()
	// After a restart the buffer still knows them.
	s = newStation(t, dir, key)
	if err := s.accept(oru("C3", "72")); err != nil {
		t.Fatal(err)
	}
	if got := s.messages(); len(got) != 5 {
		t.Errorf("%d messages in the buffer; expected 5", len(got))
	}
}

func TestIdenticalBytesWithoutControlID(t *testing.T) {
	s := newStation(t, filepath.Join(t.TempDir(), "buffer"), newKey(t))
	raw := oru("", "72")
	digest := delivery(t, raw).Message.Digest
	if err := s.accept(raw); err != nil {
		t.Fatal(err)
	}
	if err := s.accept(raw); err != nil { // the acknowledgement was never written: the sender cannot know
		t.Fatal(err)
	}
	s.in.acknowledged("bed-1", digest)
	if err := s.accept(raw); err != nil { // a new reading of the same bytes
		t.Fatal(err)
	}
	if err := s.accept(raw); err != nil { // its resend
		t.Fatal(err)
	}
	copies := map[uint32]bool{}
	got := s.messages()
	for _, m := range got {
		copies[m.Copy] = true
	}
	if len(got) != 2 || len(copies) != 2 || copies[0] {
		t.Errorf("%d messages with the copies %v; expected two of different numbers other than 0", len(got), copies)
	}
}

// TestIdenticalBytesOfTwoSources: a source's message is never taken for another's.
func TestIdenticalBytesOfTwoSources(t *testing.T) {
	s := newStation(t, filepath.Join(t.TempDir(), "buffer"), newKey(t))
	for _, id := range []string{"bed-1", "bed-2"} {
		d := delivery(t, oru("C1", "72"))
		d.Source = id
		if err := s.in.accept(context.Background(), d, true); err != nil {
			t.Fatal(err)
		}
	}
	if got := s.messages(); len(got) != 2 {
		t.Errorf("%d messages stored of 2 acknowledged", len(got))
	}
}

// TestNoReadingIsSwallowedAfterARestart: without ids the first repeat after a restart may be a resend; those after it are new.
func TestNoReadingIsSwallowedAfterARestart(t *testing.T) {
	dir, key := filepath.Join(t.TempDir(), "buffer"), newKey(t)
	s := newStation(t, dir, key)
	raw := oru("SAME", "72") // a device that gives every message the same id
	digest := delivery(t, raw).Message.Digest
	send := func() {
		t.Helper()
		if err := s.in.accept(context.Background(), delivery(t, raw), false); err != nil {
			t.Fatal(err)
		}
		s.in.acknowledged("bed-1", digest)
	}
	send()
	send()
	s.stop()
	s = newStation(t, dir, key)
	for range 5 {
		send()
	}
	if got := s.messages(); len(got) != 2+4 {
		t.Errorf("%d messages stored; expected 6: of 7 sent, the first after the restart counts as a resend", len(got))
	}
}

func TestAlarmsGoByTheirOwnLaneAndManySourcesShareCommits(t *testing.T) {
	s := newStation(t, filepath.Join(t.TempDir(), "buffer"), newKey(t))
	s.in.open = func() int { return 20 }
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			raw := oru(fmt.Sprint("M", i), "72")
			if i == 7 {
				raw = []byte(strings.Replace(string(raw), "ORU^R01^ORU_R01", "ORU^R40^ORU_R40", 1))
			}
			if err := s.accept(raw); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	st := s.buf.Stats()
	if st.Lanes[telemetry.LaneAlarm].Waiting != 1 {
		t.Errorf("alarm lane: %+v", st.Lanes[telemetry.LaneAlarm])
	}
	if n := st.Lanes[telemetry.LaneVitals].Waiting; n > 10 {
		t.Errorf("19 messages that came together took %d batches", n)
	}
	if got := s.messages(); len(got) != 20 {
		t.Errorf("%d messages; expected 20", len(got))
	}
}

// TestNoPlaintextInTheBuffer looks for the patient, the value and the control id in every file.
func TestNoPlaintextInTheBuffer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "buffer")
	s := newStation(t, dir, newKey(t))
	raw := oru("CANARY-CONTROL", "72")
	raw = bytes.Replace(raw, []byte("WL1^"), []byte("CANARY-PATIENT^"), 1)
	if err := s.accept(raw); err != nil {
		t.Fatal(err)
	}
	s.stop()
	if found := grepTree(t, dir, "CANARY"); len(found) > 0 {
		t.Errorf("plaintext in %v", found)
	}
}

func TestAFullBufferAcknowledgesNothing(t *testing.T) {
	s := newStation(t, filepath.Join(t.TempDir(), "buffer"), newKey(t))
	rnd := rand.NewChaCha8([32]byte{})
	noise := make([]byte, 30<<10)
	accepted := 0
	for i := range 10_000 {
		_, _ = rnd.Read(noise)
		raw := append(oru(fmt.Sprint("F", i), "72"), []byte(fmt.Sprintf("ZZZ|%x\r", noise))...)
		err := s.accept(raw)
		if err == nil {
			accepted++
			continue
		}
		if !errors.Is(err, source.ErrFull) {
			t.Fatalf("after %d messages: %v; expected source.ErrFull", accepted, err)
		}
		if got := s.messages(); len(got) != accepted {
			t.Errorf("%d messages accepted, %d in the buffer", accepted, len(got))
		}
		return
	}
	t.Fatal("the buffer never said that it is full")
}
