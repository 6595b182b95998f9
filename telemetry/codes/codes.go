// Package codes is the one table that says what a device's code means: ISO/IEEE 11073-10101 (MDC) numbers, their LOINC codes,
// UCUM units, FHIR profiles and the range outside of which a reading is not plausible.
//
// The tables are codes.csv and units.csv beside this file. They are embedded and parsed once; their tests hold every rule that the
// parser relies on, so a fault in them is a red test and never a fault at a bedside.
package codes

import (
	_ "embed"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
)

// Item is one measure. A measure that devices send in units that cannot be converted into each other without knowing the substance
// (glucose) has one Item for each such unit.
type Item struct {
	MDC      uint32   // partition * 65536 + term
	Ref      string   // reference id, "MDC_ECG_HEART_RATE"
	Name     string   // for humans, English
	LOINC    []string // the code that the FHIR profile asks for first; empty when LOINC has none
	UCUM     string   // the unit in which Low and High are given
	Low      float64  // lowest plausible value; NaN when there is no range
	High     float64  // highest plausible value; NaN when there is no range
	Profile  string   // canonical URL of the FHIR R4 core profile, or ""
	Category string   // "vital-signs", "laboratory", "procedure" or ""
}

// Partitions of ISO/IEEE 11073-10101 that matter here: partition number = MDC code / 65536.
const (
	partitionObject    = 1 // devices, VMDs, channels
	partitionPhysio    = 2 // what is measured on a patient (SCADA)
	partitionDimension = 4 // units
	// partitionLast is above every partition of the standard and of the vendors (private ones begin at 1024).
	partitionLast = 0x0fff
)

const profileBase = "http://hl7.org/fhir/StructureDefinition/"

//go:embed codes.csv
var codesCSV string

//go:embed units.csv
var unitsCSV string

// unit is one row of units.csv: value in base = value * scale + offset.
type unit struct {
	ucum, base    string
	scale, offset float64
}

type tables struct {
	items  map[uint32][]Item // all rows of one code, in the file's order
	refs   map[string]uint32
	terms  map[uint16]uint32 // bare 16 bit terms that mean one item only; 0 where ambiguous
	units  map[string]unit   // by UCUM code
	byMDC  map[uint32]string // MDC unit code -> UCUM
	names  map[string]string // every exact spelling -> UCUM
	folded map[string]string // names that are no UCUM codes, in lower case -> UCUM
}

// load parses the embedded tables. It panics on a fault in them: they are part of the binary and their tests parse them.
var load = sync.OnceValue(func() *tables {
	t, err := parse(codesCSV, unitsCSV)
	if err != nil {
		panic("telemetry/codes: " + err.Error())
	}
	return t
})

func parse(codesText, unitsText string) (*tables, error) {
	t := &tables{
		items: map[uint32][]Item{}, refs: map[string]uint32{}, terms: map[uint16]uint32{},
		units: map[string]unit{}, byMDC: map[uint32]string{}, names: map[string]string{}, folded: map[string]string{},
	}
	rows, err := rowsOf(unitsText)
	if err != nil {
		return nil, fmt.Errorf("units.csv: %w", err)
	}
	for i, row := range rows[1:] {
		if err := t.addUnit(row); err != nil {
			return nil, fmt.Errorf("units.csv:%d: %w", i+2, err)
		}
	}
	rows, err = rowsOf(codesText)
	if err != nil {
		return nil, fmt.Errorf("codes.csv: %w", err)
	}
	for i, row := range rows[1:] {
		if err := t.addItem(row); err != nil {
			return nil, fmt.Errorf("codes.csv:%d: %w", i+2, err)
		}
	}
	return t, nil
}

// rowsOf reads the simplest CSV: no field of ours is quoted, and the gateway's program is spared a general reader.
func rowsOf(text string) (rows [][]string, err error) {
	for line := range strings.Lines(text) {
		row := strings.Split(strings.TrimRight(line, "\r\n"), ",")
		if strings.Contains(line, `"`) || len(rows) > 0 && len(row) != len(rows[0]) {
			return nil, fmt.Errorf("line %d: quoted, or %d fields and not as many as the header", len(rows)+1, len(row))
		}
		rows = append(rows, row)
	}
	if len(rows) == 0 {
		return nil, errors.New("it is empty")
	}
	return rows, nil
}

func (t *tables) addUnit(row []string) error {
	u := unit{ucum: row[0], base: row[3]}
	var err error
	if u.scale, err = strconv.ParseFloat(row[4], 64); err != nil {
		return err
	}
	if u.offset, err = strconv.ParseFloat(row[5], 64); err != nil {
		return err
	}
	if former, again := t.units[u.ucum]; again && former != u {
		return fmt.Errorf("unit %s is converted in two ways", u.ucum)
	}
	t.units[u.ucum] = u
	if row[1] != "" {
		mdc, err := strconv.ParseUint(row[1], 10, 32)
		if err != nil {
			return err
		}
		if mdc>>16 != partitionDimension {
			return fmt.Errorf("unit %d is not in the partition of units", mdc)
		}
		if _, again := t.byMDC[uint32(mdc)]; again {
			return fmt.Errorf("unit %d stands twice", mdc)
		}
		t.byMDC[uint32(mdc)] = u.ucum
	}
	names := []string{u.ucum}
	if row[2] != "" {
		names = append(names, row[2])
	}
	// UCUM codes are told apart by case (ms, Ms), so only the names that people write are also read in any case.
	if row[6] != "" {
		for _, n := range strings.Split(row[6], ";") {
			names = append(names, n)
			if former, again := t.folded[strings.ToLower(n)]; again && former != u.ucum {
				return fmt.Errorf("name %q means two units", n)
			}
			t.folded[strings.ToLower(n)] = u.ucum
		}
	}
	for _, n := range names {
		if former, again := t.names[n]; again && former != u.ucum {
			return fmt.Errorf("name %q means two units", n)
		}
		t.names[n] = u.ucum
	}
	return nil
}

func (t *tables) addItem(row []string) error {
	mdc, err := strconv.ParseUint(row[0], 10, 32)
	if err != nil {
		return err
	}
	it := Item{MDC: uint32(mdc), Ref: row[1], Name: row[2], LOINC: strings.Fields(row[3]), UCUM: row[4],
		Low: math.NaN(), High: math.NaN(), Category: row[8]}
	if row[7] != "" {
		it.Profile = profileBase + row[7]
	}
	if row[5] != "" || row[6] != "" {
		if it.Low, err = strconv.ParseFloat(row[5], 64); err != nil {
			return err
		}
		if it.High, err = strconv.ParseFloat(row[6], 64); err != nil {
			return err
		}
	}
	if _, known := t.units[it.UCUM]; !known {
		return fmt.Errorf("%s: unit %s is not in units.csv", it.Ref, it.UCUM)
	}
	if former, again := t.refs[it.Ref]; again && former != it.MDC {
		return fmt.Errorf("%s has two codes", it.Ref)
	}
	t.refs[it.Ref] = it.MDC
	t.items[it.MDC] = append(t.items[it.MDC], it)
	if former, again := t.terms[uint16(it.MDC)]; again && former != it.MDC {
		t.terms[uint16(it.MDC)] = 0
	} else {
		t.terms[uint16(it.MDC)] = it.MDC
	}
	return nil
}

// ByMDC is the item of a full MDC code in its usual unit. The item's slices are shared: callers must not change them.
func ByMDC(mdc uint32) (Item, bool) {
	rows := load().items[mdc]
	if len(rows) == 0 {
		return Item{}, false
	}
	return rows[0], true
}

// For is the item of an MDC code as it is to be coded for a reading in the unit ucum: glucose in mmol/L has another LOINC code than
// in mg/dL. An unknown or empty unit gives the usual item.
func For(mdc uint32, ucum string) (Item, bool) {
	t := load()
	rows := t.items[mdc]
	if len(rows) == 0 {
		return Item{}, false
	}
	for _, it := range rows {
		if it.UCUM == ucum {
			return it, true
		}
	}
	for _, it := range rows {
		if u, known := t.units[ucum]; known && u.base == t.units[it.UCUM].base {
			return it, true
		}
	}
	return rows[0], true
}

// ByRef is the full MDC code of a reference id such as "MDC_ECG_HEART_RATE".
func ByRef(ref string) (mdc uint32, ok bool) {
	mdc, ok = load().refs[ref]
	return mdc, ok
}

// Normalise turns a code of the MDC system as sent into a full one. A code that already has its partition is returned as it is,
// known or not. Some devices send the bare 16 bit term (29140 for MDC_CONC_GLU_ISF, 160212): it is completed when the table knows exactly one
// item of that term. Otherwise ok is false.
func Normalise(id uint64) (mdc uint32, ok bool) {
	switch {
	case id > partitionLast<<16|0xffff:
		return 0, false
	case id > 0xffff:
		return uint32(id), true
	}
	mdc = load().terms[uint16(id)]
	return mdc, mdc != 0
}

// IsDevice tells whether a full MDC code names a part of a device (an MDS, VMD or channel), not something measured.
func IsDevice(mdc uint32) bool { return mdc>>16 == partitionObject }

// UnitOf is the UCUM code of a unit as sent: the whole OBX-6 ("264864^MDC_DIM_BEAT_PER_MIN^MDC") or one of its components, as an MDC
// number with or without partition, an MDC reference id, a UCUM code, or a name that people write ("mmHg", "bpm"). Annotations that
// mean nothing to UCUM are dropped where the table lists them: "{beat}/min" is "/min", which FHIR's profiles ask for.
func UnitOf(sent string) (ucum string, ok bool) {
	t := load()
	for rest, more := sent, true; more; {
		var part string
		part, rest, more = strings.Cut(rest, "^")
		if ucum, ok = t.unitOf(strings.TrimSpace(part)); ok {
			return ucum, true
		}
	}
	return "", false
}

func (t *tables) unitOf(s string) (string, bool) {
	if s == "" {
		return "", false
	}
	// A lone "1" is UCUM's dimensionless unit; every longer number is an MDC code.
	if c := s[len(s)-1]; c >= '0' && c <= '9' && len(s) > 1 {
		if id, err := strconv.ParseUint(s, 10, 32); err == nil {
			if id <= 0xffff {
				id |= partitionDimension << 16
			}
			ucum, ok := t.byMDC[uint32(id)]
			return ucum, ok
		}
	}
	if ucum, ok := t.names[s]; ok {
		return ucum, true
	}
	ucum, ok := t.folded[strings.ToLower(s)]
	return ucum, ok
}

// Verdict is what Judge found.
type Verdict int

// The verdicts of Judge.
const (
	Plausible   Verdict = iota // inside the range, or the item has none
	Implausible                // outside the range, or not a finite number
	WrongUnit                  // the unit does not measure what the item measures, so nothing can be said
)

// Judge compares a reading with the item's range. The value is converted for the comparison only; the ends of the range are plausible.
func (it Item) Judge(value float64, ucum string) Verdict {
	t := load()
	u, known := t.units[ucum]
	own := t.units[it.UCUM]
	switch {
	case !known || u.base != own.base:
		return WrongUnit
	case math.IsNaN(value) || math.IsInf(value, 0):
		return Implausible
	case math.IsNaN(it.Low):
		return Plausible
	}
	if u.ucum != own.ucum {
		value = (value*u.scale + u.offset - own.offset) / own.scale
		// 113 [degF] is 45 Cel: what conversion rounds away must not push an end of the range outside it.
		const slack = 1e-6
		if math.Abs(value-it.Low) < slack || math.Abs(value-it.High) < slack {
			return Plausible
		}
	}
	if value < it.Low || value > it.High {
		return Implausible
	}
	return Plausible
}

// LOINCOf are the LOINC codes of a full MDC code, whatever the unit.
func LOINCOf(mdc uint32) (out []string) {
	for _, it := range load().items[mdc] {
		out = append(out, it.LOINC...)
	}
	return out
}
