package enroll

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"time"

	"wardlink/internal/spiffe"
)

// timePurpose begins every message that the config key signs as time, so that no other document can pass for one.
const timePurpose = "wardlink/time/1\x00"

// The exchange: POST TimePath on the gateways' port with a request as the body. FORMAT.md has the bytes.
const (
	TimePath     = "/time"
	TimeType     = "application/cbor"
	MaxTimeBytes = 512 // of a request and of an answer; both have fewer
)

// TimeRequest is what a gateway asks the time with. It is meant for one answer and kept nowhere.
type TimeRequest struct {
	Nonce   [32]byte // random, never used again: it makes a recorded answer worthless
	Gateway string   // who asks; "" before the first enrolment
}

type timeRequest struct {
	Nonce   []byte `cbor:"1,keyasint"`
	Gateway string `cbor:"2,keyasint,omitempty"`
}

type timeBody struct {
	Nonce   []byte `cbor:"1,keyasint"`
	Time    int64  `cbor:"2,keyasint"`
	Gateway string `cbor:"3,keyasint,omitempty"`
}

type signedTime struct {
	Body      []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
}

// The years that a signed time can be of: earlier than this program is no present, later RFC 3339 cannot write.
var (
	firstTime = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	lastTime  = time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)
)

// NewTimeRequest draws a nonce. gateway may be "".
func NewTimeRequest(gateway string) TimeRequest {
	r := TimeRequest{Gateway: gateway}
	rand.Read(r.Nonce[:])
	return r
}

// Marshal is the request's body.
func (r TimeRequest) Marshal() ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	return configEnc.Marshal(timeRequest{Nonce: r.Nonce[:], Gateway: r.Gateway})
}

func (r TimeRequest) check() error {
	if r.Gateway == "" {
		return nil
	}
	if err := spiffe.ValidName(r.Gateway); err != nil {
		return fmt.Errorf("time request: gateway: %w", err)
	}
	return nil
}

// ParseTimeRequest reads a request's body.
func ParseTimeRequest(data []byte) (TimeRequest, error) {
	if len(data) > MaxTimeBytes {
		return TimeRequest{}, fmt.Errorf("time request: %d bytes; at most %d", len(data), MaxTimeBytes)
	}
	var in timeRequest
	if err := configDec.Unmarshal(data, &in); err != nil {
		return TimeRequest{}, fmt.Errorf("time request: %w", err)
	}
	r := TimeRequest{Gateway: in.Gateway}
	if len(in.Nonce) != len(r.Nonce) {
		return TimeRequest{}, fmt.Errorf("time request: a nonce of %d bytes; expected %d", len(in.Nonce), len(r.Nonce))
	}
	copy(r.Nonce[:], in.Nonce)
	return r, r.check()
}

// SignTime answers a request with now. Whoever calls it vouches that now is the time.
func SignTime(r TimeRequest, now time.Time, key ed25519.PrivateKey) ([]byte, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	if now.Before(firstTime) || now.After(lastTime) {
		return nil, fmt.Errorf("time: %s is not signed: it is no present", now.UTC().Format(time.RFC3339))
	}
	body, err := configEnc.Marshal(timeBody{Nonce: r.Nonce[:], Time: now.UnixMilli(), Gateway: r.Gateway})
	if err != nil {
		return nil, fmt.Errorf("time: %w", err)
	}
	return configEnc.Marshal(signedTime{Body: body, Signature: ed25519.Sign(key, append([]byte(timePurpose), body...))})
}

// VerifyTime is the one decision whether a document tells the time: signed by the config key as time, in answer to this very request. How
// long ago it was signed is for the caller to bound, by how long it waited for the answer.
func VerifyTime(doc []byte, key ed25519.PublicKey, r TimeRequest) (time.Time, error) {
	if len(doc) > MaxTimeBytes {
		return time.Time{}, fmt.Errorf("signed time: %d bytes; at most %d", len(doc), MaxTimeBytes)
	}
	var s signedTime
	if err := configDec.Unmarshal(doc, &s); err != nil {
		return time.Time{}, fmt.Errorf("signed time: %w", err)
	}
	if !ed25519.Verify(key, append([]byte(timePurpose), s.Body...), s.Signature) {
		return time.Time{}, errors.New("signed time: not signed by the kit's config key; make a new kit if the key was changed")
	}
	var body timeBody
	if err := configDec.Unmarshal(s.Body, &body); err != nil {
		return time.Time{}, fmt.Errorf("signed time: signed body: %w", err)
	}
	at := time.UnixMilli(body.Time).UTC()
	switch {
	case subtle.ConstantTimeCompare(body.Nonce, r.Nonce[:]) != 1:
		return time.Time{}, errors.New("signed time: it answers another request; it may be a recording")
	case body.Gateway != r.Gateway:
		return time.Time{}, fmt.Errorf("signed time: it is for gateway %.64q, this is %q", body.Gateway, r.Gateway)
	case at.Before(firstTime), at.After(lastTime):
		return time.Time{}, fmt.Errorf("signed time: %d ms is no present", body.Time)
	}
	return at, nil
}
