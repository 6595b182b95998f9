// Package demo runs the product's main job as a newcomer would: real processes, a real (emulated) TPM for each gateway, a bedside
// monitor that is none of our code, a SIGKILL in the middle, and a comparison of what the monitor says it sent with what the
// hospital reads.
package demo

import (
	"errors"
	"io"
	"time"

	"wardlink/demo/bedside"
)

// Options of a demonstration.
type Options struct {
	Recording string        // path of a PhysioNet record to replay, numerics or waveforms; "" simulates
	Speed     float64       // seconds of a recording for each that passes: 1 is real time; 0 is as fast as it is acknowledged
	Minutes   int           // simulated minutes for each monitor, one row a second; 0 is 10
	Gateways  int           // each with a TPM and a monitor of its own; 0 is 1
	Summary   string        // file for the summary; "" writes none
	Keep      bool          // leave everything running and say how to look at it
	Bin       string        // folder of wardlink-server and wardlink-agent; "" is the folder of the running program
	Out       io.Writer     // where the live lines and the table go
	Plain     bool          // no colour and no line that is overwritten
	Limit     time.Duration // the demonstration fails after this long, what Keep adds not counted; 0 is what its size should take, generously

	// Inspect, where set, is called with the folder of the demonstration once everything is shown and still runs. Tests use it.
	Inspect func(dir string) error

	recording *bedside.Recording // of Recording, read once for all monitors
}

// maxGateways bounds the processes that one machine is asked to run.
const maxGateways = 100

func (o *Options) check() error {
	if o.Minutes == 0 {
		o.Minutes = 10
	}
	if o.Gateways == 0 {
		o.Gateways = 1
	}
	if o.Minutes < 1 || o.Minutes > 24*60 {
		return errors.New("--minutes: expected 1 to 1440")
	}
	if o.Gateways < 1 || o.Gateways > maxGateways {
		return errors.New("--gateways: expected 1 to 100")
	}
	rows := o.Minutes * 60
	if o.Recording != "" {
		var err error
		if o.recording, err = bedside.OpenRecording(o.Recording); err != nil {
			return err // said before a TPM is made
		}
		rows = o.recording.Rows()
	}
	switch {
	case !(o.Speed >= 0 && o.Speed <= 1000):
		return errors.New("--speed: expected 1 for real time, up to 1000, or 0 for as fast as it is acknowledged")
	case o.Speed > 0 && o.recording == nil:
		return errors.New("--speed: it is a recording's; name one with --recording")
	case o.Limit == 0:
		o.Limit = limit(rows, o.Gateways)
		if o.Speed > 0 {
			o.Limit += time.Duration(float64(o.recording.Length()) / o.Speed)
		}
	}
	return nil
}

// limit is several times what a small machine needs: a pace for each row, its way to the hospital and back in the comparison for
// each gateway, and the making of each TPM.
func limit(rows, gateways int) time.Duration {
	return 15*time.Minute + time.Duration(gateways)*30*time.Second + time.Duration(rows)*(4*pace+time.Duration(gateways)*20*time.Millisecond)
}

// Summary is what came out. Every figure is counted by the monitors or read from the hospital's side, none is assumed.
type Summary struct {
	Compared            bool    `json:"compared"`             // false: it ended before the comparison, and the figures say nothing
	SamplesSent         int     `json:"samples_sent"`         // readings with a value that the monitors sent
	SamplesAcknowledged int     `json:"samples_acknowledged"` // of these, acknowledged to the monitors
	SamplesStored       int     `json:"samples_stored"`       // of these, found in FHIR with value, unit and time as sent
	Missing             int     `json:"missing"`              // acknowledged and not in FHIR
	Duplicates          int     `json:"duplicates"`           // more often in FHIR than sent
	Mismatched          int     `json:"mismatched"`           // in FHIR with another value or unit
	NoReadings          int     `json:"no_readings"`          // sent as "no reading", and found so
	BatchesAcknowledged uint64  `json:"batches_acknowledged"` // by the agents' own account
	FHIRReads           int     `json:"fhir_reads"`           // pages that the comparison read
	AuditReads          int     `json:"audit_reads"`          // of these, found as events in the log
	AuditLeaves         uint64  `json:"audit_leaves"`
	AuditRows           uint64  `json:"audit_rows"` // publishes in the log; a batch sent again after a cut is two
	AuditVerified       bool    `json:"audit_verified"`
	ProofVerified       bool    `json:"proof_verified"`
	AgentKills          int     `json:"agent_kills"`
	Gateways            int     `json:"gateways"`
	Seconds             float64 `json:"seconds"`
}

// OK says whether the demonstration shows what it promises.
func (s Summary) OK() bool {
	return s.Compared && s.SamplesSent > 0 && s.SamplesStored == s.SamplesAcknowledged && s.SamplesAcknowledged == s.SamplesSent &&
		s.Missing == 0 && s.Duplicates == 0 && s.Mismatched == 0 &&
		s.BatchesAcknowledged > 0 && s.AuditRows >= s.BatchesAcknowledged && s.FHIRReads > 0 && s.AuditReads == s.FHIRReads &&
		s.AuditVerified && s.ProofVerified && s.AgentKills > 0
}
