// Package audit defines what the product's transparency log holds - events, windows, rows, checkpoints, proof bundles - and the
// pure verifier of all of them. It reads no network and decides nothing but "does this prove what it says".
package audit

import (
	"encoding/hex"
	"fmt"
)

// EventID names one event for ever: 4 bytes node, 4 bytes start (Unix seconds of the process's start), 8 bytes counter.
type EventID [16]byte

// String is the id in lower-case hex.
func (id EventID) String() string { return hex.EncodeToString(id[:]) }

// ParseEventID reads the 32 hex digits that String prints.
func ParseEventID(s string) (EventID, error) {
	var id EventID
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("event id %q: expected 32 hex digits", s)
	}
	copy(id[:], b)
	return id, nil
}

// Type names a kind of act. The texts are part of the log's format.
type Type string

// The acts. Every one is journaled before it is acknowledged or answered.
const (
	ServerStarted   Type = "server.started"
	ServerStopped   Type = "server.stopped"
	SessionOpened   Type = "session.opened"   // a gateway proved its identity and was admitted
	SessionClosed   Type = "session.closed"   // Reason says why: disconnect, lost, silent, slow, expired, takeover, refused, revoked, suspended, decommissioned, replaced, outside its validity, blind, draining, error
	SessionGrace    Type = "session.grace"    // the session is under a certificate that has ended, while the CA cannot issue; Detail holds its end and the grace's
	SealingBrought  Type = "sealing.brought"  // a sealing record was published
	Refused         Type = "refused"          // a proven identity was refused one act; Reason says why
	RefusedPeers    Type = "refused.peers"    // refusals before a proven identity, aggregated per peer prefix, reason and minute
	GatewayImported Type = "gateway.imported" // an operator entered a gateway
	GatewayApproved Type = "gateway.approved" // an operator admitted a waiting gateway
	GatewayRevoked  Type = "gateway.revoked"  // an operator cut a gateway off; Detail holds the serials of its certificates that were valid
	GatewayWaiting  Type = "gateway.waiting"  // an unknown TPM proved its EK and waits
	AKCertified     Type = "ak.certified"     // the attestation CA certified an attestation key
	ClockDoubted    Type = "clock.doubted"    // the server's clock moved so far that no time is signed for gateways; Detail holds both
	ClockConfirmed  Type = "clock.confirmed"  // an operator says that the server's clock is right
	// A gateway's wall clock was set while it ran, as its reports show; Detail holds by how much, and what it shows.
	GatewayClockStep Type = "gateway.clock_step"
	ClockToken       Type = "clock.token" // an operator had a token made that sets a gateway's floor of the time back; Detail holds challenge and time
	CertIssued       Type = "certificate.issued"
	CAMade           Type = "ca.made"    // the root signed an issuing CA; Detail holds its serial, key hash and dates
	CARotated        Type = "ca.rotated" // from here on another issuing CA issues; Detail holds its serial and the former one's
	ConfigIssued     Type = "config.issued"
	ConfigPrepared   Type = "config.prepared"  // a gateway stored a configuration beside the one in force; Detail holds version and site
	ConfigApplied    Type = "config.applied"   // it uses it, on trial
	ConfigConfirmed  Type = "config.confirmed" // the hospital acknowledged a report that was sent under it: in force
	ConfigReverted   Type = "config.reverted"  // it was taken back and is not tried again; Reason says why
	KitIssued        Type = "kit.issued"
	AccessIssued     Type = "access.issued" // a service account's certificate
	RecordsRead      Type = "records.read"  // FHIR: Detail holds resource, query shape, pseudonym and count
	AuditRead        Type = "audit.read"
	RegistryRead     Type = "registry.read"
	TraceRead        Type = "trace.read"       // an operator asked where data stops; Target is the gateway, or the source
	AccountRead      Type = "account.read"     // an operator asked for the account of batch numbers; Target is the gateway, or "gateways"
	BatchesLost      Type = "batches.lost"     // a gateway's report calls batches lost, evicted or damaged; Count says how many more, Detail which
	BatchesFound     Type = "batches.found"    // some that had been called lost came, or are held, after all; Count says how many
	BatchDead        Type = "batch.dead"       // a batch failed to open three times
	RecordsDisposed  Type = "records.disposed" // what was kept long enough is deleted; Target is its class, Detail holds range and cutoff
	// The server's clock moved too far to be believed, so nothing is disposed of; and the end of that.
	RetentionSuspended Type = "retention.suspended"
	RetentionResumed   Type = "retention.resumed"
	BatchReopened      Type = "batch.reopened"   // dead batches are tried again; Count says how many, Detail which
	BatchesRead        Type = "batches.read"     // the list of dead batches was read; no contents are in it
	BatchConflict      Type = "batch.conflict"   // two frames under one batch number; Detail holds both hashes
	RecordsGap         Type = "records.gap"      // a restored database lacks journal entries that the journal no longer has; Detail holds the first and last
	EpochConflict      Type = "epoch.conflict"   // one epoch under two gateways
	EntryUnreadable    Type = "entry.unreadable" // the log's writer could not read a journal entry; Detail holds its kind, position and head's SHA-256
)

// DatabaseUpgraded: a newer program changed the database's schema; Detail holds both, and the name of the copy made before.
const DatabaseUpgraded Type = "database.upgraded"

// What becomes of a gateway between its approval and its end.
const (
	GatewayMoved    Type = "gateway.moved"    // an operator said in which ward a gateway stands, and from when
	GatewayReplaced Type = "gateway.replaced" // an operator gave a gateway another board; Detail holds the old and the new endorsement keys
	// An operator cut a gateway off for a time; and the end of that, or of a revocation: Detail says what it was.
	GatewaySuspended Type = "gateway.suspended"
	GatewayResumed   Type = "gateway.resumed"
	// An operator ended a gateway's life; Detail holds the signed order. And its signed word that it wiped itself, with all that proves it.
	GatewayDecommissioned Type = "gateway.decommissioned"
	GatewayWiped          Type = "gateway.wiped"
	// A gateway booted something that its policy does not know: what it publishes is marked. And an operator's word that this is over.
	GatewayQuarantined Type = "gateway.quarantined"
	GatewayReadmitted  Type = "gateway.readmitted"
	GatewayProfiled    Type = "gateway.profiled"  // an operator gave a gateway another profile; Detail holds what it had
	GatewayWindowed    Type = "gateway.windowed"  // an operator said from when until when a gateway may connect
	ProfileSet         Type = "profile.set"       // an operator made or changed a profile; Detail holds it
	CodeMade           Type = "code.made"         // an operator made a one-time code for a gateway's first attestation; Detail holds its end
	CodeUsed           Type = "code.used"         // it was given, and counts no more; Detail holds who made it
	IdentityConflict   Type = "identity.conflict" // two cannot both be who they say, and one was refused; Target is the gateway, Detail holds claim and rival
	TPMCleared         Type = "tpm.cleared"       // a gateway's TPM shows a new attestation key under the same endorsement key
)

// How gateways may boot, as operators say.
const (
	BootPolicySet Type = "boot.policy"    // of a gateway, or of all; Detail holds it
	BootAllowed   Type = "boot.allowed"   // a release; Detail holds its PCR values, and the gateway that they were taken of
	BootWithdrawn Type = "boot.withdrawn" // a release is allowed no more
	BootLocked    Type = "boot.locked"    // what was learned of a gateway is what it is held to from here on
	BootRelearned Type = "boot.relearned" // what was learned of a gateway is forgotten
)

// GatewaySalvaged: an operator brought batches of a dead gateway's card. Rows and sealing records of it have this event's id as their
// session and the operator's certificate and address as theirs.
const GatewaySalvaged Type = "gateway.salvaged"

// The verdicts of a Row.
const (
	Accepted       = "accepted"               // the gateway published it
	Salvaged       = "salvaged"               // an operator brought it
	SalvagedFormer = "salvaged, former board" // sealed by a board that was replaced since
	// The same of a gateway in quarantine: what it says of patients is never final.
	AcceptedQuarantined = "accepted, quarantined"
	SalvagedQuarantined = "salvaged, quarantined"
)

// Ingest nodes: an operator made one a part of this server, or ended that; Detail of the first holds its key's hash and its database login.
const (
	NodeAdded   Type = "node.added"
	NodeRemoved Type = "node.removed"
)

// What becomes of service accounts and operators; Target is access/NAME or operator/NAME.
const (
	IdentityCreated   Type = "identity.created"   // an operator made one; Detail holds owner and scope or role
	IdentityChanged   Type = "identity.changed"   // an operator gave it another owner, role or scope; Detail holds what is and what was
	IdentitySuspended Type = "identity.suspended" // an operator cut it off for a time
	IdentityResumed   Type = "identity.resumed"   // and let it go on
	IdentityRevoked   Type = "identity.revoked"   // an operator cut it off for ever
	IdentityRotated   Type = "identity.rotated"   // an operator had its certificates end early; Detail holds when
	OperatorRenewed   Type = "operator.renewed"   // an operator's certificate was renewed by its holder; of a service account it is access.issued
	IdentitiesRead    Type = "identities.read"    // the list of identities was read, or one of them
)

// What becomes of alerts.
const (
	AlertRaised      Type = "alert.raised"        // an alert opened, or its severity rose; Target is type/subject, Detail holds id and severity
	AlertResolved    Type = "alert.resolved"      // its condition ended; Count says how often it was raised meanwhile
	AlertAcked       Type = "alert.acknowledged"  // an operator took it on; Reason is the note
	AlertSilenced    Type = "alert.silenced"      // an operator silenced alerts; Target holds the patterns, Detail the end
	AlertUnsilenced  Type = "alert.unsilenced"    // an operator ended a silence early
	AlertDelivered   Type = "alert.delivered"     // messages that a target took, per target and minute
	AlertUndelivered Type = "alert.undeliverable" // messages that a target will not get, per target, reason and minute
	AlertTested      Type = "alert.tested"        // an operator had a test message sent; Reason says what the target answered
)

// Bad days, and what is done for them.
const (
	BackupMade     Type = "backup.made"        // an operator made a backup; Detail holds its SHA-256, size and checkpoint
	LogSucceeded   Type = "log.succeeded"      // a restore began this log; Target is the former one, Detail holds its last known checkpoint and key
	ResendAsked    Type = "resend.asked"       // an operator has gateways asked for what the database lacks; Detail holds the generation
	RecoveryProven Type = "recovery.confirmed" // the recovery file opened with a passphrase that a person gave
)

// Outcome of an act.
type Outcome string

// The outcomes.
const (
	Success Outcome = "success"
	Denied  Outcome = "denied"
	Failed  Outcome = "failed"
)

// Actor is who did it: a non-human or human identity proven by a certificate, or the server itself.
type Actor struct {
	ID     string `cbor:"1,keyasint,omitempty" json:"id"`               // SPIFFE id, or "server", or "peer" when unproven
	Serial string `cbor:"2,keyasint,omitempty" json:"serial,omitempty"` // certificate serial, lower-case hex
}

// Event is one act, as journaled and as the leaf of the log. It never holds PHI: patients appear as pseudonyms.
type Event struct {
	ID      EventID           `cbor:"1,keyasint"`
	Type    Type              `cbor:"2,keyasint"`
	Time    int64             `cbor:"3,keyasint"` // Unix milliseconds, server's clock
	Actor   Actor             `cbor:"4,keyasint"`
	Peer    string            `cbor:"5,keyasint,omitempty"` // ip:port, or a prefix for aggregates
	Session EventID           `cbor:"6,keyasint"`           // id of the SessionOpened event, zero outside a session
	Target  string            `cbor:"7,keyasint,omitempty"` // what was acted on: a gateway id, a topic, a resource type
	Outcome Outcome           `cbor:"8,keyasint"`
	Reason  string            `cbor:"9,keyasint,omitempty"`
	Count   uint64            `cbor:"10,keyasint,omitempty"` // how many acts or results this event stands for
	Detail  map[string]string `cbor:"11,keyasint,omitempty"` // bounded: at most 32 keys, values at most 1 KB
	Extra   Extra             `cbor:"-"`                     // what a newer program added
}

// Row is one accepted publish within a window: the access detail that a stranger can later hold us to.
type Row struct {
	_        struct{} `cbor:",toarray"`
	ID       EventID
	Session  EventID
	Gateway  string
	Epoch    [16]byte
	Lane     uint8
	Number   uint64
	Frame    [32]byte // SHA-256 of the whole frame as published
	Received int64    // Unix milliseconds, server's clock
	Serial   string   // certificate serial, lower-case hex
	Peer     string   // ip:port
	Verdict  string   // one of the verdicts
	Extra    Extra    `cbor:"-"` // what a newer program added
}

// Types are all types of events that this release knows, in the order in which they are declared above.
func Types() []Type {
	return []Type{
		ServerStarted, ServerStopped, SessionOpened, SessionClosed, SessionGrace, SealingBrought, Refused, RefusedPeers, GatewayImported,
		GatewayApproved, GatewayRevoked, GatewayWaiting, AKCertified, ClockDoubted, ClockConfirmed, GatewayClockStep, ClockToken, CertIssued,
		CAMade, CARotated, ConfigIssued, ConfigPrepared, ConfigApplied, ConfigConfirmed, ConfigReverted, KitIssued, AccessIssued, RecordsRead,
		AuditRead, RegistryRead, TraceRead, AccountRead, BatchesLost, BatchesFound, BatchDead, RecordsDisposed, RetentionSuspended,
		RetentionResumed, BatchReopened, BatchesRead, BatchConflict, RecordsGap, EpochConflict, EntryUnreadable, DatabaseUpgraded, GatewayMoved,
		GatewayReplaced, GatewaySuspended, GatewayResumed, GatewayDecommissioned, GatewayWiped, GatewayQuarantined, GatewayReadmitted,
		GatewayProfiled, GatewayWindowed, ProfileSet, CodeMade, CodeUsed, IdentityConflict, TPMCleared, BootPolicySet, BootAllowed, BootWithdrawn,
		BootLocked, BootRelearned, GatewaySalvaged, NodeAdded, NodeRemoved, IdentityCreated, IdentityChanged, IdentitySuspended, IdentityResumed,
		IdentityRevoked, IdentityRotated, OperatorRenewed, IdentitiesRead, AlertRaised, AlertResolved, AlertAcked, AlertSilenced, AlertUnsilenced,
		AlertDelivered, AlertUndelivered, AlertTested, BackupMade, LogSucceeded, ResendAsked, RecoveryProven,
	}
}
