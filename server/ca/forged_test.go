package ca

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"sync/atomic"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/acme"

	"wardlink/audit"
)

// statement is what a board answers a challenge with, before it is signed.
type statement struct {
	attest  tpm2.TPMSAttest
	public  tpm2.TPMTPublic
	name    *tpm2.TPM2BName // nil: of public
	chain   [][]byte
	version string
	spoil   bool // the signature
}

func (b *softBoard) forged(t *testing.T, keyAuthorization string, chain [][]byte, change func(*statement)) []byte {
	t.Helper()
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](b.PubArea)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte(keyAuthorization))
	s := &statement{attest: tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify, ExtraData: tpm2.TPM2BData{Buffer: digest[:]}},
		public: *public, chain: chain, version: "2.0"}
	change(s)
	if s.name == nil {
		if s.name, err = tpm2.ObjectName(&s.public); err != nil {
			t.Fatal(err)
		}
	}
	if s.attest.Type == tpm2.TPMSTAttestCertify {
		s.attest.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: *s.name})
	}
	info := tpm2.Marshal(s.attest)
	sig := b.Sign(info)
	if s.spoil {
		sig[len(sig)-1] ^= 1
	}
	object, err := cbor.Marshal(map[string]any{"fmt": "tpm", "attStmt": map[string]any{"ver": s.version, "alg": rs256, "x5c": s.chain,
		"sig": sig, "certInfo": info, "pubArea": tpm2.Marshal(s.public)}})
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(map[string]string{"attObj": base64.RawURLEncoding.EncodeToString(object)})
	if err != nil {
		t.Fatal(err)
	}
	return payload
}

// TestForgedStatements: statements whose form is right, signed by an AK of ours, each with one lie. None is answered with a fault of ours, gets a
// certificate, or goes uncounted.
func TestForgedStatements(t *testing.T) {
	var refused atomic.Int64
	h := hospitalOf(t, func(c *Config) {
		c.PerSource = 1 << 20
		c.Refused = func(string, string) { refused.Add(1) }
	})
	board, other := newSoftBoard(t, h.server.URL, h.server.Client()), newSoftBoard(t, h.server.URL, h.server.Client())
	h.registry.active[board.Hash()], h.registry.active[other.Hash()] = "gw-1", "gw-2"
	chain, err := board.Attest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	others, err := other.Attest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	client, err := board.newClient()
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	if _, err := client.Register(ctx, &acme.Account{}, acme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	attribute := func(change func(*tpm2.TPMAObject)) func(*statement) {
		return func(s *statement) { change(&s.public.ObjectAttributes) }
	}
	counted := func() int64 { return refused.Load() + int64(h.count(audit.Refused)) }
	for what, change := range map[string]func(*statement){
		"":                     func(*statement) {},
		"of another challenge": func(s *statement) { s.attest.ExtraData = tpm2.TPM2BData{Buffer: make([]byte, 32)} },
		"of no challenge":      func(s *statement) { s.attest.ExtraData = tpm2.TPM2BData{} },
		"not made by a TPM":    func(s *statement) { s.attest.Magic = 0x41414141 },
		"of another kind": func(s *statement) {
			s.attest.Type, s.attest.Attested = tpm2.TPMSTAttestQuote, tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{})
		},
		"about another key":                func(s *statement) { s.name = &tpm2.TPM2BName{Buffer: make([]byte, 34)} },
		"with a broken signature":          func(s *statement) { s.spoil = true },
		"by another TPM's AK":              func(s *statement) { s.chain = others },
		"with a certificate of our own CA": func(s *statement) { s.chain = [][]byte{h.ca.cfg.Attestation.Raw} },
		"of another version":               func(s *statement) { s.version = "1.2" },
		"about a key that may leave":       attribute(func(a *tpm2.TPMAObject) { a.FixedTPM = false }),
		"about a key of another parent":    attribute(func(a *tpm2.TPMAObject) { a.FixedParent = false }),
		"about an imported key":            attribute(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false }),
		"about a key that attests":         attribute(func(a *tpm2.TPMAObject) { a.Restricted = true }),
		"about a key that does not sign":   attribute(func(a *tpm2.TPMAObject) { a.SignEncrypt = false }),
	} {
		t.Run(what, func(t *testing.T) {
			board.answers(t, client, counted, what == "", func(keyAuthorization string) []byte { return board.forged(t, keyAuthorization, chain, change) })
		})
	}
}
