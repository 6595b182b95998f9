package bedside

import "fmt"

// Unit is a unit of measure in the three languages the monitor meets.
type Unit struct {
	Label string // in recordings' headers
	MDC   uint32 // ISO/IEEE 11073-10101, as OBX-6.1
	Ref   string // the MDC reference id, as OBX-6.2
	UCUM  string // what the hospital should read in the end
}

// Signal is one kind of reading.
type Signal struct {
	Name string // in recordings' headers
	MDC  uint32 // ISO/IEEE 11073-10101, as OBX-3.1
	Ref  string // the MDC reference id, as OBX-3.2
	Path string // OBX-4: MDS.VMD.CHAN.METRIC, where the reading hangs in the monitor's containment tree
	Unit Unit
}

// The units that this monitor sends. Numbers: ISO/IEEE 11073-10101, partition 4 (dimensions).
var (
	beats   = Unit{"bpm", 264864, "MDC_DIM_BEAT_PER_MIN", "/min"}
	breaths = Unit{"pm", 264928, "MDC_DIM_RESP_PER_MIN", "/min"}
	percent = Unit{"%", 262688, "MDC_DIM_PERCENT", "%"}
	mmHg    = Unit{"mmHg", 266016, "MDC_DIM_MMHG", "mm[Hg]"}
	celsius = Unit{"degC", 268192, "MDC_DIM_DEGC", "Cel"}
)

// The signals that this monitor knows. Numbers: ISO/IEEE 11073-10101, partition 2 (metrics).
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

	signals = [...]Signal{heartRate, respRate, artSys, artDia, artMean, pulseRate, oxygenSat, perfusionIndex,
		cuffSys, cuffDia, cuffMean, temperature}
)

// signalNamed finds the signal of a recording. The unit must be the one this monitor sends the signal in: the same number
// in another unit would be another reading.
func signalNamed(name, unit string) (Signal, error) {
	for _, s := range signals {
		if s.Name != name {
			continue
		}
		if s.Unit.Label != unit {
			return Signal{}, fmt.Errorf("signal %q is in %q; this monitor sends it in %q only", name, unit, s.Unit.Label)
		}
		return s, nil
	}
	return Signal{}, fmt.Errorf("signal %q has no MDC code in this monitor; add it to signal.go", name)
}
