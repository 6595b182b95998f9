package server

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// What one item takes on disk, in bytes. TestSizesAreMeasured stores synthetic data through the real parts and fails when a figure is
// off by more than a quarter. "Row" is the database's share, indexes and page slack included.
const (
	sizeFrame        = 560  // sealed batch of one message with sixReadings, as published
	sizeFrameReading = 15.5 // each further reading of it
	sizeEntry        = 195  // journal entry beside its frame: access detail and framing
	sizeCommit       = 1400 // flush of the journal, beside its entries: pages that bbolt rewrites or rounds up
	sizeBatchRow     = 85
	sizeMessageRow   = 200
	sizeReadingsRow  = 64 // row of a message's readings, without them
	sizeReading      = 8.2
	sizeChunkRow     = 145  // chunk of samples, without them
	sizeSample       = 0.75 // as stored, of a beat with noise of nine steps
	sizeDetail       = 172  // access detail of one publish, in a window that is not packed
	sizeDetailPacked = 43
	sizeRowHash      = 32  // of one publish, for ever
	sizeLeaf         = 115 // window's leaf with its hashes in the tiles

	sixReadings = 6
	block       = 4096 // of the file system: each loose file of a window takes whole ones
)

// What the server does by its own clock.
const (
	passesPerSecond  = 2   // of the log's writer: a window each, while anything is published
	flushesPerSecond = 200 // of the journal at most, on a disk that flushes in 5 ms; what arrives meanwhile shares the next
	batchesPerSecond = 50  // of one lane of one gateway at most: messages of 20 ms share a batch
)

// Load is what a hospital sends.
type Load struct {
	Gateways int     `json:"gateways"`
	Sources  int     `json:"sources"`  // of each gateway
	Rate     float64 `json:"rate"`     // messages of a source, a second
	Readings int     `json:"readings"` // of a message
	Alarms   float64 `json:"alarms"`   // messages of a source by the lane alarm, a day
	Channels int     `json:"channels"` // waveforms of a source
	Hz       int     `json:"hz"`       // samples of a channel, a second; they come in chunks of a second
}

// DefaultLoad is a bed: a monitor with six numerics a second and an alarm every ten minutes.
func DefaultLoad() Load { return Load{Sources: 1, Rate: 1, Readings: 6, Alarms: 144} }

// Check says what is out of bounds.
func (l Load) Check() error {
	switch {
	case l.Gateways < 1 || l.Gateways > 1_000_000:
		return fmt.Errorf("gateways: %d; expected 1 to 1000000", l.Gateways)
	case l.Sources < 1 || l.Sources > 1000:
		return fmt.Errorf("sources: %d; expected 1 to 1000 of each gateway", l.Sources)
	case !(l.Rate >= 0 && l.Rate <= 1000):
		return fmt.Errorf("rate: %v; expected 0 to 1000 messages of a source a second", l.Rate)
	case l.Readings < 0 || l.Readings > 1000:
		return fmt.Errorf("readings: %d; expected 0 to 1000 of a message", l.Readings)
	case !(l.Alarms >= 0 && l.Alarms <= 86400):
		return fmt.Errorf("alarms: %v; expected 0 to 86400 of a source a day", l.Alarms)
	case l.Channels < 0 || l.Channels > 64 || l.Hz < 0 || l.Hz > 10_000:
		return fmt.Errorf("waveforms: %dx%d; expected at most 64 channels and 10000 Hz", l.Channels, l.Hz)
	}
	return nil
}

// ParseWaveforms reads CHANNELSxHZ, such as 4x250.
func ParseWaveforms(s string) (channels, hz int, err error) {
	a, b, ok := strings.Cut(s, "x")
	channels, err1 := strconv.Atoi(a)
	hz, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil || channels < 1 || hz < 1 {
		return 0, 0, fmt.Errorf("waveforms: %.40q; expected CHANNELSxHZ, such as 4x250", s)
	}
	return channels, hz, nil
}

// ClassSize is the disk that one class takes.
type ClassSize struct {
	Class     string  `json:"class"`
	What      string  `json:"what"`
	PerDay    float64 `json:"bytes_per_day"`
	Keep      Period  `json:"kept_for"` // "0h": for ever
	AfterYear float64 `json:"bytes_after_a_year"`
	Steady    bool    `json:"steady"` // it does not grow beyond that
}

// Size is the disk that a load takes.
type Size struct {
	Load       Load        `json:"load"`
	Classes    []ClassSize `json:"classes"`
	AfterYear  float64     `json:"bytes_after_a_year"`
	EveryYear  float64     `json:"bytes_each_further_year"`
	PublishDay float64     `json:"publishes_per_day"`
}

// Reckon says how much disk the load takes with that retention, once a year has passed and everything is as old as it may be.
func Reckon(l Load, r Retention) Size {
	const second = 86400.0
	sources := float64(l.Gateways * l.Sources)
	gateway := float64(l.Gateways)
	messages := sources * l.Rate * second
	vitals := gateway * math.Min(float64(l.Sources)*l.Rate, batchesPerSecond) * second
	alarms := sources * l.Alarms
	chunks := sources * float64(l.Channels) * second
	waves, waveMessages := 0.0, 0.0
	if l.Channels > 0 {
		waveMessages = sources * second
		waves = gateway * math.Min(float64(l.Sources), batchesPerSecond) * second
	}
	publishes := vitals + alarms + waves
	samples := chunks * float64(l.Hz)
	readings := float64(l.Readings)

	const perMessage = 120.0 // of a frame, for each message beyond the first that shares it
	frames := publishes*sizeFrame + (messages-vitals)*perMessage + (messages+alarms)*(readings-sixReadings)*sizeFrameReading + samples*sizeSample
	flushes := math.Min(publishes/second, flushesPerSecond) * second
	windows := math.Min(publishes/second, passesPerSecond) * second
	perWindow := 0.0
	if windows > 0 {
		perWindow = publishes / windows
	}
	whole := func(bytes float64) float64 { return math.Ceil(bytes/block) * block }
	loose := windows * (whole(perWindow*sizeDetail) + whole(perWindow*sizeRowHash))
	packed := publishes * (sizeDetailPacked + sizeRowHash)

	s := Size{Load: l, PublishDay: publishes}
	add := func(class, what string, perDay float64, keep Period) {
		c := ClassSize{Class: class, What: what, PerDay: perDay, Keep: keep}
		days := 365.0
		if keep != 0 {
			days = time.Duration(keep).Hours() / 24
			c.Steady = days <= 365
		}
		c.AfterYear = perDay * math.Min(days, 365)
		s.Classes = append(s.Classes, c)
		s.AfterYear += c.AfterYear
		if !c.Steady {
			s.EveryYear += perDay * 365
		}
	}
	add("journal", "frames as they came, sealed", frames+publishes*sizeEntry+flushes*sizeCommit, r.Batches)
	add("batches", "rows of opened batches", publishes*sizeBatchRow, r.Batches)
	add("waveforms", "samples", chunks*sizeChunkRow+samples*sizeSample+waveMessages*sizeMessageRow, r.Waveforms)
	add("vitals", "readings", messages*(sizeMessageRow+sizeReadingsRow+readings*sizeReading), r.Vitals)
	add("alarms", "alarms", alarms*(sizeMessageRow+sizeReadingsRow+readings*sizeReading), r.Alarms)
	add("windows", "access detail of the log, loose", loose, r.Pack)
	add("packed", "the same, packed", packed, 0)
	add("log", "tiles and leaves", windows*sizeLeaf, 0)
	return s
}
