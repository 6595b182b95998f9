package bedside

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"time"
)

// Channel is one waveform channel, as the monitor announces it with each of its arrays.
type Channel struct {
	Number      int // from 1, in the record's order
	Signal      Signal
	Sensitivity string // units for each step of the converter, decimal text
	Baseline    int64  // the sample that stands for 0
	Frequency   string // Hz, decimal text
	Min, Max    int32  // of the converter; Min stands for a missing sample and is never sent
}

// Wave is a piece of one channel without a gap in time.
type Wave struct {
	*Channel
	At      time.Time // of its first sample; milliseconds count
	Samples []int32   // as recorded
}

// Missing tells whether sample i is missing.
func (w Wave) Missing(i int) bool { return w.Samples[i] == w.Min }

// Span is the time from the first sample to the one that would follow the last.
func (w Wave) Span() time.Duration {
	hertz, err := strconv.ParseFloat(w.Frequency, 64)
	if err != nil || hertz <= 0 {
		return 0
	}
	return time.Duration(float64(len(w.Samples)) / hertz * float64(time.Second))
}

// Room in a message for an array's samples, and for all arrays with what describes them, in bytes. Receivers take messages of 64 KiB.
const (
	maxArray  = 24 << 10
	maxArrays = 56 << 10
)

// described is how many bytes at most stand around a wave's samples.
func (w Wave) described() int {
	return 512 + 6*len(escape(w.Signal.Name)) + 2*len(escape(w.Signal.Unit.Label))
}

// longest is how long a recording may last: a century of seconds is as far as a misread rate is followed.
const longest = 100 * 366 * 24 * 3600

// Length is the time from the recording's first sample to its last.
func (r *Recording) Length() time.Duration {
	seconds, _ := r.score(0).length().Float64()
	return time.Duration(seconds * float64(time.Second))
}

// EndOf is the end for a replay that begins now at that speed (Config.Speed): the moment at which its last sample is sent, so that a replay in
// real time has the times of now. What a slower one has not sent yet would lie in the future; it ends where real time would.
func (r *Recording) EndOf(now time.Time, speed float64) time.Time {
	if speed == 0 {
		return now
	}
	return now.Add(time.Duration(float64(r.Length()) / max(speed, 1)))
}

// Replay gives what was recorded with all distances kept and all times shifted so that the last sample is at end. Signals sampled at most once
// a second are readings, a row for each instant; faster ones are waveforms, a row for each second, or more where one message could not
// hold them. A 0, which often is a sensor that is off, is a reading and is sent as one. A signal that this monitor does not know goes by its
// name.
func (r *Recording) Replay(end time.Time) Source {
	return func(yield func(Row) bool) {
		s := r.score(end.UnixMilli())
		for to, more := s.second(); more; to, more = s.second() {
			for _, row := range append(s.readings(to), s.waves(to)...) {
				if !yield(row) {
					return
				}
			}
		}
	}
}

// score is a recording laid out in time. Its unit is the tick, of which a frame holds so many that each sample is on one.
type score struct {
	rate  *big.Rat // ticks a second
	last  int64    // the tick of the record's last sample
	end   int64    // Unix milliseconds of that tick
	parts []*part
}

// part is one track within a score, and how far it was played.
type part struct {
	*track
	step     int64 // ticks between samples
	frame    int64 // ticks in a frame
	wave     bool
	channels []*Channel    // of each run
	steps    []sensitivity // of each run

	run, next int // the first sample not played
}

// tick is where sample n of a run is.
func (p *part) tick(run, n int) int64 { return int64(p.runs[run].first())*p.frame + int64(n)*p.step }

func (r *Recording) score(end int64) *score {
	frame := r.ticks()
	s := &score{rate: new(big.Rat).Mul(r.Header.Rate, big.NewRat(frame, 1)), end: end, last: math.MinInt64}
	taken := map[uint32]bool{}
	for i, t := range r.tracks {
		p := &part{track: t, step: frame / int64(t.perFrame), frame: frame}
		rate := new(big.Rat).Mul(r.Header.Rate, big.NewRat(int64(t.perFrame), 1))
		p.wave = rate.Cmp(big.NewRat(1, 1)) > 0
		p.describe(i+1, frequencyText(rate), taken)
		s.parts = append(s.parts, p)
		run := len(t.runs) - 1
		s.last = max(s.last, p.tick(run, len(t.runs[run].samples)-1))
	}
	return s
}

// describe names what the part is. A code stands for one signal of a record only: where it would come twice, the second goes by its name.
func (p *part) describe(number int, frequency string, taken map[uint32]bool) {
	for i, r := range p.runs {
		p.steps = append(p.steps, sensitivityOf(r.column.Gain))
		var s Signal
		switch {
		case i > 0 && p.channels[i-1].Signal.Unit == unitOf(r.column.Unit):
			s = p.channels[i-1].Signal
		case p.wave:
			s = waveOf(p.name, r.column.Unit, number)
		default:
			s = readingOf(p.name, r.column.Unit, number)
		}
		if i == 0 || s != p.channels[i-1].Signal {
			if s.MDC != 0 && taken[s.MDC] {
				s = Signal{Name: p.name, Path: fmt.Sprintf("1.7.1.%d", number), Unit: s.Unit}
			}
			taken[s.MDC] = true
		}
		c := &Channel{number, s, p.steps[i].String(), r.column.Baseline, frequency, r.format.min, r.format.max}
		if i > 0 && *c == *p.channels[i-1] {
			c = p.channels[i-1]
		}
		p.channels = append(p.channels, c)
	}
}

// length is the seconds from the first sample to the last.
func (s *score) length() *big.Rat {
	first := s.last
	for _, p := range s.parts {
		first = min(first, p.tick(0, 0))
	}
	ticks := big.NewRat(s.last-first, 1)
	return ticks.Quo(ticks, s.rate)
}

// before is how long before the last sample a tick is, in milliseconds. It is counted from the end, so that the last sample is exactly there
// however the rate was rounded in the header.
func (s *score) before(tick int64) int64 {
	ms := big.NewRat(s.last-tick, 1)
	ms.Quo(ms.Mul(ms, big.NewRat(1000, 1)), s.rate)
	return floor(ms.Add(ms, big.NewRat(1, 2)))
}

func (s *score) time(tick int64) time.Time { return time.UnixMilli(s.end - s.before(tick)) }

// second gives the tick at which the next second ends in which there is something to play.
func (s *score) second() (to int64, more bool) {
	from := int64(math.MaxInt64)
	for _, p := range s.parts {
		if p.run < len(p.runs) {
			from, more = min(from, p.tick(p.run, p.next)), true
		}
	}
	if !more {
		return 0, false
	}
	// Seconds are counted from the record's first frame. The one after the present begins at the first tick that is not before it.
	now := floor(new(big.Rat).Quo(big.NewRat(from, 1), s.rate))
	next := new(big.Rat).Mul(big.NewRat(now+1, 1), s.rate)
	return max(from+1, -floor(next.Neg(next))), true
}

// take gives the samples of a part before that tick, run by run, and counts them as played.
func (p *part) take(to int64, use func(run, from, to int)) {
	for p.run < len(p.runs) {
		length := len(p.runs[p.run].samples)
		until := length
		if ahead := to - p.tick(p.run, 0); ahead < int64(length)*p.step {
			until = int(max(0, (ahead+p.step-1)/p.step))
		}
		if until > p.next {
			use(p.run, p.next, until)
			p.next = until
		}
		if until < length {
			return
		}
		p.run, p.next = p.run+1, 0
	}
}

// readings are the rows of the numerics in a second, usually one.
func (s *score) readings(to int64) (rows []Row) {
	ticks := map[int64]*Row{}
	var order []int64
	for _, p := range s.parts {
		if p.wave {
			continue
		}
		p.take(to, func(run, first, last int) {
			for n := first; n < last; n++ {
				tick := p.tick(run, n)
				if ticks[tick] == nil {
					ticks[tick] = &Row{At: s.time(tick)}
					order = append(order, tick)
				}
				r, v := p.runs[run], Value{Signal: p.channels[run].Signal}
				if sample := r.samples[n]; sample != r.format.min {
					v.Text = p.steps[run].value(sample, r.column.Baseline)
				}
				ticks[tick].Values = append(ticks[tick].Values, v)
			}
		})
	}
	slices.Sort(order)
	for _, tick := range order {
		rows = append(rows, *ticks[tick])
	}
	return rows
}

// waves are the rows of the waveforms in a second: one, or as many as keep each message within its bounds.
func (s *score) waves(to int64) (rows []Row) {
	room := 0
	add := func(w Wave, size int) {
		if len(rows) == 0 || size > room {
			rows, room = append(rows, Row{At: w.At}), maxArrays
		}
		row := &rows[len(rows)-1]
		if w.At.Before(row.At) {
			row.At = w.At
		}
		row.Waves, room = append(row.Waves, w), room-size
	}
	for _, p := range s.parts {
		if !p.wave {
			continue
		}
		p.take(to, func(run, first, last int) {
			samples := p.runs[run].samples
			for first < last {
				n, size := first, 0
				for ; n < last && size < maxArray; n++ {
					size += len(arrayText(samples[n], p.channels[run].Min)) + 1
				}
				w := Wave{p.channels[run], s.time(p.tick(run, first)), samples[first:n:n]}
				first = n
				if len(w.Samples) > 1 || !w.Missing(0) { // an array of one missing sample is no array
					add(w, size+w.described())
				}
			}
		})
	}
	return rows
}

// arrayText is one sample in an NA field: a missing one is an empty component.
func arrayText(sample, missing int32) string {
	if sample == missing {
		return ""
	}
	return strconv.Itoa(int(sample))
}

// maxTicks bounds a frame's ticks.
const maxTicks = 1_000_000_000

// ticks is how many ticks a frame has: as few as put each sample on one. Beyond maxTicks it is only known to be more.
func (r *Recording) ticks() int64 {
	n := int64(1)
	for _, t := range r.tracks {
		if n <= maxTicks {
			n = lcm(n, int64(t.perFrame))
		}
	}
	return n
}

// playable tells what could not be laid out in time.
func (r *Recording) playable() error {
	if r.ticks() > maxTicks {
		return errors.New("the samples of its signals within a frame share no moments that could be counted")
	}
	if r.score(0).length().Cmp(big.NewRat(longest, 1)) > 0 {
		return errors.New("it lasts for more than a century")
	}
	return nil
}

// floor is the greatest integer that is not above r.
func floor(r *big.Rat) int64 {
	return new(big.Int).Div(r.Num(), r.Denom()).Int64() // Euclidean, and a denominator is positive
}

func lcm(a, b int64) int64 {
	for x, y := a, b; ; {
		if y == 0 {
			return a / x * b
		}
		x, y = y, x%y
	}
}
