// Package source is what feeds an agent: bedside devices that connect to the gateway and wait for an acknowledgement.
//
// The one promise: an acknowledgement is written only after Accept returned nil, that is after the message is sealed and on disk.
// A device that gets none sends again, so whatever goes wrong here costs a repetition and never a sample.
package source

import (
	"context"
	"errors"
	"time"

	"wardlink/telemetry"
)

// Source is what an agent needs of one: it is made with its configuration, then runs once.
type Source interface {
	// ID is the id from the configuration.
	ID() string
	// Run serves devices until ctx ends, finishes what is under way, and returns nil. An error ends the agent: what passes by itself, such
	// as a port that is taken, is waited out.
	Run(ctx context.Context) error
	// Stats are the counters now. It may be called at any time, also by several at once.
	Stats() Stats
}

// Delivery is one message of a source as it arrived.
type Delivery struct {
	Source  string            // id from the configuration
	Raw     []byte            // the message's bytes, its frame taken off
	Message telemetry.Message // Copy and Received are for Accept to fill; Bed is the source's to fill
	ID      string            // what the device calls the message, where other bytes under it would be a fault; "" where it need not be unique
}

// Accept takes a message over. It returns nil once the message is sealed and durable (fsync); only then is the device
// acknowledged. On any error nothing is acknowledged and the connection is closed. ctx ends a while after the source was told
// to stop, so that a message under way is finished.
type Accept func(ctx context.Context, d Delivery) error

// ErrFull is what Accept wraps when there is no room for the message: the device gets no acknowledgement, and its connection is
// held back for a while before it is closed, so that devices that resend at once do not spin.
var ErrFull = errors.New("buffer is full")

// ErrReused is what Accept returns for a message whose Delivery.ID belongs to another one: nothing was stored, and the device is told.
var ErrReused = errors.New("id belongs to another message")

// What a device reads in MSA-3 when its message is refused (AR or CR). Nothing else is.
const (
	RefusedLong   = "message is too long"
	RefusedFrame  = "message is not framed by MLLP"
	RefusedHeader = "message has no usable MSH segment"
)

// Stats are a source's counters since its start.
type Stats struct {
	Connections   int       `json:"connections"`    // open now
	Received      uint64    `json:"received"`       // whole messages read
	Acknowledged  uint64    `json:"acknowledged"`   // messages whose acknowledgement was written (counted just after), or that wanted none
	NotUnderstood uint64    `json:"not_understood"` // messages that travel on with their bytes as they came, since not all of them was understood
	Refused       uint64    `json:"refused"`        // answered AR or CR: no frame, no MSH, or over-long; by a line socket, every answer "error"
	Failed        uint64    `json:"failed"`         // not acknowledged because Accept failed
	NotAllowed    uint64    `json:"not_allowed"`    // connections from addresses outside the allow list, or of users that are not listed
	OverLimit     uint64    `json:"over_limit"`     // connections beyond MaxConns
	LastReceived  time.Time `json:"last_received"`  // of the last whole message; zero before the first
	LastMinute    uint64    `json:"last_minute"`    // whole messages within the last minute

	Address   string `json:"address"`           // as configured
	Listening bool   `json:"listening"`         // devices can connect
	Trouble   string `json:"trouble,omitempty"` // why they cannot, and the mend

	LastNotUnderstood time.Time     `json:"last_not_understood"` // zero before the first, as all that follow
	LastAcknowledged  time.Time     `json:"last_acknowledged"`
	LastRefused       time.Time     `json:"last_refused"`
	LastFailed        time.Time     `json:"last_failed"`
	LastUnwelcome     time.Time     `json:"last_unwelcome"` // of NotAllowed and OverLimit
	Usual             time.Duration `json:"usual_ns"`       // usual time from one message to the next; 0 while too few have come

	Slowed          uint64    `json:"slowed,omitempty"` // messages after which the limits made a connection wait
	LastSlowed      time.Time `json:"last_slowed,omitzero"`
	BedConflicts    uint64    `json:"bed_conflicts,omitempty"` // messages of a device that claims another bed than its connection's
	LastBedConflict time.Time `json:"last_bed_conflict,omitzero"`
	BedConflict     string    `json:"bed_conflict,omitempty"` // what the last was about

	Shared bool `json:"shared,omitempty"` // some bindings have ids of their own, and are counted there

	Bed  string     `json:"bed,omitempty"`  // of a binding with an id of its own: what it is bound to
	Port string     `json:"port,omitempty"` // and the source on whose port its device sends
	Beds []BedStats `json:"beds,omitempty"` // what came of each binding, in the order of the configuration
	TLS  *TLSStats  `json:"tls,omitempty"`  // nil: without TLS

	ID    string  `json:"-"` // of those in Bound
	Bound []Stats `json:"-"` // bindings with an id of their own: each is a source for the hospital
	// How far the device's clock is ahead of the hospital's time, by the latest messages that say a time; nil while none has, or the
	// hospital's time is not known. It is for the agent to fill.
	Ahead *time.Duration `json:"device_ahead_ns,omitempty"`
}
