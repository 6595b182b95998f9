// Package journal is the server's durable first word: nothing is acknowledged or answered before it is in here. This file has
// what every implementation shares; segments.go keeps it in bbolt segment files on one machine.
package journal

import "wardlink/audit"

// Kind says what an entry's Head and Blob are. The values are part of the on-disk format.
type Kind uint8

// The kinds.
const (
	KindPublish Kind = 1 // Head: CBOR of audit.Row; Blob: the frame as published
	KindEvent   Kind = 2 // Head: CBOR of audit.Event; Blob: empty
	KindSealing Kind = 3 // Head: CBOR of audit.Event (SealingBrought); Blob: the signed sealing record as published
)

// Entry is one journaled act.
type Entry struct {
	Seq  uint64 // position in the journal, from 1, without holes except behind damaged files; set by Append
	ID   audit.EventID
	Kind Kind
	Head []byte
	Blob []byte
}
