// Package seal closes batches so that only the hospital's records service can read them, and lets everyone on the way check that
// they are whole.
//
// Parties: the gateway's agent seals (Period) and, once enrolled, signs its sealing records with its TPM device key (SignRecord).
// The hospital's records service holds the records key (PrivateKey), verifies the record against the keys it knows for that gateway
// (Signed.Verify) and opens (Opener). Buffer, uplink and ingest hold no key and see that a frame is whole (CheckFrame).
//
// What is bound to what: the period's key to the records key, the sealing id and the epoch (HPKE's encapsulation and info); each
// frame's plaintext to its exact header (AEAD); the sealing record to a device key (signature over a purpose and the record).
// ../WIRE.md gives the bytes.
package seal

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"wardlink/telemetry"
)

// Header is a frame's clear part. It is what those who carry a frame need, and all they learn.
type Header struct {
	Lane    telemetry.Lane
	Epoch   telemetry.Epoch // set by Seal
	Number  uint64          // within (epoch, lane), from 0, at most 2^63-1
	Sealing [16]byte        // sealing id, set by Seal
	Key     [8]byte         // records key id, set by Seal
	Wall    int64           // Unix milliseconds by the gateway's clock when it sealed: 0 to the end of the year 9999
	Mono    int64           // milliseconds since boot, not negative
	Count   uint32          // observations within, for accounts of what was lost unread; those who open it count themselves
}

// The frame: header, nonce, ciphertext, tag, SHA-256 of all before. Integers are big-endian.
const (
	magic = "WLF1" // the 1 is the version: any change of the frame changes the magic

	offLane    = 4
	offEpoch   = 5
	offNumber  = 21
	offSealing = 29
	offKey     = 45
	offWall    = 53
	offMono    = 61
	offCount   = 69
	offLength  = 73
	headerSize = 77

	sealOverhead = 12 + 16 // nonce before, tag after
	hashSize     = sha256.Size

	// MaxPlain is how many bytes one frame can seal.
	MaxPlain = telemetry.MaxFrame - headerSize - sealOverhead - hashSize
)

// maxWall is the last millisecond of the year 9999: nothing after it can be written as an RFC 3339 or FHIR time.
const maxWall = 253402300799999

// CheckFrame reads a frame's header after checking everything that can be checked without a key: magic, limits, exact length and
// the hash. It shows damage, not forgery: whoever changes a frame can make the hash anew, and is found out by Opener.Open.
func CheckFrame(frame []byte) (Header, error) {
	h, _, err := CheckAndHash(frame)
	return h, err
}

// CheckAndHash is CheckFrame and FrameHash in one pass over the frame: hashing is most of what both cost.
func CheckAndHash(frame []byte) (Header, [32]byte, error) {
	h, err := readFrame(frame)
	if err != nil {
		return Header{}, [32]byte{}, err
	}
	hash := sha256.New()
	hash.Write(frame[:len(frame)-hashSize])
	var sum [32]byte
	if string(hash.Sum(sum[:0])) != string(frame[len(frame)-hashSize:]) {
		return Header{}, [32]byte{}, errors.New("frame is damaged: its hash does not match")
	}
	hash.Write(sum[:])
	return h, [32]byte(hash.Sum(sum[:0])), nil
}

// readFrame checks all but the hash.
func readFrame(frame []byte) (Header, error) {
	var h Header
	if len(frame) < headerSize+sealOverhead+hashSize || len(frame) > telemetry.MaxFrame {
		return h, fmt.Errorf("frame of %d bytes; expected %d to %d", len(frame), headerSize+sealOverhead+hashSize, telemetry.MaxFrame)
	}
	if string(frame[:offLane]) != magic {
		return h, fmt.Errorf("frame begins with %x; expected %x (%s)", frame[:offLane], magic, magic)
	}
	if n := binary.BigEndian.Uint32(frame[offLength:]); uint64(n) != uint64(len(frame)-headerSize-hashSize) {
		return h, fmt.Errorf("frame of %d bytes says that its ciphertext has %d; expected %d", len(frame), n, len(frame)-headerSize-hashSize)
	}
	h = Header{
		Lane:    telemetry.Lane(frame[offLane]),
		Epoch:   telemetry.Epoch(frame[offEpoch:]),
		Number:  binary.BigEndian.Uint64(frame[offNumber:]),
		Sealing: [16]byte(frame[offSealing:]),
		Key:     [8]byte(frame[offKey:]),
		Wall:    int64(binary.BigEndian.Uint64(frame[offWall:])),
		Mono:    int64(binary.BigEndian.Uint64(frame[offMono:])),
		Count:   binary.BigEndian.Uint32(frame[offCount:]),
	}
	if err := h.check(); err != nil {
		return Header{}, fmt.Errorf("frame: %w", err)
	}
	return h, nil
}

// Mark is how every frame of this version begins.
func Mark() []byte { return []byte(magic) }

// Cut gives the whole frame that data begins with, whatever follows it: for those who look for frames in a damaged file.
func Cut(data []byte) (frame []byte, h Header, ok bool) {
	if len(data) < headerSize {
		return nil, h, false
	}
	n := uint64(binary.BigEndian.Uint32(data[offLength:])) + headerSize + hashSize
	if n > uint64(min(len(data), telemetry.MaxFrame)) {
		return nil, h, false
	}
	h, err := CheckFrame(data[:n])
	return data[:n], h, err == nil
}

// Peek reads which batch a frame claims to be when CheckFrame refuses it: in every version of the frame, lane, epoch and number stand
// where they stand in this one, so that a server can name the batch that it refuses. Nothing of it is checked.
func Peek(frame []byte) (id telemetry.BatchID, ok bool) {
	if len(frame) < offSealing || string(frame[:3]) != magic[:3] || frame[offLane] >= telemetry.LaneCount {
		return id, false
	}
	id = telemetry.BatchID{
		Epoch: telemetry.Epoch(frame[offEpoch:]), Lane: telemetry.Lane(frame[offLane]), Number: binary.BigEndian.Uint64(frame[offNumber:]),
	}
	return id, id.Number <= math.MaxInt64
}

// FrameHash is the SHA-256 of a whole frame, as audit rows and proofs hold it.
func FrameHash(frame []byte) [32]byte { return sha256.Sum256(frame) }

func (h *Header) check() error {
	switch {
	case h.Lane >= telemetry.LaneCount:
		return fmt.Errorf("lane %d; expected below %d", uint8(h.Lane), telemetry.LaneCount)
	case h.Number > math.MaxInt64:
		return fmt.Errorf("number %d is above 2^63-1", h.Number)
	case h.Wall < 0 || h.Wall > maxWall:
		return fmt.Errorf("wall clock %d ms; expected 0 to %d", h.Wall, int64(maxWall))
	case h.Mono < 0:
		return fmt.Errorf("monotonic clock %d ms; expected 0 or more", h.Mono)
	}
	return nil
}

// appendTo writes the header of a frame whose ciphertext, nonce and tag included, has length bytes.
func (h *Header) appendTo(frame []byte, length int) []byte {
	frame = append(frame, magic...)
	frame = append(frame, byte(h.Lane))
	frame = append(frame, h.Epoch[:]...)
	frame = binary.BigEndian.AppendUint64(frame, h.Number)
	frame = append(frame, h.Sealing[:]...)
	frame = append(frame, h.Key[:]...)
	frame = binary.BigEndian.AppendUint64(frame, uint64(h.Wall))
	frame = binary.BigEndian.AppendUint64(frame, uint64(h.Mono))
	frame = binary.BigEndian.AppendUint32(frame, h.Count)
	return binary.BigEndian.AppendUint32(frame, uint32(length))
}
