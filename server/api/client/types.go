// Package client speaks the operators' API. It links nothing of the server, so that the operator's tool stays small.
package client

import "time"

// Gateway is one entry of the registry.
type Gateway struct {
	ID      string   `json:"id"`
	Site    string   `json:"site"`
	Ward    string   `json:"ward"`
	Profile string   `json:"profile"`
	State   string   `json:"state"`
	EK      []string `json:"ek_sha256"` // hex

	// The validity, where it has one, and whether it is outside of it by the server's clock.
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	Outside   bool      `json:"outside_validity,omitempty"`

	Revoked *Revocation `json:"revoked,omitempty"` // set when State is "revoked"
	Hold    *Hold       `json:"hold,omitempty"`    // of a gateway that is suspended or decommissioned
	// Quarantine is why what it publishes is marked, also of one that is cut off meanwhile.
	Quarantine *Quarantine `json:"quarantine,omitempty"`
	Agent      string      `json:"agent,omitempty"`             // release of its agent, as it said last; empty: nothing was heard of it yet
	End        *End        `json:"end,omitempty"`               // of a gateway that is decommissioned, or drains before it is; a list has the latter alone
	Next       *Ward       `json:"next_ward,omitempty"`         // a move that is to come
	Wards      []Ward      `json:"wards,omitempty"`             // the history, when one gateway is shown
	Retired    []string    `json:"retired_ek_sha256,omitempty"` // of former boards, when one gateway is shown; hex
}

// Revocation says that a gateway was cut off.
type Revocation struct {
	Gateway string    `json:"gateway"`
	At      time.Time `json:"at"`
	By      string    `json:"by"` // the operator's SPIFFE id
	Reason  string    `json:"reason"`
	Serials []string  `json:"serials"` // of its certificates that were valid; hex
}

// RevokeRequest cuts a gateway off.
type RevokeRequest struct {
	Reason string `json:"reason"`
}

// RevokeAnswer is what came of it.
type RevokeAnswer struct {
	Revocation
	Already   bool `json:"already"`   // it was revoked before: that revocation is shown, and stands
	Journaled bool `json:"journaled"` // false: it stands, and its event waits for a journal that cannot be written
}

// Waiting is a TPM that proved itself and is nobody's gateway yet.
type Waiting struct {
	Fingerprint  string    `json:"fingerprint"`
	EK           string    `json:"ek_sha256"`
	Manufacturer string    `json:"manufacturer"`
	Model        string    `json:"model"`
	Chain        bool      `json:"ek_chain_verified"` // its EK certificate ends in a vendor root that the server trusts
	Peer         string    `json:"peer"`
	Serial       string    `json:"claimed_serial,omitempty"` // what the box says of itself; nothing proves it
	SerialOf     string    `json:"serial_of,omitempty"`      // the gateway that was approved by this serial number already
	FirstSeen    time.Time `json:"first_seen"`
	LastSeen     time.Time `json:"last_seen"`
}

// GatewayList is the registry, and who waits to be in it.
type GatewayList struct {
	Gateways []Gateway `json:"gateways"`
	Waiting  []Waiting `json:"waiting"`
}

// ImportResult is what became of one line of a manifest.
type ImportResult struct {
	ID     string `json:"id"`
	Result string `json:"result"` // "added", "unchanged" or "refused"; the state of one that is unchanged and cut off
	Reason string `json:"reason,omitempty"`
}

// Approval admits a waiting TPM as a gateway.
type Approval struct {
	Fingerprint string `json:"fingerprint"`
	ID          string `json:"id"`
	Site        string `json:"site"`
	Ward        string `json:"ward"`
	Profile     string `json:"profile"`
}

// ApprovalRow is one gateway of a batch. EK, Fingerprint or Serial say which waiting TPM it is; the first of these that is given decides,
// and the others must not contradict it.
type ApprovalRow struct {
	ID          string `json:"id"`
	Site        string `json:"site"`
	Ward        string `json:"ward"`
	Profile     string `json:"profile"`
	Serial      string `json:"serial,omitempty"`
	EK          string `json:"ek_sha256,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"`
}

// BatchApproval admits many waiting TPMs.
type BatchApproval struct {
	Rows        []ApprovalRow `json:"rows"`         // at most MaxApprovalRows
	TrustSerial []string      `json:"trust_serial"` // networks in CIDR form from which what a box says of its serial number counts
	Last        bool          `json:"last"`         // a row for which no TPM waits is refused and journaled; otherwise it is asked again
}

// MaxApprovalRows bounds one request.
const MaxApprovalRows = 1000

// ApprovalResult is what became of a row.
type ApprovalResult struct {
	ID          string `json:"id"`
	Result      string `json:"result"` // "approved", "unchanged", "absent" or "refused"
	By          string `json:"matched_by,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"` // of the TPM that it is, or would be
	EK          string `json:"ek_sha256,omitempty"`
	Serial      string `json:"claimed_serial,omitempty"`
	Reason      string `json:"reason,omitempty"`
}

// Status is the server's state in figures.
type Status struct {
	Version    string    `json:"version"`
	Started    time.Time `json:"started"`
	Ready      bool      `json:"ready"`
	NotReady   string    `json:"not_ready,omitempty"` // which part does not do its work, and why
	Sessions   int       `json:"sessions"`
	Gateways   int       `json:"gateways"`
	Waiting    int       `json:"waiting"`
	Clock      string    `json:"clock_doubt,omitempty"` // why no time is signed for gateways
	CA         string    `json:"ca_unwell,omitempty"`   // why the CA cannot issue certificates
	Grace      int       `json:"grace,omitempty"`       // sessions under a certificate that has ended, while the CA cannot issue
	JournalSeq uint64    `json:"journal_seq"`           // last committed entry
	RecordsSeq uint64    `json:"records_seq"`           // entries that records has passed
	LogSeq     uint64    `json:"log_seq"`               // entries that the transparency log has passed
	LogSize    uint64    `json:"log_size"`              // leaves
	Stored     uint64    `json:"batches_stored"`
	Pending    uint64    `json:"batches_pending"`
	Dead       uint64    `json:"batches_dead"`
	Storage    Storage   `json:"storage"`
	Disposal   string    `json:"disposal"` // "on", or "suspended": the server's clock moved too far to be believed
	// RecoveryUnproven says that nobody has proven that the recovery file opens.
	RecoveryUnproven bool `json:"recovery_unproven"`
}

// Clock is the server's clock, which gateways without one are told.
type Clock struct {
	Now     time.Time `json:"now"`
	Vouched bool      `json:"vouched"`         // the time is signed for gateways
	Doubt   string    `json:"doubt,omitempty"` // why it is not, and what to do
	Last    time.Time `json:"last_vouched"`    // the last moment at which it was
}

// ClockTokenRequest asks for a token that sets a gateway's floor of the time back.
type ClockTokenRequest struct {
	Challenge string `json:"challenge"` // what 'wardlink-agent clock' shows on the gateway
}

// ClockToken is one; it serves that gateway and that challenge, once.
type ClockToken struct {
	Gateway string    `json:"gateway"`
	Time    time.Time `json:"time"` // the floor is set back to this
	Token   string    `json:"token"`
}

// Storage are sizes in bytes.
type Storage struct {
	Database     int64 `json:"database"`
	DatabaseFree int64 `json:"database_free"` // part of it that is free for new rows
	Journal      int64 `json:"journal"`
	Disk         int64 `json:"disk"` // of the file system that the server's directory is on
	DiskFree     int64 `json:"disk_free"`
}

// Problem is the body of every error (RFC 9457).
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
}
