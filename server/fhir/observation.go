package fhir

import (
	"encoding/json"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"wardlink/server/records"
	"wardlink/telemetry"
	"wardlink/telemetry/codes"
)

// fits tells whether a reading's unit is one of what its code measures. 80 mm[Hg] of heart rate, or 80 of a unit that nobody knows,
// is not what the LOINC code says, however sure the device is of its own code.
func fits(code telemetry.Code, ucum string, unitUnknown bool) bool {
	if unitUnknown {
		return false
	}
	item, known := codes.For(code.MDC, ucum)
	return !known || ucum == "" || item.Judge(0, ucum) != codes.WrongUnit
}

// codingsOf gives a reading's codings: LOINC first where the table has it and the unit fits, then what the device sent. It needs no
// code name.
func codingsOf(code telemetry.Code, ucum string, unitUnknown bool) []coding {
	var out []coding
	if code.MDC != 0 {
		item, known := codes.For(code.MDC, ucum)
		if !fits(code, ucum, unitUnknown) {
			item.LOINC = nil
		}
		for _, l := range item.LOINC {
			// No display: it would have to be LOINC's own wording, which the text of the concept need not be.
			out = append(out, coding{System: systemLOINC, Code: l})
		}
		display := code.Name
		if known {
			display = item.Ref
		}
		return append(out, coding{System: systemMDC, Code: strconv.FormatUint(uint64(code.MDC), 10), Display: display})
	}
	if code.ID == "" {
		return nil
	}
	return []coding{{System: ownSystem(code.Sys), Code: code.ID, Display: code.Name}}
}

// ownSystem is the URI of a code system by its name in OBX-3.3 (HL7 table 0396).
func ownSystem(name string) string {
	switch name {
	case "":
		return ""
	case "LN":
		return systemLOINC
	case "MDC":
		return systemMDC
	}
	return systemOwnCodes + strings.ReplaceAll(name, " ", "_")
}

// toObservation makes the resource of a stored reading.
func toObservation(o *records.Observation) *observation {
	item, known := codes.For(o.Code.MDC, o.Unit.UCUM)
	flags := strings.FieldsFunc(o.Flags, func(c rune) bool { return c == '~' || c == '^' })
	r := &observation{
		ResourceType: "Observation", ID: o.ID,
		Extension: []extension{{URL: extensionGateway, ValueReference: &reference{Display: o.Gateway}}},
		Status:    status(o.Status, flags),
		Code:      codeableConcept{Coding: codingsOf(o.Code, o.Unit.UCUM, unitUnknown(o)), Text: o.Code.Name},
		Issued:    time.UnixMilli(o.Journaled).UTC().Format("2006-01-02T15:04:05.000Z07:00"),
		Device:    &reference{Display: o.Device},
	}
	if o.Marks&telemetry.MarkTimeUnread == 0 {
		setTime(r, o)
	} else {
		// The time by which it is found is when the gateway received it; to show that as the device's would be an invention.
		if o.Arrived != nil {
			r.Extension = append(r.Extension, arrived(*o.Arrived))
		}
		r.EffectiveAbsent = &element{Extension: []extension{{URL: extensionAbsent, ValueCode: "unknown"}}}
	}
	if r.Device.Display == "" {
		r.Device.Display = o.Source
	}
	if known {
		r.Code.Text = item.Name
		if item.Category != "" {
			r.Category = []codeableConcept{{Coding: []coding{{System: systemCategory, Code: item.Category}}}}
		}
	}
	if o.Waveform != nil {
		r.Category = []codeableConcept{{Coding: []coding{{System: systemCategory, Code: "procedure"}}}}
		r.Code.Text = channelText(r.Code.Text, o.Waveform.Label)
	}
	if r.Code.Text == "" && len(r.Code.Coding) == 0 {
		r.Code.Text = "unknown"
	}
	if o.Patient.ID != "" {
		r.Subject = &reference{Reference: "Patient/" + o.Patient.ID, Identifier: &identifier{System: o.Patient.System, Value: o.Patient.Value}}
	}
	setValue(r, o)
	for _, f := range flags {
		c := codeableConcept{Text: f}
		if slices.Contains(interpretations, f) {
			c = codeableConcept{Coding: []coding{{System: systemFlags, Code: f}}}
		}
		r.Interpretation = append(r.Interpretation, c)
	}
	judge(r, o)
	unverified(r, o)
	r.Meta = metaOf(r, o, item, flags)
	return r
}

// arrived says when the gateway had a reading, with how sure that is.
func arrived(t records.Time) extension {
	return extension{
		URL: extensionArrived, ValueInstant: time.UnixMilli(t.At).UTC().Format("2006-01-02T15:04:05.000Z07:00"),
		About: &element{Extension: []extension{{URL: extensionUncertainty, ValueInteger: &t.Uncertainty}}},
	}
}

func unitUnknown(o *records.Observation) bool { return o.Marks&telemetry.MarkUnknownUnit != 0 }

// judge says what was noticed about a reading where every client looks: FHIR and HL7 have no code for it, so ours come with a text.
// What is not plausible, most often an artefact, is kept, but nothing that a chart may take over unseen.
func judge(r *observation, o *records.Observation) {
	note := coding{System: systemMarks}
	switch {
	case o.Marks&telemetry.MarkNoReading != 0:
		return
	case unitUnknown(o):
		note.Code, note.Display = "unit-unknown", "Unit is missing or not known"
	case !fits(o.Code, o.Unit.UCUM, false):
		note.Code, note.Display = "unit-misfit", "Unit does not belong to this measure"
	case o.Marks&telemetry.MarkImplausible != 0:
		note.Code, note.Display = "implausible", "Outside the range that is physically plausible"
	default:
		return
	}
	r.Interpretation = append(r.Interpretation, codeableConcept{Coding: []coding{note}, Text: note.Display})
}

// unverified makes a reading preliminary that no chart may take over unseen: one that is not plausible, or of a gateway that booted something
// unknown. FHIR's word is for results that are not verified yet; "entered-in-error" would say that the reading is wrong, which nobody knows.
func unverified(r *observation, o *records.Observation) {
	if o.Marks&telemetry.MarkQuarantined != 0 {
		note := coding{System: systemMarks, Code: "quarantined", Display: "The gateway was in quarantine: it had booted something unknown"}
		r.Interpretation = append(r.Interpretation, codeableConcept{Coding: []coding{note}, Text: note.Display})
	}
	doubted := o.Marks&telemetry.MarkQuarantined != 0 || o.Marks&telemetry.MarkImplausible != 0 && o.Marks&telemetry.MarkNoReading == 0
	if doubted && (r.Status == "final" || r.Status == "corrected") {
		r.Status = "preliminary"
	}
}

// interpretations are the flags of OBX-8 that FHIR knows under the same code; others travel as text.
var interpretations = []string{"L", "H", "LL", "HH", "N", "A", "AA", "LU", "HU"}

// metaOf marks test data, and claims the core profile only for a reading that has what the profile demands and that nothing is odd
// about.
func metaOf(r *observation, o *records.Observation, item codes.Item, flags []string) *meta {
	var m meta
	if o.Process == "T" || o.Process == "D" || slices.Contains(flags, "TEST") || slices.Contains(flags, "DEMO") {
		m.Security = []coding{{System: systemActReason, Code: "HTEST", Display: "test health data"}}
	}
	if o.Marks&telemetry.MarkQuarantined != 0 {
		m.Security = append(m.Security, coding{System: systemIntegrity, Code: "UNCERTREL", Display: "uncertain reliability"})
	}
	coded := r.ValueQuantity != nil && r.ValueQuantity.Code == item.UCUM
	odd := o.Marks&(telemetry.MarkImplausible|telemetry.MarkTimeUnread|telemetry.MarkQuarantined) != 0 || !fits(o.Code, o.Unit.UCUM, unitUnknown(o))
	if item.Profile != "" && !odd && o.Waveform == nil && r.Subject != nil && (coded || r.DataAbsentReason != nil) {
		m.Profile = []string{item.Profile}
	}
	if m.Profile == nil && m.Security == nil {
		return nil
	}
	return &m
}

// status maps OBX-11 (HL7 table 0085) to ObservationStatus. A value that the device flags as test, demonstration or invalid is
// never final.
func status(obx11 string, flags []string) string {
	s := "unknown"
	switch obx11 {
	case "F", "R", "U", "":
		// R is "entered, not verified", which is what every monitor's reading is.
		s = "final"
	case "P", "S":
		s = "preliminary"
	case "I", "O":
		s = "registered"
	case "C":
		s = "corrected"
	case "X", "N":
		s = "cancelled"
	case "W", "D":
		s = "entered-in-error"
	}
	if s != "final" && s != "corrected" {
		return s
	}
	switch {
	case slices.Contains(flags, "INV"):
		return "cancelled"
	case slices.Contains(flags, "TEST"), slices.Contains(flags, "DEMO"), slices.Contains(flags, "CAL"):
		return "preliminary"
	}
	return s
}

// setValue sets the value as it was sent or says that there is none; never both (FHIR's obs-6).
func setValue(r *observation, o *records.Observation) {
	if o.Waveform != nil {
		setSamples(r, o)
		return
	}
	value := strings.TrimSpace(o.Value)
	if o.Marks&telemetry.MarkNoReading != 0 || value == "" {
		r.DataAbsentReason = absent()
		return
	}
	number, ok := decimal(value)
	if !ok || (o.Type != "NM" && o.Type != "") {
		r.ValueString = o.Value
		return
	}
	q := quantityOf(number, o.Unit)
	r.ValueQuantity = &q
}

func absent() *codeableConcept {
	return &codeableConcept{Coding: []coding{{System: systemAbsent, Code: "unknown", Display: "Unknown"}}}
}

func quantityOf(number json.Number, unit telemetry.Unit) quantity {
	q := quantity{Value: number, Unit: unitName(unit)}
	if unit.UCUM != "" {
		q.System, q.Code = systemUCUM, unit.UCUM
	}
	return q
}

// unitName is the unit for humans: UCUM where it is known, else the name as sent, else its code.
func unitName(u telemetry.Unit) string {
	if u.UCUM != "" {
		return u.UCUM
	}
	parts := strings.Split(u.Sent, "^")
	if len(parts) > 1 && parts[1] != "" {
		return parts[1]
	}
	return parts[0]
}

var (
	decimalRE = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?$`)
	looseRE   = regexp.MustCompile(`^([+-]?)0*([0-9]*)(?:(\.[0-9]+)|\.)?$`)
)

// maxDigits is the precision that FHIR asks of every reader of its decimals; a longer one travels as text.
const maxDigits = 18

// decimal is a number as FHIR's decimal with every digit that was sent. HL7's NM allows a plus sign, leading zeros and a bare
// point, which JSON does not.
func decimal(value string) (json.Number, bool) {
	if len(value) <= maxDigits+2 && decimalRE.MatchString(value) {
		return json.Number(value), true
	}
	m := looseRE.FindStringSubmatch(value)
	if m == nil || strings.Trim(value, "+-.") == "" || len(m[2])+len(m[3]) > maxDigits+1 {
		return "", false
	}
	sign, whole, fraction := strings.TrimPrefix(m[1], "+"), m[2], m[3]
	if whole == "" {
		whole = "0"
	}
	return json.Number(sign + whole + fraction), true
}

var zoneRE = regexp.MustCompile(`[0-9.]([+-])([0-9]{2})([0-9]{2})$`)

// setTime says when a reading was taken, or how long its samples took.
func setTime(r *observation, o *records.Observation) {
	if o.Waveform != nil {
		if p, ok := covered(o); ok {
			r.EffectivePeriod = p
			return
		}
	}
	r.EffectiveDateTime = effective(o.At, o.Time)
}

// effective is an instant with milliseconds, in the zone that the device named in a time as sent, if it named one.
func effective(ms int64, sent string) string {
	at := time.UnixMilli(ms).UTC()
	if m := zoneRE.FindStringSubmatch(sent); m != nil {
		hours, _ := strconv.Atoi(m[2])
		minutes, _ := strconv.Atoi(m[3])
		if hours <= 14 && minutes < 60 {
			offset := hours*3600 + minutes*60
			if m[1] == "-" {
				offset = -offset
			}
			if local := at.In(time.FixedZone("", offset)); local.Year() >= 1 && local.Year() <= 9999 {
				at = local
			}
		}
	}
	return at.Format("2006-01-02T15:04:05.000Z07:00")
}
