package client

import "time"

// Alerts is the answer to the list of alerts.
type Alerts struct {
	Alerts  []Alert       `json:"alerts"` // open ones first
	Targets []AlertTarget `json:"targets"`
	Notes   []string      `json:"notes,omitempty"`   // what is not watched or not told
	Problem string        `json:"problem,omitempty"` // what keeps the list from being whole or durable
}

// Alert is one alert.
type Alert struct {
	ID           string            `json:"id"`
	Type         string            `json:"type"`
	Subject      string            `json:"subject"`
	Severity     string            `json:"severity"` // notice, warning, critical
	State        string            `json:"state"`    // open, acknowledged, silenced, resolved
	Opened       time.Time         `json:"opened"`
	Seen         time.Time         `json:"last_seen"`
	Count        int64             `json:"count"`
	Resolved     *time.Time        `json:"resolved,omitempty"`
	Acknowledged *time.Time        `json:"acknowledged,omitempty"`
	By           string            `json:"acknowledged_by,omitempty"`
	Note         string            `json:"note,omitempty"`
	Told         *time.Time        `json:"last_told,omitempty"` // the last message to targets was made then
	Silence      string            `json:"silence,omitempty"`   // id of the silence that covers it
	Meaning      string            `json:"meaning"`
	Mend         string            `json:"mend"`
	Detail       map[string]string `json:"detail,omitempty"`
}

// AlertTarget is where alerts go.
type AlertTarget struct {
	Name    string     `json:"name"`
	To      string     `json:"to"`
	Minimum string     `json:"minimum"`
	Waiting int        `json:"waiting"`                 // messages in the spool
	Failing *time.Time `json:"failing_since,omitempty"` // absent unless the last attempt failed
	Error   string     `json:"error,omitempty"`
	LastOK  *time.Time `json:"last_delivered,omitempty"` // since the server's start
	Sent    uint64     `json:"delivered"`                // since the server's start
	Lost    uint64     `json:"undeliverable"`            // since the server's start
}

// AlertAcknowledgement takes an alert on.
type AlertAcknowledgement struct {
	Alert string `json:"alert"` // id or type/subject
	Note  string `json:"note,omitempty"`
}

// Silence keeps messages of matching alerts back.
type Silence struct {
	ID      string    `json:"id"`
	Type    string    `json:"type"`    // pattern: * and ?
	Subject string    `json:"subject"` // pattern
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	By      string    `json:"by"`
	Reason  string    `json:"reason"`
}

// SilenceRequest asks for a silence. An empty pattern is *.
type SilenceRequest struct {
	Type    string `json:"type"`
	Subject string `json:"subject"`
	For     string `json:"for"` // such as 2h
	Reason  string `json:"reason"`
}

// SilenceEnd ends one early.
type SilenceEnd struct {
	ID string `json:"id"`
}

// AlertTest asks for a test message to one target, or to all.
type AlertTest struct {
	Target string `json:"target,omitempty"`
}

// AlertTestResult is what a target answered.
type AlertTestResult struct {
	Target       string `json:"target"`
	To           string `json:"to"`
	OK           bool   `json:"ok"`
	Answer       string `json:"answer"`
	Milliseconds int64  `json:"milliseconds"`
}
