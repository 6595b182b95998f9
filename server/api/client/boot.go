package client

import (
	"time"

	"wardlink/server/boot"
)

// BootPolicy is what boots are held to: of one gateway, or of all that have none of their own.
type BootPolicy struct {
	Gateway string     `json:"gateway,omitempty"` // "": of all that have none of their own
	Mode    string     `json:"mode"`              // off, learn, allow; in a request "" takes a gateway's own away
	PCRs    string     `json:"pcrs,omitempty"`    // such as 0-7
	After   int        `json:"after,omitempty"`   // of learn: attestations in a row with the same values, until they are locked
	At      *time.Time `json:"at,omitempty"`
	By      string     `json:"by,omitempty"`
}

// BootRelease is a set of values that operators allow.
type BootRelease struct {
	Name   string    `json:"name"`
	Source string    `json:"source,omitempty"` // the gateway that they were taken of
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	boot.Measurement
}

// BootAllow allows values under a name: those given, or those of a gateway's newest attestation.
type BootAllow struct {
	Name string `json:"name"`
	From string `json:"from,omitempty"`
	boot.Measurement
}

// BootWithdraw allows a release no more.
type BootWithdraw struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// BootOverview is what holds in general, and who is in quarantine.
type BootOverview struct {
	Policies    []BootPolicy  `json:"policies"`
	Releases    []BootRelease `json:"releases"`
	Quarantined []Quarantine  `json:"quarantined"`
}

// Quarantine is what put a gateway into quarantine.
type Quarantine struct {
	Gateway string    `json:"gateway"`
	Since   time.Time `json:"since"`
	boot.Mismatch
}

// GatewayBoot is how one gateway boots.
type GatewayBoot struct {
	Gateway    string            `json:"gateway"`
	Policy     BootPolicy        `json:"policy"`
	State      string            `json:"state,omitempty"` // of the newest attestation: unjudged, learning, matches, differs; empty: there is none
	At         *time.Time        `json:"at,omitempty"`
	Matched    string            `json:"release,omitempty"`
	Measured   *boot.Measurement `json:"measured,omitempty"`
	Baseline   *BootBaseline     `json:"baseline,omitempty"`
	Quarantine *Quarantine       `json:"quarantine,omitempty"`
}

// BootBaseline is what was learned of a gateway.
type BootBaseline struct {
	Seen   int        `json:"seen"`             // attestations in a row
	Locked *time.Time `json:"locked,omitempty"` // absent: not yet
	boot.Measurement
}

// ReadmitRequest ends a quarantine.
type ReadmitRequest struct {
	Reason string `json:"reason"`
	Accept bool   `json:"accept,omitempty"` // what the gateway booted becomes what it is held to
}
