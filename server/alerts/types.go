package alerts

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Severity orders alerts. A target takes those from its minimum on.
type Severity int

// The severities.
const (
	Notice   Severity = 1
	Warning  Severity = 2 // look today
	Critical Severity = 3 // data is at risk, or already late: look now
)

var severityNames = map[Severity]string{Notice: "notice", Warning: "warning", Critical: "critical"}

// String is the severity's name.
func (s Severity) String() string { return severityNames[s] }

// ParseSeverity reads notice, warning or critical.
func ParseSeverity(name string) (Severity, error) {
	for s, n := range severityNames {
		if n == name {
			return s, nil
		}
	}
	return 0, fmt.Errorf("severity %.40q; expected notice, warning or critical", name)
}

// Type names a kind of alert. The list is closed: a reader of the log, a receiver's rule and an operator's silence can rely on it.
type Type string

// The types.
const (
	GatewaySilent      Type = "gateway-silent"
	GatewayQuarantined Type = "gateway-quarantined"
	IdentityConflict   Type = "identity-conflict"
	GapOpen            Type = "gap-open"
	BatchDead          Type = "batch-dead"
	BatchParked        Type = "batch-parked"
	BatchesLost        Type = "batches-lost"
	CertificateLate    Type = "certificate-late"
	CertificateEnds    Type = "certificate-ends"
	CAUnwell           Type = "ca-unwell"
	GraceUsed          Type = "grace-used"
	ConfigReverted     Type = "config-reverted"
	ConfigLate         Type = "config-late"
	RefusalsMany       Type = "refusals-many"
	DiskLow            Type = "disk-low"
	BackupOld          Type = "backup-old"
	RecoveryUnsure     Type = "recovery-unsure"
	JournalFails       Type = "journal-fails"
	DatabaseFails      Type = "database-fails"
	LogLags            Type = "log-lags"
	RecordsLag         Type = "records-lag"
	ClockJumped        Type = "clock-jumped"
	NodeLogin          Type = "node-login"
	TargetFails        Type = "target-fails"
	WatchBlind         Type = "watch-blind"
)

// Kind is what is known about a type before it is ever raised.
type Kind struct {
	Type     Type
	Severity Severity      // where it starts; a sender may raise it higher
	Repeat   time.Duration // until targets are told again of one that is open and not acknowledged
	Subject  string        // what the subject is
	Meaning  string        // one sentence
	Mend     string        // one sentence
}

var kinds = []Kind{
	{GatewaySilent, Warning, 4 * time.Hour, "gateway",
		"A gateway that was connected has had no session for longer than is usual.",
		"Look at its power, network and 'wardlink-agent doctor'; what its monitors send meanwhile is kept on the box."},
	{GatewayQuarantined, Critical, 4 * time.Hour, "gateway",
		"A gateway booted something that its policy does not know: what it publishes is kept and marked, and never final in FHIR.",
		"The detail names the PCR and the entry of the event log; 'wardlink boot show ID' shows all; after a look at the box, 'wardlink gateway readmit ID --reason TEXT'."},
	{IdentityConflict, Critical, 12 * time.Hour, "gateway",
		"Two cannot both be who they say: one endorsement key or TPM for two gateways, a gateway's disk with another TPM, or two agents of one gateway. It was refused, and is shown for a day.",
		"The detail says what happened and what mends it; 'wardlink audit list --type identity.conflict' and '--type refused' have each."},
	{GapOpen, Critical, 4 * time.Hour, "gateway",
		"Batch numbers of a gateway are missing and its own reports do not account for them.",
		"'wardlink trace --gateway ID' shows where they stopped; do not wipe the gateway, its buffer may hold them."},
	{BatchDead, Critical, 24 * time.Hour, "gateway",
		"Batches of a gateway could not be opened three times; they are kept.",
		"'wardlink records dead' says why; mend that and try again with 'wardlink records reopen'."},
	{BatchParked, Critical, 24 * time.Hour, "gateway",
		"The server refused batches of a gateway, which keeps them and offers them again at each start and once a day.",
		"'wardlink audit list --type refused --gateway ID' says why; do not wipe the gateway, which holds them."},
	{BatchesLost, Critical, 24 * time.Hour, "gateway",
		"A gateway lost batches that the hospital never had, within the last day: evicted since its buffer was full, or damaged on its disk.",
		"'wardlink account ID' and 'wardlink audit list --type batches.lost' say how many and which; shorten the outage or raise 'buffer.cap', or replace the disk."},
	{CertificateLate, Warning, 12 * time.Hour, "gateway",
		"A gateway should have renewed its certificate and has not.",
		"Look at 'wardlink-agent status' on the gateway; when the certificate ends it cannot connect, and it enrols again by itself once it can."},
	{CertificateEnds, Warning, 7 * 24 * time.Hour, "certificate",
		"A certificate that somebody must renew is past half of its life; critical from three quarters on.",
		"The alert's detail names the command; 'wardlink-server certificates' lists all of them."},
	{CAUnwell, Critical, time.Hour, "server",
		"The CA cannot issue certificates: gateways cannot renew theirs, and none can be added.",
		"The alert's detail names what fails; gateways go on with the certificates that they have, and up to 'expired_grace' (72h) beyond their ends."},
	{GraceUsed, Warning, 4 * time.Hour, "gateway",
		"A gateway is connected with a certificate that has ended, since the CA cannot issue another one.",
		"Mend the CA (alert ca-unwell) before the grace is over; the gateway then renews by itself."},
	{ConfigReverted, Warning, 24 * time.Hour, "gateway",
		"A gateway took a configuration back and goes on with the one before: it did not reach the hospital under it.",
		"'wardlink config show ID' says why; mend the addresses with 'wardlink config set', or try the same again with 'wardlink config retry'."},
	{ConfigLate, Warning, 12 * time.Hour, "gateway",
		"A gateway is connected and does not take the configuration that is wanted of it.",
		"Look at 'wardlink config show ID' and at 'wardlink-agent status' on the gateway: an agent that refuses a configuration logs why."},
	{RefusalsMany, Warning, time.Hour, "network or gateway",
		"One network or gateway was refused more often than the limit allows within a minute.",
		"'wardlink audit list --type refused.peers' and '--type refused' name the reasons: a wrong configuration, or somebody who tries doors."},
	{DiskLow, Warning, 4 * time.Hour, "place in the server's directory",
		"The server's disk is filling up; when it is full gateways get no acknowledgements and keep their data.",
		"Free space, enlarge the file system, or shorten retention; 'wardlink-server size' says what a year needs."},
	{BackupOld, Warning, 24 * time.Hour, "backup",
		"The last backup is older than it may be.",
		"'wardlink-server backup' touches the stamp file named by 'alerts.backup_stamp': look at the job that runs it."},
	{RecoveryUnsure, Warning, 7 * 24 * time.Hour, "server",
		"For a day nobody has proven that the recovery file opens: without it and its passphrase a lost server's data is lost, and so is every backup.",
		"Run 'wardlink-server init --dir DIR --confirm-recovery' with the passphrase from where it is kept."},
	{JournalFails, Critical, 30 * time.Minute, "server",
		"The journal cannot be written: nothing is acknowledged to gateways and nothing may be read.",
		"The server's log names the error; usually the disk is full or ill."},
	{DatabaseFails, Critical, 30 * time.Minute, "server",
		"The database cannot be written: batches stay in the journal and are not visible to the hospital.",
		"The server's log names the error; usually the disk is full or another program holds the file."},
	{LogLags, Warning, time.Hour, "server",
		"The transparency log is behind the journal.",
		"Look at the server's log and at the load of its disk."},
	{RecordsLag, Critical, time.Hour, "server",
		"Batches wait to be opened for longer than is usual: the hospital sees old data.",
		"Look at the server's log; a batch also waits while the key of its gateway is unknown."},
	{ClockJumped, Warning, 24 * time.Hour, "server, signed-time or retention",
		"The server's clock moved against the time that passed.",
		"Look at the server's time synchronisation; while the clock is in doubt no time is signed for gateways and nothing is disposed of: if it is right, 'wardlink clock confirm'."},
	{NodeLogin, Critical, 4 * time.Hour, "node",
		"The database login of an ingest node is shut out, or may do more than append to the journal.",
		"Look who has the node's password; remove the node and add it again under another one, and take back by REVOKE what somebody granted."},
	{TargetFails, Warning, 4 * time.Hour, "target",
		"A target of alerts takes no messages; they wait in the spool.",
		"'wardlink alerts test --target NAME' says what it answers."},
	{WatchBlind, Warning, 4 * time.Hour, "watcher",
		"Something that should be watched cannot be looked at.",
		"The server's log names the error."},
}

// Kinds are all types in a fixed order.
func Kinds() []Kind { return slices.Clone(kinds) }

// KindOf gives what is known about a type.
func KindOf(t Type) (Kind, bool) {
	for _, k := range kinds {
		if k.Type == t {
			return k, true
		}
	}
	return Kind{}, false
}

func typeNames() string {
	names := make([]string, len(kinds))
	for i, k := range kinds {
		names[i] = string(k.Type)
	}
	return strings.Join(names, ", ")
}
