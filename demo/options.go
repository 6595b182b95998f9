// Package demo runs the product's main job as a sceptic would: real processes, a real (emulated) TPM for each gateway, bedside monitors
// that are none of our code; agent and server killed with SIGKILL, the network cut, a stolen gateway that attacks and is revoked; and at
// the end a comparison of what the monitors say they sent with what the hospital reads, and of what was refused with what the log proves.
package demo

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"wardlink/demo/bedside"
)

// Options of a demonstration.
type Options struct {
	Recording string        // path of a PhysioNet record to replay, numerics or waveforms; "" simulates
	Speed     float64       // seconds of a recording for each that passes: 1 is real time; 0 is as fast as it is acknowledged
	Minutes   int           // simulated minutes for each monitor, one row a second; 0 is 10
	Gateways  int           // each with a TPM and a monitor of its own; 0 is 1
	Chaos     int           // seconds of kills and cuts at random instead of the plot; 0 is none
	Postgres  bool          // the stores are in a PostgreSQL server of the demonstration's own
	Nodes     int           // ingest nodes behind a balancer, with Postgres; 0: the server takes the sessions itself
	Former    bool          // the agent is of a former release: it is told and asked nothing that only later ones know
	Disaster  bool          // instead of the plot: backup, loss of the server's directory, restore, refill by the gateways
	Seed      uint64        // of chaos: the same seed gives the same blows; 0 draws one
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

// shortestRecording is how many rows a recording must have, so that each thing that goes wrong has some to go wrong with.
const shortestRecording = 10

// maxNodes bounds the ingest nodes.
const maxNodes = 9

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
	if o.Chaos != 0 && (o.Chaos < minChaos || o.Chaos > maxChaos) {
		return fmt.Errorf("--chaos: expected %d to %d seconds", minChaos, maxChaos)
	}
	for o.Seed == 0 {
		o.Seed = rand.Uint64N(1_000_000) // short enough to be typed again
	}
	rows := o.rows()
	if o.Recording != "" {
		var err error
		if o.recording, err = bedside.OpenRecording(o.Recording); err != nil {
			return err // said before a TPM is made
		}
		rows = o.recording.Rows()
	}
	switch {
	case o.Disaster && o.Postgres:
		return errors.New("--disaster and --postgres: a backup of PostgreSQL is made by its own tools")
	case o.Nodes != 0 && !o.Postgres:
		return errors.New("--nodes: several processes need --postgres")
	case o.Nodes < 0 || o.Nodes > maxNodes:
		return fmt.Errorf("--nodes: expected 1 to %d", maxNodes)
	case o.Disaster && o.Chaos > 0:
		return errors.New("--disaster and --chaos: one at a time")
	case !(o.Speed >= 0 && o.Speed <= 1000):
		return errors.New("--speed: expected 1 for real time, up to 1000, or 0 for as fast as it is acknowledged")
	case o.Speed > 0 && o.recording == nil:
		return errors.New("--speed: it is a recording's; name one with --recording")
	case o.recording != nil && rows < shortestRecording:
		return fmt.Errorf("%s: %d rows; a recording of less than %d is over before anything can go wrong", o.Recording, rows, shortestRecording)
	case o.Limit == 0:
		o.Limit = limit(rows, o.Gateways)
		if o.Speed > 0 {
			o.Limit += time.Duration(float64(o.recording.Length()) / o.Speed)
		}
	}
	return nil
}

// rows is how many rows a simulated monitor sends. Under chaos it sends as long as it is needed, and this is more than that.
func (o *Options) rows() int {
	if o.Chaos > 0 {
		return int((time.Duration(o.Chaos)*time.Second + 5*time.Minute) / pace)
	}
	return o.Minutes * 60
}

// limit is several times what a small machine needs: a pace for each row, its way to the hospital and back in the comparison for
// each gateway, and the making of each TPM.
func limit(rows, gateways int) time.Duration {
	return 15*time.Minute + time.Duration(gateways)*30*time.Second + time.Duration(rows)*(4*pace+time.Duration(gateways)*20*time.Millisecond)
}

// Summary is what came out. Every figure is counted by the monitors or read from the hospital's side, none is assumed.
type Summary struct {
	Compared            bool    `json:"compared"`             // false: it ended before the comparison, and the figures say nothing
	SamplesSent         int     `json:"samples_sent"`         // readings with a value, and samples of waveforms that are not missing, that the monitors sent
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
	ServerKills         int     `json:"server_kills"`
	Kills               Kills   `json:"kills"`
	OutageSeconds       float64 `json:"outage_seconds"` // while the network was cut
	BacklogPeak         uint64  `json:"backlog_peak"`   // batches that the gateways held meanwhile, at the most
	RevokeSeconds       float64 `json:"revoke_seconds"` // from the start of 'wardlink gateway revoke' until the live session was cut

	Account      []Accounted `json:"account"`       // of every lane that was used
	AccountLooks int         `json:"account_looks"` // at the account while things went wrong; none when the server's directory was lost
	Imbalances   int         `json:"imbalances"`    // of these, at which a number was accounted for by nobody
	Refusals     []Refusal   `json:"refusals"`
	Disaster     *Disaster   `json:"disaster,omitempty"`
	Quarantine   *Quarantine `json:"quarantine,omitempty"` // nil where no gateway was started with another boot loader

	Enrolment *enrolment `json:"enrolment,omitempty"` // of many gateways in one go; nil where they were entered beforehand

	Chaos    int     `json:"chaos_seconds,omitempty"`
	Seed     uint64  `json:"seed,omitempty"`
	Nodes    int     `json:"nodes,omitempty"` // ingest nodes
	Former   bool    `json:"former_agent,omitempty"`
	Gateways int     `json:"gateways"` // that deliver; one more is carried away
	Seconds  float64 `json:"seconds"`
}

// cutWithin is how long a revoked gateway's session may live on, in seconds.
const cutWithin = 2

// attacks is how many attacks there are, the revoked gateway's connection and renewal counted apart.
const attacks = 4

// OK says whether the demonstration shows what it promises.
func (s Summary) OK() bool {
	if s.Disaster != nil {
		return s.delivered() && s.accounted() && s.proven() && s.AgentKills > 0 && s.ServerKills > 0 && s.Disaster.recovered()
	}
	return s.delivered() && s.accounted() && s.proven() && s.hostile() && s.defended() && (s.Chaos > 0 || s.Former || s.Quarantine.shown())
}

// delivered: nothing is lost, doubled or altered.
func (s Summary) delivered() bool {
	return s.Compared && s.SamplesSent > 0 && s.SamplesStored == s.SamplesAcknowledged && s.SamplesAcknowledged == s.SamplesSent &&
		s.Missing == 0 && s.Duplicates == 0 && s.Mismatched == 0
}

// accounted: every number that a gateway assigned to a batch is in one class of the account, and none is lost.
func (s Summary) accounted() bool {
	if s.Imbalances > 0 || s.AccountLooks == 0 && s.Disaster == nil {
		return false
	}
	carried := uint64(0)
	for i := range s.Account {
		if !s.Account[i].whole() {
			return false
		}
		if s.Account[i].Lane != laneSelf {
			carried += s.Account[i].Stored
		}
	}
	return carried > 0
}

// proven: the log verifies, and holds what the gateways and the hospital's reader know of.
func (s Summary) proven() bool {
	return s.BatchesAcknowledged > 0 && s.AuditRows >= s.BatchesAcknowledged && s.FHIRReads > 0 && s.AuditReads == s.FHIRReads &&
		s.AuditVerified && s.ProofVerified
}

// hostile: it was not shown on a quiet day.
func (s Summary) hostile() bool {
	k := s.Kills
	return s.AgentKills > 0 && s.ServerKills > 0 && k.Network > 0 && s.OutageSeconds > 0 && s.BacklogPeak > 0 &&
		k.Agent == s.AgentKills && k.Server == s.ServerKills && k.Total == k.Signals()+k.Network && 3*k.Signals() >= s.Chaos && (s.Nodes == 0 || k.Node > 0)
}

// defended: every attack was refused and stands in the log with actor and reason.
func (s Summary) defended() bool {
	for _, r := range s.Refusals {
		if !r.Refused || r.Leaf == 0 || r.Leaf >= s.AuditLeaves || r.Actor == "" || r.Reason == "" {
			return false
		}
	}
	return len(s.Refusals) == attacks && s.RevokeSeconds > 0 && s.RevokeSeconds <= cutWithin
}
