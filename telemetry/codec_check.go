package telemetry

import (
	"errors"
	"fmt"
)

// check holds a batch to the limits and to what the format can say. Encode and Decode share it, so that whatever one side makes
// the other accepts.
func (b *Batch) check() error {
	if b.Report != nil {
		if len(b.Messages) > 0 {
			return errors.New("a report travels by itself, without messages")
		}
		return b.Report.check()
	}
	if len(b.Messages) == 0 {
		return errors.New("no message")
	}
	if len(b.Messages) > MaxMessages {
		return fmt.Errorf("%d messages, at most %d: %w", len(b.Messages), MaxMessages, ErrTooLarge)
	}
	var rows, waves, samples, problems int
	var texts sum
	for i := range b.Messages {
		m := &b.Messages[i]
		if rows += len(m.Observations); rows > MaxRows {
			return fmt.Errorf("more than %d observations: %w", MaxRows, ErrTooLarge)
		}
		if waves += len(m.Waveforms); waves > MaxRows {
			return fmt.Errorf("more than %d waveforms: %w", MaxRows, ErrTooLarge)
		}
		for j := range m.Waveforms {
			if samples += len(m.Waveforms[j].Samples); samples > MaxSamples {
				return fmt.Errorf("more than %d samples: %w", MaxSamples, ErrTooLarge)
			}
		}
		if problems += len(m.Problems); problems > MaxRows {
			return fmt.Errorf("more than %d problems: %w", MaxRows, ErrTooLarge)
		}
		if len(m.Raw) > MaxMessage {
			return fmt.Errorf("message %d: %d bytes as it came, at most %d: %w", i, len(m.Raw), MaxMessage, ErrTooLarge)
		}
		if err := m.checkOrder(i); err != nil {
			return err
		}
		if err := m.checkWaveforms(i); err != nil {
			return err
		}
		texts.message(m)
		texts.waveforms(m)
	}
	if texts.longest > MaxText {
		return fmt.Errorf("a text of %d bytes, at most %d: %w", texts.longest, MaxText, ErrTooLarge)
	}
	if texts.total > MaxExpanded {
		return fmt.Errorf("more than %d bytes of text: %w", MaxExpanded, ErrTooLarge)
	}
	return nil
}

// checkOrder makes sure that (message, index) names one observation and that the order can be restored from it.
func (m *Message) checkOrder(i int) error {
	for j := 1; j < len(m.Observations); j++ {
		if m.Observations[j].Index <= m.Observations[j-1].Index {
			return fmt.Errorf("message %d: observation %d has index %d after %d; expected ascending and unique",
				i, j, m.Observations[j].Index, m.Observations[j-1].Index)
		}
	}
	return nil
}

// sum adds up texts as a reader would have to store them: a few bytes on the wire can stand for the same long text in every row.
type sum struct {
	longest, total int
}

func (s *sum) add(texts ...string) {
	for _, t := range texts {
		s.longest = max(s.longest, len(t))
		s.total += len(t)
	}
}

func (s *sum) message(m *Message) {
	s.add(m.Source, m.Type, m.ControlID, m.Sender, m.Processing, m.SentAt,
		m.Patient.ID, m.Patient.Authority, m.Patient.Location, m.Patient.Visit, m.Bed)
	for i := range m.Observations {
		o := &m.Observations[i]
		s.add(o.Type, o.Code.ID, o.Code.Name, o.Code.Sys, o.Value, o.Unit.Sent, o.Unit.UCUM, o.SubID, o.Limits, o.Flags,
			o.Status, o.Time, o.Device, o.Bed)
	}
	for _, p := range m.Problems {
		s.add(p.Where, p.Reason)
	}
}
