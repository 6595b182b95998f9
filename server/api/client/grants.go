package client

import "time"

// Profile is what a class of gateways may do.
type Profile struct {
	Name      string     `json:"name,omitempty"` // in the path, when one is set
	Lanes     []string   `json:"lanes"`          // alarm, vitals, waveform; self is always among them
	Publishes int        `json:"publishes"`      // per second; 0: no rate
	Bytes     int        `json:"bytes"`          // of frames, per second; 0: no rate
	At        *time.Time `json:"at,omitempty"`
	By        string     `json:"by,omitempty"`
	Gateways  int        `json:"gateways"` // that have it
}

// ProfileChange sets a profile.
type ProfileChange struct {
	Profile
	// WithoutAlarms: that lane alarm is missing is meant; else it is refused.
	WithoutAlarms bool `json:"without_alarms,omitempty"`
}

// ProfileRequest gives a gateway a profile.
type ProfileRequest struct {
	Profile string `json:"profile"`
	// WithoutAlarms says that a profile without lane alarm is meant; else it is refused.
	WithoutAlarms bool `json:"without_alarms,omitempty"`
}

// ProfileAnswer says what it has and had.
type ProfileAnswer struct {
	Gateway string `json:"gateway"`
	Profile string `json:"profile"`
	Was     string `json:"was"`
}

// WindowRequest says from when until when a gateway may connect. What is absent stays as it is; with Always it is no limit.
type WindowRequest struct {
	From   *time.Time `json:"from,omitempty"`
	Until  *time.Time `json:"until,omitempty"`
	Always bool       `json:"always,omitempty"`
	Past   bool       `json:"past,omitempty"` // that it cuts the gateway off at once is meant, an end that has passed or a beginning that is to come; else it is refused
}

// WindowAnswer is the validity in words.
type WindowAnswer struct {
	Gateway string `json:"gateway"`
	Valid   string `json:"valid"`
}

// GatewayExplanation says what a gateway may do and why.
type GatewayExplanation struct {
	Gateway string  `json:"gateway"`
	Allowed bool    `json:"allowed"` // it may connect now
	Checks  []Check `json:"checks"`  // in the order in which they are asked; the first that does not hold decides
	Facts   []Fact  `json:"facts"`   // what else holds of it
}

// Fact is one line about a gateway.
type Fact struct {
	What string `json:"what"`
	Says string `json:"says"`
}

// Asset is one gateway as a register of assets wants it. An empty instant is not known. Columns are added at the end, and never renamed.
type Asset struct {
	ID              string     `json:"id"`
	State           string     `json:"state"`
	Site            string     `json:"site"`
	Ward            string     `json:"ward"`
	Profile         string     `json:"profile"`
	NotBefore       *time.Time `json:"not_before"`
	NotAfter        *time.Time `json:"not_after"`
	EK              []string   `json:"ek_sha256"` // hex
	Maker           string     `json:"tpm_manufacturer"`
	Model           string     `json:"tpm_model"`
	Firmware        string     `json:"tpm_firmware"`
	Serial          string     `json:"serial_number"` // the box's own word
	Agent           string     `json:"agent_version"`
	Added           *time.Time `json:"first_registered"`
	Seen            *time.Time `json:"last_seen"`
	CertificateEnds *time.Time `json:"certificate_ends"`
	Boot            string     `json:"boot_state"`
	BootPolicy      string     `json:"boot_policy"`
	Quarantined     *time.Time `json:"quarantined_since"`
}

// CodeRequest makes a one-time code for a gateway's first enrolment.
type CodeRequest struct {
	Seconds int64 `json:"seconds"` // until it ends; 60 to 30 days
}

// CodeAnswer holds it; the server keeps its hash alone.
type CodeAnswer struct {
	Gateway string    `json:"gateway"`
	Code    string    `json:"code"`
	Ends    time.Time `json:"ends"`
}
