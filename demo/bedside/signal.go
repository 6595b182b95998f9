package bedside

import (
	"fmt"
	"slices"
	"strings"
)

// Unit is a unit of measure in the languages the monitor meets.
type Unit struct {
	Label string // in recordings' headers
	MDC   uint32 // ISO/IEEE 11073-10101, as OBX-6.1; 0 for a unit that is sent by its UCUM code, or if it has none by its label
	Ref   string // the MDC reference id, as OBX-6.2
	UCUM  string // what the hospital should read in the end; "" where only the label can be read
}

// Signal is one kind of reading, or of waveform.
type Signal struct {
	Name string // in recordings' headers; its code in LocalSystem where it has no other
	MDC  uint32 // ISO/IEEE 11073-10101, as OBX-3.1; 0 for a signal without a code
	Ref  string // the MDC reference id, as OBX-3.2
	Path string // OBX-4: MDS.VMD.CHAN.METRIC, where the signal hangs in the monitor's containment tree
	Unit Unit
}

// LocalSystem is the code system of signals and units for which this monitor has no verified code: their names in the recording. HL7 table
// 0396 keeps names that begin with 99 for local systems.
const LocalSystem = "99WARDSIM"

// The units that this monitor sends. Numbers: ISO/IEEE 11073-10101, partition 4 (dimensions).
var (
	beats     = Unit{"bpm", 264864, "MDC_DIM_BEAT_PER_MIN", "/min"}
	breaths   = Unit{"pm", 264928, "MDC_DIM_RESP_PER_MIN", "/min"}
	percent   = Unit{"%", 262688, "MDC_DIM_PERCENT", "%"}
	mmHg      = Unit{"mmHg", 266016, "MDC_DIM_MMHG", "mm[Hg]"}
	celsius   = Unit{"degC", 268192, "MDC_DIM_DEGC", "Cel"}
	volt      = Unit{"V", 266400, "MDC_DIM_VOLT", "V"}
	millivolt = Unit{"mV", 266418, "MDC_DIM_MILLI_VOLT", "mV"}
	microvolt = Unit{"uV", 266419, "MDC_DIM_MICRO_VOLT", "uV"}
	unity     = Unit{"NU", 262656, "MDC_DIM_DIMLESS", "1"} // "normalised units"

	units = [...]Unit{beats, breaths, percent, mmHg, celsius, volt, millivolt, microvolt, unity}
)

// spelt are further units of recordings, by the labels that are found, in UCUM.
var spelt = map[string]string{
	"/min": "/min", "1/min": "/min", "beats/min": "/min", "breaths/min": "/min", "Hz": "Hz", "s": "s", "sec": "s", "ms": "ms",
	"l": "L", "L": "L", "ml": "mL", "mL": "mL", "l/min": "L/min", "L/min": "L/min", "lpm": "L/min",
	"cmH2O": "cm[H2O]", "kPa": "kPa", "mbar": "mbar", "ohm": "Ohm", "Ohm": "Ohm", "cm": "cm", "mm": "mm", "m": "m", "g": "g", "kg": "kg",
}

// unitOf finds a recording's unit.
func unitOf(label string) Unit {
	if label == "µV" || label == "μV" { // the micro sign, and the letter that looks like it
		label = microvolt.Label
	}
	for _, u := range units {
		if u.Label == label {
			return u
		}
	}
	return Unit{Label: label, UCUM: spelt[label]}
}

// The readings that this monitor knows. Numbers: ISO/IEEE 11073-10101, partition 2 (metrics).
var (
	heartRate      = Signal{"HR", 147842, "MDC_ECG_HEART_RATE", "1.1.1.1", beats}
	respRate       = Signal{"RESP", 151562, "MDC_RESP_RATE", "1.1.2.1", breaths}
	artSys         = Signal{"ABPSys", 150037, "MDC_PRESS_BLD_ART_ABP_SYS", "1.2.1.1", mmHg}
	artDia         = Signal{"ABPDias", 150038, "MDC_PRESS_BLD_ART_ABP_DIA", "1.2.1.2", mmHg}
	artMean        = Signal{"ABPMean", 150039, "MDC_PRESS_BLD_ART_ABP_MEAN", "1.2.1.3", mmHg}
	pulseRate      = Signal{"PULSE", 149530, "MDC_PULS_OXIM_PULS_RATE", "1.3.1.1", beats}
	oxygenSat      = Signal{"SpO2", 150456, "MDC_PULS_OXIM_SAT_O2", "1.3.1.2", percent}
	perfusionIndex = Signal{"PERF", 150448, "MDC_PULS_OXIM_PERF_REL", "1.3.1.3", percent}
	cuffSys        = Signal{"NBPSys", 150021, "MDC_PRESS_BLD_NONINV_SYS", "1.4.1.1", mmHg}
	cuffDia        = Signal{"NBPDias", 150022, "MDC_PRESS_BLD_NONINV_DIA", "1.4.1.2", mmHg}
	cuffMean       = Signal{"NBPMean", 150023, "MDC_PRESS_BLD_NONINV_MEAN", "1.4.1.3", mmHg}
	temperature    = Signal{"TEMP", 150364, "MDC_TEMP_BODY", "1.5.1.1", celsius}

	readings = [...]Signal{heartRate, respRate, artSys, artDia, artMean, pulseRate, oxygenSat, perfusionIndex,
		cuffSys, cuffDia, cuffMean, temperature}
)

// shape is a waveform that this monitor knows, and the units in which its code may be believed; nil allows any.
type shape struct {
	name  string
	mdc   uint32
	ref   string
	units []Unit
}

var (
	potential = []Unit{millivolt, microvolt, volt}
	pressure  = []Unit{mmHg}
)

// The waveforms that this monitor knows. Numbers: ISO/IEEE 11073-10101:2004, annex B.3 (a lead's potential is MDC_ECG_ELEC_POTL, 256, plus
// the number of the lead), compared with DICOM's CID 3001 for the leads and with what monitors of two makers send for the others. V, MCL1 and
// their kind are not among them: the standard's first edition gives them other numbers than the later one on which DICOM builds, under which
// V's is V9's. They go by name.
var shapes = [...]shape{
	{"I", 131329, "MDC_ECG_ELEC_POTL_I", potential},
	{"II", 131330, "MDC_ECG_ELEC_POTL_II", potential},
	{"III", 131389, "MDC_ECG_ELEC_POTL_III", potential},
	{"aVR", 131390, "MDC_ECG_ELEC_POTL_AVR", potential},
	{"aVL", 131391, "MDC_ECG_ELEC_POTL_AVL", potential},
	{"aVF", 131392, "MDC_ECG_ELEC_POTL_AVF", potential},
	{"V1", 131331, "MDC_ECG_ELEC_POTL_V1", potential},
	{"V2", 131332, "MDC_ECG_ELEC_POTL_V2", potential},
	{"V3", 131333, "MDC_ECG_ELEC_POTL_V3", potential},
	{"V4", 131334, "MDC_ECG_ELEC_POTL_V4", potential},
	{"V5", 131335, "MDC_ECG_ELEC_POTL_V5", potential},
	{"V6", 131336, "MDC_ECG_ELEC_POTL_V6", potential},
	{"ART", 150032, "MDC_PRESS_BLD_ART", pressure},
	{"ABP", 150036, "MDC_PRESS_BLD_ART_ABP", pressure},
	{"PAP", 150044, "MDC_PRESS_BLD_ART_PULM", pressure},
	{"CVP", 150084, "MDC_PRESS_BLD_VEN_CENT", pressure},
	{"ICP", 153608, "MDC_PRESS_INTRA_CRAN", pressure},
	{"PLETH", 150452, "MDC_PULS_OXIM_PLETH", nil},
	{"RESP", 151552, "MDC_RESP", nil},
}

// readingOf is the signal of a recording's numerics, the n-th of the record. A name that is known in another unit is not that signal: the same
// number in another unit would be another reading.
func readingOf(name, label string, n int) Signal {
	for _, s := range readings {
		if alike(s.Name, name) && s.Unit.Label == label {
			return s
		}
	}
	return Signal{Name: name, Path: fmt.Sprintf("1.8.1.%d", n), Unit: unitOf(label)}
}

// waveOf is the signal of a recording's waveform, the n-th of the record.
func waveOf(name, label string, n int) Signal {
	s := Signal{Name: name, Path: fmt.Sprintf("1.9.1.%d", n), Unit: unitOf(label)}
	for _, k := range shapes {
		if alike(k.name, name) && (k.units == nil || slices.Contains(k.units, s.Unit)) {
			s.MDC, s.Ref = k.mdc, k.ref
		}
	}
	return s
}

// alike passes over case and spaces, in which records differ: "ABP SYS" is "ABPSys".
func alike(a, b string) bool { return strings.EqualFold(a, strings.ReplaceAll(b, " ", "")) }
