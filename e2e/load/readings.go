package load

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"wardlink/telemetry"
)

// vitals are what a bedside monitor sends each time.
var vitals = []struct {
	mdc       uint32
	name      string
	low, span int
	unit      telemetry.Unit
}{
	{147842, "MDC_ECG_HEART_RATE", 60, 40, telemetry.Unit{Sent: "264864^MDC_DIM_BEAT_PER_MIN^MDC", UCUM: "{beat}/min"}},
	{150456, "MDC_PULS_OXIM_SAT_O2", 92, 8, telemetry.Unit{Sent: "262688^MDC_DIM_PERCENT^MDC", UCUM: "%"}},
	{151562, "MDC_RESP_RATE", 10, 10, telemetry.Unit{Sent: "264928^MDC_DIM_RESP_PER_MIN^MDC", UCUM: "{breath}/min"}},
	{150037, "MDC_PRESS_BLD_ART_ABP_SYS", 100, 40, telemetry.Unit{Sent: "266016^MDC_DIM_MMHG^MDC", UCUM: "mm[Hg]"}},
	{150038, "MDC_PRESS_BLD_ART_ABP_DIA", 60, 20, telemetry.Unit{Sent: "266016^MDC_DIM_MMHG^MDC", UCUM: "mm[Hg]"}},
	{150344, "MDC_TEMP", 36, 3, telemetry.Unit{Sent: "268192^MDC_DIM_DEGC^MDC", UCUM: "Cel"}},
}

// Readings is the batch of one message of a bedside monitor, another one for each number.
func Readings(number uint64) ([]byte, error) {
	now := time.Now()
	at := now.UTC().Format("20060102150405+0000")
	m := telemetry.Message{
		Source: "bed-1", Digest: sha256.Sum256(binary.BigEndian.AppendUint64([]byte(at), number)), Received: telemetry.Stamp{Wall: now.UnixMilli(), Mono: int64(number)},
		Type: "ORU^R01^ORU_R01", ControlID: fmt.Sprint(number), Sender: "MONITOR", Processing: "T", SentAt: at,
		Patient: telemetry.Patient{ID: "4711", Authority: "HOSP", Location: "ICU^12"},
	}
	for i, v := range vitals {
		m.Observations = append(m.Observations, telemetry.Observation{
			Index: uint32(i), Type: "NM", Code: telemetry.Code{MDC: v.mdc, ID: fmt.Sprint(v.mdc), Name: v.name, Sys: "MDC"}, SubID: fmt.Sprintf("1.%d.1.1", i+1),
			Unit: v.unit, Value: fmt.Sprint(v.low + int(number)%v.span), Status: "R", Time: at, At: now.UnixMilli(), Device: "0003B1FFFE000007",
		})
	}
	return telemetry.Encode(telemetry.Batch{Boot: [16]byte{1}, Messages: []telemetry.Message{m}})
}
