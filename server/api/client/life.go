package client

import "time"

// Ward is where a gateway stands from an instant on.
type Ward struct {
	Ward  string     `json:"ward"`
	Since *time.Time `json:"since,omitempty"` // absent: from the beginning
	By    string     `json:"by,omitempty"`    // the operator's SPIFFE id
}

// Hold says who suspended or decommissioned a gateway, and why.
type Hold struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"` // the operator's SPIFFE id
	Reason string    `json:"reason"`
}

// MoveRequest says in which ward a gateway stands.
type MoveRequest struct {
	Ward string    `json:"ward"`
	From time.Time `json:"from,omitzero"` // absent: now
}

// MoveAnswer is what came of it.
type MoveAnswer struct {
	Gateway string `json:"gateway"`
	Ward
	Before   string `json:"before"`   // the ward until then
	Replaced []Ward `json:"replaced"` // later moves that hold no longer
	Already  bool   `json:"already"`  // it stood there, and nothing was changed
}

// ReplaceRequest gives a gateway another board.
type ReplaceRequest struct {
	TPMs   []string `json:"tpms"` // fingerprints of TPMs that wait, or whole hashes of endorsement keys
	Reason string   `json:"reason"`
}

// ReplaceAnswer is what came of it.
type ReplaceAnswer struct {
	Gateway   string   `json:"gateway"`
	Old       []string `json:"old_ek_sha256"` // hex; never admitted again
	New       []string `json:"ek_sha256"`     // hex
	Serials   []string `json:"serials"`       // of the old board's certificates that were valid; hex
	State     string   `json:"state"`
	Journaled bool     `json:"journaled"` // false: it stands, and its event waits for a journal that cannot be written
}

// SuspendAnswer is what came of a suspension.
type SuspendAnswer struct {
	Gateway string `json:"gateway"`
	Hold
	Already   bool `json:"already"`
	Journaled bool `json:"journaled"`
}

// ResumeRequest takes a suspension or a revocation back.
type ResumeRequest struct {
	Reason string `json:"reason,omitempty"` // needed for a revocation
}

// ResumeAnswer is what came of it.
type ResumeAnswer struct {
	Gateway string `json:"gateway"`
	Was     string `json:"was"` // its state before; "active": nothing was changed
}

// DecommissionRequest ends a gateway's life.
type DecommissionRequest struct {
	Reason string `json:"reason"`
	Now    bool   `json:"now,omitempty"` // cut off at once; what waits on the gateway is destroyed with it
}

// End is how a gateway's life ends.
type End struct {
	Hold
	Drain       bool       `json:"drain"`                           // it first hands over what waits
	Confirmed   *time.Time `json:"confirmed,omitempty"`             // when its signed word came that it has wiped itself
	Undelivered uint64     `json:"destroyed_undelivered,omitempty"` // batches of what devices sent that it destroyed before the hospital had them
	Refused     uint64     `json:"destroyed_refused,omitempty"`     // batches that it destroyed and the hospital had refused
}

// DecommissionAnswer is what came of it.
type DecommissionAnswer struct {
	Gateway string `json:"gateway"`
	End
	Already   bool `json:"already"`   // an earlier act is shown, and stands
	Journaled bool `json:"journaled"` // false: it stands, and its event waits for a journal that cannot be written
}
