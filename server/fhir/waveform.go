package fhir

import (
	"cmp"
	"encoding/json"
	"math/big"
	"strconv"
	"strings"

	"wardlink/server/records"
	"wardlink/telemetry"
)

// sampledData is a row of samples: the value of one is origin + sample * factor (FHIR R4, SampledData).
type sampledData struct {
	Origin     quantity    `json:"origin"`
	Period     json.Number `json:"period"` // milliseconds
	Factor     json.Number `json:"factor,omitempty"`
	LowerLimit json.Number `json:"lowerLimit,omitempty"`
	UpperLimit json.Number `json:"upperLimit,omitempty"`
	Dimensions int         `json:"dimensions"`
	Data       string      `json:"data"`
}

// period is the time that samples cover.
type period struct {
	Start string `json:"start"`
	End   string `json:"end"`
}

// setSamples sets the samples as they were sent, or says that there are none. Limits are in the unit, as the origin is.
func setSamples(r *observation, o *records.Observation) {
	w := o.Waveform
	if o.Marks&telemetry.MarkNoReading != 0 || len(w.Samples) == 0 {
		r.DataAbsentReason = absent()
		return
	}
	r.ValueSampledData = &sampledData{
		Origin: quantityOf(json.Number(cmp.Or(w.Origin, "0")), o.Unit), Period: json.Number(w.Period), Factor: json.Number(cmp.Or(w.Factor, "1")),
		LowerLimit: json.Number(w.Lower), UpperLimit: json.Number(w.Upper), Dimensions: 1, Data: data(w.Samples),
	}
}

// data writes samples as FHIR does: decimals with a space between them, E for one that is missing.
func data(samples []int32) string {
	b := make([]byte, 0, 5*len(samples))
	for i, s := range samples {
		if i > 0 {
			b = append(b, ' ')
		}
		if s == telemetry.MissingSample {
			b = append(b, 'E')
		} else {
			b = strconv.AppendInt(b, int64(s), 10)
		}
	}
	return string(b)
}

// covered is the time from the first sample to one period past the last, to the millisecond. ok is false when a period is so long that
// it ends beyond what can be written.
func covered(o *records.Observation) (p *period, ok bool) {
	ms, ok := new(big.Rat).SetString(o.Waveform.Period)
	if !ok {
		return nil, false
	}
	ms.Mul(ms, new(big.Rat).SetInt64(int64(len(o.Waveform.Samples))))
	// Half a millisecond more, cut off: rounded to the nearest.
	ms.Add(ms, big.NewRat(1, 2))
	length := new(big.Int).Quo(ms.Num(), ms.Denom())
	if !length.IsInt64() || length.Int64() > records.MaxAt-o.At {
		return nil, false
	}
	return &period{Start: effective(o.At, o.Time), End: effective(o.At+length.Int64(), o.Time)}, true
}

// channelText names a channel for humans: what it is, and what the device calls it where that says more.
func channelText(text, label string) string {
	switch {
	case label == "" || strings.HasSuffix(text, " "+label):
		return text
	case text == "":
		return label
	}
	return text + " (" + label + ")"
}
