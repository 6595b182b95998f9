package client

import "time"

// Trace says where one source's data stops.
type Trace struct {
	Gateway  string    `json:"gateway"`
	Ward     string    `json:"ward,omitempty"` // in which the gateway stands
	Source   string    `json:"source"`         // "" when the gateway has named none
	At       time.Time `json:"at"`             // by the server's clock, as every instant here
	Stations []Station `json:"stations"`
	Stopped  string    `json:"stopped"` // the first station that stopped; "" when none has
	Why      string    `json:"why"`
	Mend     string    `json:"mend"` // "" when nothing is to be mended
}

// Station is one station of a sample's way: received, not understood, sealed, buffered, published, journaled, opened, associated, visible.
type Station struct {
	Name     string     `json:"name"`
	State    string     `json:"state"` // ok, doubt, stopped, waits or unknown
	Last     *time.Time `json:"last"`  // null: never
	Count    uint64     `json:"count"`
	Note     string     `json:"note,omitempty"`
	Why      string     `json:"why,omitempty"` // with Mend, of each station that stopped, not of the first alone
	Mend     string     `json:"mend,omitempty"`
	KnownFor int64      `json:"known_for_seconds"` // age of what the gateway told; 0 for the server's own stations
}
