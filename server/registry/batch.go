package registry

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"wardlink/audit"
	"wardlink/enroll"
)

// BatchRow is one gateway of a batch approval. EK, Fingerprint or Serial say which waiting TPM it is; the first of these that is given
// decides, and the others must not contradict it.
type BatchRow struct {
	Gateway            // EKs are not used
	Serial      string // the box's serial number
	EK          string // SHA-256 of the endorsement key, 64 hex digits
	Fingerprint string // as the box shows it
}

// Batch is what an operator approves at once.
type Batch struct {
	Rows []BatchRow
	// TrustSerial are the networks from which what a box says of its serial number counts. A serial number proves nothing: whoever
	// knows one and reaches the gateways' port with any TPM can claim it. So a row is matched by it only if exactly one waiting TPM
	// claims it, that TPM's EK certificate chains to a maker that the server trusts, it was last seen from one of these networks, and
	// no gateway was approved by it before. None: no row is matched by serial number.
	TrustSerial []netip.Prefix
	// Last says that nobody will ask again: a row for which no TPM waits is a refusal, with its event.
	Last bool
}

// BatchResult is what became of one row.
type BatchResult struct {
	ID      string
	Outcome BatchOutcome
	By      string   // column that matched: "serial", "ek_sha256" or "fingerprint"; "" when nothing did
	EK      [32]byte // of the TPM that it is, or would be; zero when there is none
	Serial  string   // that this TPM claims
	Reason  string   // why it is absent or refused, and the mend
}

// BatchOutcome is the outcome for one row of a batch.
type BatchOutcome string

// The outcomes.
const (
	BatchApproved  BatchOutcome = "approved"
	BatchUnchanged BatchOutcome = "unchanged" // it was approved before, just like this
	BatchAbsent    BatchOutcome = "absent"    // no such TPM waits yet
	BatchRefused   BatchOutcome = "refused"
)

// batchChunk bounds the transaction of a batch.
const batchChunk = 100

// ApproveBatch admits waiting TPMs row by row; one that is refused does not stop the others, and the same batch again changes nothing
// that stands. Rows that were admitted or refused are events, in the same transaction.
func (r *Registry) ApproveBatch(ctx context.Context, who audit.Actor, peer string, b Batch) ([]BatchResult, error) {
	results := make([]BatchResult, 0, len(b.Rows))
	for rows := b.Rows; len(rows) > 0; {
		chunk := rows[:min(batchChunk, len(rows))]
		rows = rows[len(chunk):]
		done := len(results)
		err := r.change(ctx, func(tx *sql.Tx) (changed bool, err error) {
			results = results[:done]
			for i := range chunk {
				res, err := r.approveRow(tx, who, peer, &chunk[i], b)
				if err != nil {
					return false, err
				}
				changed = changed || res.Outcome == BatchApproved
				results = append(results, res)
			}
			return changed, nil
		})
		if err != nil {
			return results, fmt.Errorf("approve: %w", err)
		}
	}
	return results, nil
}

// approveRow decides one row within tx.
func (r *Registry) approveRow(tx *sql.Tx, who audit.Actor, peer string, row *BatchRow, b Batch) (BatchResult, error) {
	found, err := findRow(tx, row, b.TrustSerial)
	if err != nil {
		return BatchResult{}, err
	}
	res := BatchResult{ID: row.ID, By: found.by, EK: found.ek, Serial: found.serial, Outcome: BatchRefused, Reason: found.reason}
	g := row.Gateway
	g.EKs = [][32]byte{found.ek}
	if found.known != nil {
		g.EKs = found.known
	}
	switch {
	case found.reason != "":
	case found.absent:
		res.Outcome = BatchAbsent
		res.Reason = "no TPM waits under this " + found.by + " ('wardlink gateway list' shows those that do): is the gateway on, and does it reach the server?"
		if err := g.check(); err != nil {
			res.Outcome, res.Reason = BatchRefused, err.Error()
		}
	default:
		if err := g.check(); err != nil {
			res.Reason = err.Error()
			break
		}
		g.matched = map[string]string{"matched_by": found.by, "claimed_serial": found.serial}
		entered, err := r.enter(tx, who, peer, &g, audit.GatewayApproved)
		if err != nil {
			return BatchResult{}, err
		}
		res.Reason = entered.Reason
		switch entered.Outcome {
		case Conflict: // with its event
			return res, nil
		case Unchanged:
			res.Outcome = BatchUnchanged
		case Added:
			res.Outcome = BatchApproved
			if found.by == "serial" {
				_, err = tx.Exec("INSERT INTO gateway_serials (serial, gateway) VALUES ($1, $2)", found.serial, g.ID)
			}
		}
		return res, err
	}
	if res.Outcome == BatchAbsent && !b.Last {
		return res, nil
	}
	if found.owner != "" {
		if err := r.contend(tx, who, Contention{Claim: OneKey, Gateway: found.owner, Rival: printable(row.ID), Peer: peer}); err != nil {
			return res, err
		}
	}
	return res, r.outbox.Add(tx, audit.Event{
		Type: audit.GatewayApproved, Actor: who, Peer: peer, Target: printable(row.ID), Outcome: audit.Denied, Reason: string(res.Outcome) + ": " + printableReason(res.Reason),
		Detail: map[string]string{"matched_by": found.by, "fingerprint": printable(row.Fingerprint), "ek_sha256": printable(row.EK), "serial": printable(row.Serial)},
	})
}

// printableReason keeps a reason, part of which was typed by people, to one short line.
func printableReason(s string) string { return ascii(s, 200) }

// rowMatch is the TPM that a row names.
type rowMatch struct {
	by     string
	ek     [32]byte
	serial string     // that the TPM claims
	known  [][32]byte // the EKs of the row's own gateway, when the TPM is that one's already
	absent bool
	owner  string // the gateway whose the TPM is, when it is not the row's
	reason string // why the row cannot stand
}

// findRow looks for the TPM that a row names, among those that wait and in the registry. Of what is given the strongest decides, and the
// rest must agree with it.
func findRow(tx *sql.Tx, row *BatchRow, trust []netip.Prefix) (m rowMatch, err error) {
	prefix, short := parseFingerprint(row.Fingerprint)
	if row.Fingerprint != "" && !short {
		return rowMatch{by: "fingerprint", reason: fmt.Sprintf("fingerprint %.40q: expected one such as ABCD-EFGH-IJKL-MNOP", row.Fingerprint)}, nil
	}
	switch {
	case row.EK != "":
		hash, err := hex.DecodeString(row.EK)
		if err != nil || len(hash) != 32 {
			return rowMatch{by: "ek_sha256", reason: fmt.Sprintf("ek_sha256 %.70q: expected 64 hex digits, as wardlink-agent identity prints them", row.EK)}, nil
		}
		if short && !bytes.HasPrefix(hash, prefix) {
			return rowMatch{by: "ek_sha256", reason: "fingerprint and ek_sha256 are of different TPMs"}, nil
		}
		m, err = findPrefix(tx, row.ID, "ek_sha256", hash)
		if err != nil {
			return m, err
		}
	case short:
		if m, err = findPrefix(tx, row.ID, "fingerprint", prefix); err != nil {
			return m, err
		}
	case row.Serial != "":
		return findSerial(tx, row, trust)
	default:
		return rowMatch{reason: "none of serial, ek_sha256 and fingerprint is given"}, nil
	}
	if row.Serial != "" && m.serial != "" && m.serial != row.Serial && m.reason == "" {
		m.reason = fmt.Sprintf("the TPM of this %s says that its box has serial number %s, not %.64q: which box is it?", m.by, m.serial, row.Serial)
	}
	return m, nil
}

// parseFingerprint gives the first ten bytes of an EK hash from its short form, hyphens and case as people type them.
func parseFingerprint(s string) ([]byte, bool) {
	compact := strings.ToUpper(strings.ReplaceAll(strings.TrimSpace(s), "-", ""))
	raw, err := base32.StdEncoding.DecodeString(compact)
	return raw, err == nil && len(raw) == 10
}

// findPrefix looks for the TPMs whose EK hash begins so. Both were proven by credential activation before the TPM began to wait.
func findPrefix(tx *sql.Tx, id, by string, prefix []byte) (rowMatch, error) {
	m := rowMatch{by: by}
	low := append(bytes.Clone(prefix), bytes.Repeat([]byte{0}, 32-len(prefix))...)
	high := append(bytes.Clone(prefix), bytes.Repeat([]byte{0xff}, 32-len(prefix))...)
	waiting, err := hashes(tx, "SELECT ek FROM waiting WHERE ek BETWEEN $1 AND $2", low, high)
	if err != nil {
		return m, err
	}
	var owner string
	var registered []byte
	err = tx.QueryRow("SELECT gateway, ek FROM gateway_eks WHERE ek BETWEEN $1 AND $2", low, high).Scan(&owner, &registered)
	switch {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return m, err
	case owner == id && len(waiting) == 0:
		m.ek = [32]byte(registered)
		m.known, err = hashes(tx, "SELECT ek FROM gateway_eks WHERE gateway = $1 ORDER BY ek", id)
		return m, err
	case owner != id && len(waiting) == 0:
		m.ek, m.owner = [32]byte(registered), owner
		m.reason = "this TPM is gateway " + owner + " already; one TPM is one gateway"
		return m, nil
	}
	switch len(waiting) {
	case 0:
		m.absent = true
		return m, nil
	case 1:
		m.ek = waiting[0]
		err = tx.QueryRow("SELECT COALESCE((SELECT serial FROM waiting_serials WHERE ek = $1), '')", m.ek[:]).Scan(&m.serial)
		return m, err
	}
	m.reason = fmt.Sprintf("%d TPMs wait under this fingerprint; give the whole ek_sha256", len(waiting))
	return m, nil
}

// findSerial looks for the one TPM that may be matched by a serial number; Batch.TrustSerial says when.
func findSerial(tx *sql.Tx, row *BatchRow, trust []netip.Prefix) (rowMatch, error) {
	m := rowMatch{by: "serial"}
	var owner string
	err := tx.QueryRow("SELECT gateway FROM gateway_serials WHERE serial = $1", row.Serial).Scan(&owner)
	if err == nil {
		if owner != row.ID {
			m.reason = "gateway " + owner + " was approved by this serial number already"
			return m, nil
		}
		m.known, err = hashes(tx, "SELECT ek FROM gateway_eks WHERE gateway = $1 ORDER BY ek", row.ID)
		if err == nil && len(m.known) > 0 {
			m.ek, m.serial = m.known[0], row.Serial
		}
		return m, err
	} else if !errors.Is(err, sql.ErrNoRows) {
		return m, err
	}
	claims, err := hashes(tx, "SELECT ek FROM waiting_serials WHERE serial = $1 ORDER BY ek LIMIT 100", row.Serial)
	if err != nil {
		return m, err
	}
	switch len(claims) {
	case 0:
		m.absent = true
		return m, nil
	case 1:
	default:
		m.reason = fmt.Sprintf("%d waiting TPMs claim this serial number, so at least one is not what it says: compare fingerprints with the box and give that", len(claims))
		return m, nil
	}
	var chain int
	var peer string
	if err := tx.QueryRow("SELECT chain, peer FROM waiting WHERE ek = $1", claims[0][:]).Scan(&chain, &peer); err != nil {
		return m, err
	}
	m.ek, m.serial = claims[0], row.Serial
	short := enroll.Fingerprint(m.ek)
	switch from, err := netip.ParseAddrPort(peer); {
	case len(trust) == 0:
		m.reason = "a serial number is only what a box says of itself: compare " + short + " with what the box shows and give that as its fingerprint, or name the network on which only your gateways are with --trust-serial"
	case err != nil || !within(trust, from.Addr()):
		m.reason = "the TPM that claims it, " + short + ", was seen from " + peer + ", which is outside --trust-serial: compare fingerprints with the box and give that"
	case chain != 1:
		m.reason = "the EK certificate of the TPM that claims it, " + short + ", does not chain to a maker that the server trusts: compare fingerprints with the box and give that"
	}
	return m, nil
}

func within(networks []netip.Prefix, at netip.Addr) bool {
	for _, n := range networks {
		if n.Contains(at.Unmap()) {
			return true
		}
	}
	return false
}
