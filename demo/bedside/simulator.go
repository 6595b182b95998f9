package bedside

import (
	"math"
	"math/rand/v2"
	"strconv"
	"time"
)

// Simulation describes a simulated patient. Start from DefaultSimulation; a zero parameter means zero, not a default.
type Simulation struct {
	Seed     uint64        // the same seed and parameters give the same readings
	Start    time.Time     // of the first row
	Interval time.Duration // between rows
	Rows     int

	HeartRate       float64       // beats/min at rest
	RateWander      float64       // beats/min, standard deviation of its slow drift
	SinusArrhythmia float64       // beats/min up and down within each breath: the heart quickens while the chest fills
	BreathRate      float64       // breaths/min
	BreathWander    float64       // breaths/min, standard deviation of its slow drift
	StrokeVolume    float64       // mL ejected with each beat
	Resistance      float64       // mmHg s/mL, total peripheral: mean pressure = flow x resistance
	Compliance      float64       // mL/mmHg of the arteries: pulse pressure = stroke volume / compliance
	ToneWander      float64       // relative standard deviation of resistance
	Saturation      float64       // % of haemoglobin that carries oxygen
	SatWander       float64       // %, standard deviation
	Perfusion       float64       // %, pulsatile part of the finger's light absorption
	Temperature     float64       // degrees Celsius, core
	ProbeOffEvery   time.Duration // mean time between losses of the finger probe; 0: never
	ProbeOffFor     time.Duration // mean length of a loss; the probe's readings are then missing
}

// DefaultSimulation is an adult at rest under intensive care, one row a second from start on.
func DefaultSimulation(seed uint64, start time.Time, rows int) Simulation {
	return Simulation{
		Seed: seed, Start: start, Interval: time.Second, Rows: rows,
		HeartRate: 78, RateWander: 4, SinusArrhythmia: 3,
		BreathRate: 15, BreathWander: 1,
		StrokeVolume: 70, Resistance: 1, Compliance: 1.6, ToneWander: 0.06,
		Saturation: 97, SatWander: 0.8, Perfusion: 2.5,
		Temperature:   37.1,
		ProbeOffEvery: 3 * time.Minute, ProbeOffFor: 8 * time.Second,
	}
}

// Time constants of the slow drifts.
const (
	rateDrift   = 90 * time.Second
	breathDrift = 2 * time.Minute
	toneDrift   = 3 * time.Minute
	satDrift    = 4 * time.Minute
	heatDrift   = 40 * time.Minute
)

// Simulate gives the rows of a simulated patient. They are plausible, not diagnostic: enough for values that move together, with
// the decimals and the gaps of a real monitor.
func Simulate(s Simulation) Source {
	return func(yield func(Row) bool) {
		b := newBody(s)
		for n := range s.Rows {
			at := s.Start.Add(time.Duration(n) * s.Interval)
			if !yield(Row{At: at, Values: b.next()}) {
				return
			}
		}
	}
}

// body is the state of a simulated patient between two rows.
type body struct {
	Simulation
	random                        *rand.Rand
	rate, breath, tone, sat, heat drift
	phase                         float64 // of the breath, in breaths
	probeOff                      bool
}

func newBody(s Simulation) *body {
	return &body{
		Simulation: s,
		random:     rand.New(rand.NewPCG(s.Seed, 0)),
		rate:       newDrift(s.RateWander, rateDrift, s.Interval),
		breath:     newDrift(s.BreathWander, breathDrift, s.Interval),
		tone:       newDrift(s.ToneWander, toneDrift, s.Interval),
		sat:        newDrift(s.SatWander, satDrift, s.Interval),
		heat:       newDrift(0.15, heatDrift, s.Interval),
	}
}

func (b *body) next() []Value {
	// The phase is summed up, not computed from the time, so that a breath whose length changes does not jump.
	breath := max(4, b.BreathRate+b.breath.step(b.random))
	b.phase += breath / 60 * b.Interval.Seconds()
	heart := b.HeartRate + b.rate.step(b.random) + b.SinusArrhythmia*math.Sin(2*math.Pi*b.phase)
	heart = max(20, heart)

	// The two-element windkessel: flow x resistance is the mean, and a stroke into the arteries' compliance is the pulse
	// pressure, of which a third lies below the mean. Pressures are rounded first and the mean is taken from the rounded
	// ones, as a monitor's display does, so that the three always agree.
	mean := heart / 60 * b.StrokeVolume * b.Resistance * (1 + b.tone.step(b.random))
	pulse := b.StrokeVolume / b.Compliance
	dia := math.Round(mean - pulse/3)
	sys := math.Round(mean + pulse*2/3)

	sat := min(100, max(50, b.Saturation+b.sat.step(b.random)))
	heat := b.Temperature + b.heat.step(b.random)
	perfusion := max(0.1, b.Perfusion*(1+0.1*math.Sin(2*math.Pi*b.phase)))

	values := []Value{
		{heartRate, decimal(heart, 0)},
		{respRate, decimal(breath, 0)},
		{artSys, decimal(sys, 0)},
		{artDia, decimal(dia, 0)},
		{artMean, decimal(dia+(sys-dia)/3, 0)},
		{temperature, decimal(heat, 1)},
	}
	if b.probe() {
		return append(values, Value{Signal: pulseRate}, Value{Signal: oxygenSat}, Value{Signal: perfusionIndex})
	}
	return append(values,
		Value{pulseRate, decimal(heart, 0)},
		Value{oxygenSat, decimal(sat, 1)},
		Value{perfusionIndex, decimal(perfusion, 2)})
}

// probe tells whether the finger probe is off in this row; both states end at random, after the given times in the mean.
func (b *body) probe() bool {
	mean := b.ProbeOffEvery
	if b.probeOff {
		mean = b.ProbeOffFor
	}
	if b.ProbeOffEvery > 0 && b.random.Float64() < 1-math.Exp(-b.Interval.Seconds()/mean.Seconds()) {
		b.probeOff = !b.probeOff
	}
	return b.probeOff
}

// drift is a slow random movement around 0 (an Ornstein-Uhlenbeck process), stepped exactly for its interval.
type drift struct{ value, keep, shock float64 }

func newDrift(deviation float64, constant, interval time.Duration) drift {
	keep := math.Exp(-interval.Seconds() / constant.Seconds())
	return drift{keep: keep, shock: deviation * math.Sqrt(1-keep*keep)}
}

func (d *drift) step(random *rand.Rand) float64 {
	d.value = d.value*d.keep + d.shock*random.NormFloat64()
	return d.value
}

func decimal(v float64, digits int) string { return strconv.FormatFloat(v, 'f', digits, 64) }
