// Package wipe holds the two documents that end a gateway's life: the hospital's order to wipe, signed by the config key, and the
// gateway's word that it has obeyed, signed by its device key before that goes too. It reads neither network nor disk nor clock.
//
// An order names the gateway and the endorsement keys of its board. A board that is not among them does not obey, so that an order for
// the former board of a gateway, recorded and sent again, harms none that came after it. For the board itself an order is final, so
// sending it again changes nothing. The gateway's word names the order by its hash.
package wipe

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"wardlink/internal/spiffe"
)

// Each signature begins with its purpose, so that no other document can pass for one of these.
const (
	orderPurpose = "wardlink/wipe/1\x00"
	donePurpose  = "wardlink/wiped/1\x00"
)

// Bounds. MaxDocument bounds both documents in bytes.
const (
	MaxDocument = 2048
	maxBoards   = 8
	maxReason   = 200
)

// Order tells one board of one gateway to wipe itself.
type Order struct {
	Gateway string   `cbor:"1,keyasint"`
	Boards  [][]byte `cbor:"2,keyasint"` // SHA-256 of each endorsement key of the board (PKIX DER)
	Issued  int64    `cbor:"3,keyasint"` // Unix milliseconds, server's clock
	Reason  string   `cbor:"4,keyasint"` // the operator's
	Drain   bool     `cbor:"5,keyasint"` // only once the hospital has everything that waits
}

// Done is a gateway's word that it has obeyed.
type Done struct {
	Gateway string `cbor:"1,keyasint"`
	Order   []byte `cbor:"2,keyasint"` // SHA-256 of the signed order
	At      int64  `cbor:"3,keyasint"` // Unix milliseconds, the best that the gateway knew
	Waiting uint64 `cbor:"4,keyasint"` // batches of what devices sent that were destroyed before the hospital had them; former agents counted their reports of themselves, too
	Parked  uint64 `cbor:"5,keyasint"` // batches among those destroyed that the hospital had refused
	SPKI    []byte `cbor:"6,keyasint"` // SHA-256 of the device key that signs (PKIX DER)
}

type signed struct {
	Body      []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
}

var (
	enc = must(cbor.CoreDetEncOptions().EncMode())
	dec = must(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxNestedLevels: 4, MaxArrayElements: 16, MaxMapPairs: 16,
		IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // the options are constant
	}
	return v
}

func (o *Order) check() error {
	if err := spiffe.ValidName(o.Gateway); err != nil {
		return err
	}
	if len(o.Boards) == 0 || len(o.Boards) > maxBoards {
		return fmt.Errorf("%d endorsement keys; expected 1 to %d", len(o.Boards), maxBoards)
	}
	for _, b := range o.Boards {
		if len(b) != sha256.Size {
			return fmt.Errorf("an endorsement key's hash of %d bytes", len(b))
		}
	}
	if len(o.Reason) > maxReason || !utf8.ValidString(o.Reason) || strings.ContainsFunc(o.Reason, unicode.IsControl) {
		return fmt.Errorf("reason: expected at most %d bytes of printable UTF-8", maxReason)
	}
	return nil
}

// Sign makes the document of an order.
func Sign(o Order, key ed25519.PrivateKey) ([]byte, error) {
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("wipe order: %w", err)
	}
	body, err := enc.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("wipe order: %w", err)
	}
	return enc.Marshal(signed{body, ed25519.Sign(key, append([]byte(orderPurpose), body...))})
}

// Verify is the one decision whether a document is an order for this board: signed by the config key, for the board with that endorsement
// key, and, where the board has been a gateway, for that one; gateway is "" where it has not.
func Verify(doc []byte, key ed25519.PublicKey, gateway string, board [32]byte) (Order, error) {
	o, err := Read(doc, key)
	if err != nil {
		return Order{}, err
	}
	if !slices.ContainsFunc(o.Boards, func(b []byte) bool { return [32]byte(b) == board }) {
		return Order{}, fmt.Errorf("wipe order: it is for another board of gateway %s", o.Gateway)
	}
	if gateway != "" && o.Gateway != gateway {
		return Order{}, fmt.Errorf("wipe order: it is for gateway %s, this is %s", o.Gateway, gateway)
	}
	return o, nil
}

// Read tells what an order says that the config key signed, whoever it is for: for one that was verified once and kept.
func Read(doc []byte, key ed25519.PublicKey) (Order, error) {
	body, signature, err := open(doc)
	if err != nil {
		return Order{}, fmt.Errorf("wipe order: %w", err)
	}
	if !ed25519.Verify(key, append([]byte(orderPurpose), body...), signature) {
		return Order{}, errors.New("wipe order: not signed by the kit's config key")
	}
	var o Order
	if err := dec.Unmarshal(body, &o); err != nil {
		return Order{}, fmt.Errorf("wipe order: signed body: %w", err)
	}
	if err := o.check(); err != nil {
		return Order{}, fmt.Errorf("wipe order: %w", err)
	}
	return o, nil
}

func open(doc []byte) (body, signature []byte, err error) {
	if len(doc) > MaxDocument {
		return nil, nil, fmt.Errorf("%d bytes; at most %d", len(doc), MaxDocument)
	}
	var s signed
	if err := dec.Unmarshal(doc, &s); err != nil {
		return nil, nil, err
	}
	return s.Body, s.Signature, nil
}

func digest(body []byte) []byte {
	h := sha256.Sum256(append([]byte(donePurpose), body...))
	return h[:]
}

// SignDone makes the document of a gateway's word. It sets d.SPKI.
func SignDone(d Done, key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("word of a wiped gateway: %w", err)
	}
	spki := sha256.Sum256(der)
	d.SPKI = spki[:]
	body, err := enc.Marshal(d)
	if err != nil {
		return nil, fmt.Errorf("word of a wiped gateway: %w", err)
	}
	signature, err := key.Sign(rand.Reader, digest(body), crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("word of a wiped gateway: %w", err)
	}
	return enc.Marshal(signed{body, signature})
}

// ParseDone reads a gateway's word, of which nothing is proven: to find the key that VerifyDone needs.
func ParseDone(doc []byte) (Done, error) {
	body, _, err := open(doc)
	if err != nil {
		return Done{}, fmt.Errorf("word of a wiped gateway: %w", err)
	}
	var d Done
	if err := dec.Unmarshal(body, &d); err != nil {
		return Done{}, fmt.Errorf("word of a wiped gateway: %w", err)
	}
	if err := spiffe.ValidName(d.Gateway); err != nil || len(d.Order) != sha256.Size || len(d.SPKI) != sha256.Size {
		return Done{}, errors.New("word of a wiped gateway: it names no gateway, order or key")
	}
	return d, nil
}

// VerifyDone verifies a gateway's word: about this order, and signed by the device key with that public key (PKIX DER).
func VerifyDone(doc, public []byte, order [32]byte) (Done, error) {
	d, err := ParseDone(doc)
	if err != nil {
		return Done{}, err
	}
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return Done{}, fmt.Errorf("word of a wiped gateway: its key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PublicKey)
	body, signature, err := open(doc)
	switch {
	case err != nil:
		return Done{}, fmt.Errorf("word of a wiped gateway: %w", err)
	case !ok || sha256.Sum256(public) != [32]byte(d.SPKI) || !ecdsa.VerifyASN1(key, digest(body), signature):
		return Done{}, errors.New("word of a wiped gateway: not signed by its device key")
	case [32]byte(d.Order) != order:
		return Done{}, errors.New("word of a wiped gateway: it is about another order")
	}
	return d, nil
}
