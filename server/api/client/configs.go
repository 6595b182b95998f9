package client

import "time"

// ConfigSettings are what an operator sets of a configuration. What is empty is not set: a gateway then follows its site, its own file and
// its kit.
type ConfigSettings struct {
	Servers     []string `json:"servers,omitempty"`      // host:port, tried in this order, before those of the kit
	ReportEvery string   `json:"report_every,omitempty"` // such as "60s"; 1s to 1h
}

// ConfigVersion is one configuration of a gateway or a site.
type ConfigVersion struct {
	Version  uint64         `json:"version"` // 0: none was ever issued
	Issued   time.Time      `json:"issued,omitzero"`
	By       string         `json:"by,omitempty"` // the operator's SPIFFE id; "server" where the registry changed
	Settings ConfigSettings `json:"settings"`
}

// ConfigRequest asks for a new version.
type ConfigRequest struct {
	Settings ConfigSettings `json:"settings"`           // all of them
	Expect   *uint64        `json:"expect,omitempty"`   // the version that is taken to be the newest
	Retry    bool           `json:"retry,omitempty"`    // a new version although the settings are the same
	Rollback uint64         `json:"rollback,omitempty"` // the version whose settings these are, for the log
	DryRun   bool           `json:"dry_run,omitempty"`
}

// ConfigAnswer is what came of it.
type ConfigAnswer struct {
	Target   string        `json:"target"`
	Before   ConfigVersion `json:"before"`
	After    ConfigVersion `json:"after"`
	Issued   bool          `json:"issued"`   // false: nothing changed, or it was a dry run
	New      bool          `json:"new"`      // something changes, or would
	Gateways []string      `json:"gateways"` // that it is for
}

// ConfigTarget is a gateway's or a site's configuration: its versions, the newest first, and how far the gateways are.
type ConfigTarget struct {
	Target   string          `json:"target"`
	Versions []ConfigVersion `json:"versions"`
	Gateways []ConfigState   `json:"gateways"`
}

// ConfigState is how far one gateway is with the configurations that are wanted of it.
type ConfigState struct {
	Gateway  string         `json:"gateway"`
	Site     string         `json:"site,omitempty"`
	Own      ConfigPart     `json:"own"`
	OfSite   *ConfigPart    `json:"of_site,omitempty"` // nil: its site has none
	Settings ConfigSettings `json:"settings"`          // what is wanted in all: its own over its site's
	Reported time.Time      `json:"reported,omitzero"` // when the gateway last said anything of it
}

// ConfigPart is one of the two documents of a gateway.
type ConfigPart struct {
	Wanted  uint64    `json:"wanted"`
	Issued  time.Time `json:"issued,omitzero"`
	InForce uint64    `json:"in_force"` // 0: none, or nothing was reported
	State   string    `json:"state"`    // "none", "waiting", "prepared", "applied", "confirmed" or "reverted", of the wanted version
	Reason  string    `json:"reason,omitempty"`
	Since   time.Time `json:"since,omitzero"` // when the hospital heard of that state
}
