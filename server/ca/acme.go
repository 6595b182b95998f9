package ca

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-tpm/tpm2"
	"github.com/smallstep/certificates/acme"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/internal/spiffe"
	"wardlink/server/ca/acmedb"
)

// guarded is the ACME store of one request with our decisions around it: what may be ordered, whose attestation is accepted, and what must
// be on record before a certificate is handed out.
type guarded struct {
	*acmedb.Request
	ca *CA
}

// refusedBy is an ACME problem: 4xx, and never repeated by clients.
func refusedBy(kind acme.ProblemType, format string, args ...any) *acme.Error {
	return acme.NewDetailedError(kind, format, args...)
}

// crowded is the answer when a table is full, or when one address asks too often (RFC 8555, 6.6).
func crowded(format string, args ...any) *acme.Error {
	e := refusedBy(acme.ErrorRateLimitedType, format, args...)
	e.Status = http.StatusTooManyRequests
	return e
}

// begin is asked before something is stored for whoever asks.
func (g *guarded) begin(ctx context.Context) error {
	if !g.ca.sources.allow(peerOf(ctx)) {
		g.ca.cfg.Refused(peerOf(ctx), "enrolment: rate")
		return crowded("too many enrolments from your address; try again in a minute")
	}
	return nil
}

// full is how ErrFull is answered.
func full(err error) error {
	if errors.Is(err, acmedb.ErrFull) {
		return crowded("%v; try again in a minute", err)
	}
	return err
}

// CreateAccount bounds how many accounts one address makes.
func (g *guarded) CreateAccount(ctx context.Context, a *acme.Account) error {
	if err := g.begin(ctx); err != nil {
		return err
	}
	return full(g.Request.CreateAccount(ctx, a))
}

// GetAuthorization looks at the answer to a challenge before smallstep does, which asks for the authorization first: what it cannot decode it
// would call a fault of the server.
func (g *guarded) GetAuthorization(ctx context.Context, id string) (*acme.Authorization, error) {
	if ch := g.Answering(); ch != nil && ch.Status == acme.StatusPending {
		if err := decodable(ch.Payload); err != nil {
			g.ca.cfg.Refused(peerOf(ctx), "enrolment: malformed")
			return nil, refusedBy(acme.ErrorMalformedType, "%v", err)
		}
	}
	return g.Request.GetAuthorization(ctx, id)
}

// CreateOrder admits orders for one gateway name and nothing else. smallstep would answer a life out of bounds with a 500.
func (g *guarded) CreateOrder(ctx context.Context, o *acme.Order) error {
	if len(o.Identifiers) != 1 || o.Identifiers[0].Type != acme.PermanentIdentifier {
		return refusedBy(acme.ErrorRejectedIdentifierType, "expected exactly one identifier of type permanent-identifier")
	}
	if err := spiffe.ValidName(o.Identifiers[0].Value); err != nil {
		return refusedBy(acme.ErrorRejectedIdentifierType, "permanent-identifier: %v", err)
	}
	if life := o.NotAfter.Sub(o.NotBefore); life <= 0 || life > g.ca.cfg.CertLife+2*backdate {
		return refusedBy(acme.ErrorMalformedType, "validity: expected one of at most %v", g.ca.cfg.CertLife)
	}
	if err := g.begin(ctx); err != nil {
		return err
	}
	return full(g.Request.CreateOrder(ctx, o))
}

// UpdateChallenge sees each attestation after smallstep's verdict. A valid one becomes invalid unless it also passes ours.
func (g *guarded) UpdateChallenge(ctx context.Context, ch *acme.Challenge) error {
	if ch.Status == acme.StatusValid {
		proof, err := g.judge(ctx, ch)
		if err == nil {
			return g.Attest(ctx, ch, proof)
		}
		var refused *acme.Error
		if !errors.As(err, &refused) {
			return err
		}
		// The refusal is stored with the challenge, where the client looks for it; an error here would be answered and forgotten.
		ch.Status, ch.ValidatedAt, ch.Error = acme.StatusInvalid, "", refused
		g.ca.denied(ctx, refusalOf(err, clean(ch.Value)))
	} else { // smallstep's verdict; nothing is proven of who asked
		g.ca.cfg.Refused(peerOf(ctx), "enrolment: attestation")
	}
	return g.Request.UpdateChallenge(ctx, ch)
}

// judge checks an attestation that smallstep found valid: smallstep accepts SHA-1, any key type, and any name when the AK certificate
// has none, and knows no registry.
func (g *guarded) judge(ctx context.Context, ch *acme.Challenge) (proof acmedb.Proof, err error) {
	if ch.Type != acme.DEVICEATTEST01 {
		return proof, refusedBy(acme.ErrorUnauthorizedType, "only device-attest-01 is accepted")
	}
	a, err := parseAttestation(ch.Payload)
	if err != nil {
		return proof, refusedBy(acme.ErrorBadAttestationStatementType, "%v", err)
	}
	// Without exactly this name smallstep would take any; what cannot be read names nobody.
	if names, _ := enroll.PermanentIdentifiers(a.ak); !slices.Equal(names, []string{ch.Value}) {
		if len(names) == 1 {
			g.ca.contend(ctx, Contention{Gateway: names[0], Rival: ch.Value, Peer: peerOf(ctx)})
		}
		return proof, refusedBy(acme.ErrorUnauthorizedType, "the AK certificate is not for %s", ch.Value)
	}
	if proof.EK, err = ekOf(a.ak); err != nil {
		return proof, refusedBy(acme.ErrorUnauthorizedType, "%v", err)
	}
	proof.SPKI = a.spki
	return proof, g.admitted(ctx, proof.EK, ch.Value)
}

// admitted asks the registry whether the EK is that gateway's, now.
func (g *guarded) admitted(ctx context.Context, ek [32]byte, gateway string) error {
	owner, err := g.ca.cfg.Registry.ByEK(ctx, ek)
	revoked, cut := (*RevokedError)(nil), (*CutOffError)(nil)
	switch {
	case errors.As(err, &revoked) && owner == gateway:
		return &refusedGateway{g.ca.gateway(gateway), revokedReason,
			refusedBy(acme.ErrorUnauthorizedType, "%s is revoked by the hospital: %s", gateway, revoked.Reason)}
	case errors.As(err, &cut) && owner == gateway:
		return &refusedGateway{g.ca.gateway(gateway), "gateway is " + cut.Title,
			refusedBy(acme.ErrorUnauthorizedType, "%s is %s by the hospital: %s", gateway, cut.Title, cut.Reason)}
	case errors.Is(err, ErrUnknown), errors.Is(err, ErrNotActive):
		return refusedBy(acme.ErrorUnauthorizedType, "the registry does not admit %s now", gateway)
	case err != nil:
		return fmt.Errorf("registry: %w", err)
	case owner != gateway:
		return refusedBy(acme.ErrorUnauthorizedType, "this TPM is not the gateway %s", gateway)
	}
	return nil
}

// refusedGateway is a refusal of whom the attestation has proven to be a gateway: actor and reason are for the log.
type refusedGateway struct {
	actor  audit.Actor
	reason string
	answer *acme.Error
}

func (r *refusedGateway) Error() string { return r.reason }

// Unwrap gives what is answered.
func (r *refusedGateway) Unwrap() error { return r.answer }

// refusalOf is the event of a refusal. The target is the gateway that was named; the actor is nobody unless that is proven.
func refusalOf(err error, target string) audit.Event {
	ev := audit.Event{Target: target, Reason: clean(err.Error())}
	var gateway *refusedGateway
	var refused *acme.Error
	if errors.As(err, &gateway) {
		ev.Actor, ev.Reason = gateway.actor, gateway.reason
	} else if errors.As(err, &refused) {
		ev.Reason = clean(refused.Detail)
	}
	return ev
}

// withheld journals that a certificate was refused at the last moment, and gives what is answered.
func (g *guarded) withheld(ctx context.Context, gateway string, err error) error {
	var refused *acme.Error
	if !errors.As(err, &refused) {
		return err
	}
	g.ca.denied(ctx, refusalOf(err, gateway))
	return refused
}

// CreateCertificate is smallstep's last step before the order shows its certificate. The certificate is signed but nobody can fetch
// it yet: what fails here keeps it from ever leaving.
func (g *guarded) CreateCertificate(ctx context.Context, cert *acme.Certificate) error {
	err := g.createCertificate(ctx, cert)
	if refused := (*acme.Error)(nil); !errors.As(err, &refused) || refused.Status >= http.StatusInternalServerError {
		g.ca.health.issued(ctx, g.ca.cfg.Now(), err) // the order's attestation was accepted: whoever asks is a gateway of ours
	}
	return err
}

func (g *guarded) createCertificate(ctx context.Context, cert *acme.Certificate) error {
	claim, err := g.Claim(ctx, cert.OrderID)
	if err != nil {
		return err
	}
	gateway, ek := claim.Gateway, claim.EK
	spki := sha256.Sum256(cert.Leaf.RawSubjectPublicKeyInfo)
	if spki != claim.SPKI { // smallstep compares the CSR's key, too
		return refusedBy(acme.ErrorUnauthorizedType, "the certificate's key is not the attested one")
	}
	// Asked again: between attestation and certificate lie minutes in which an operator may have suspended the gateway.
	if err := g.admitted(ctx, ek, gateway); err != nil {
		return g.withheld(ctx, gateway, err)
	}
	id := spiffe.ID{TrustDomain: g.ca.cfg.TrustDomain, Kind: spiffe.Gateway, Name: gateway}
	if err := checkSVID(cert.Leaf, id); err != nil {
		return refusedBy(acme.ErrorBadCSRType, "%v", err)
	}
	// The key first: if the event then fails, a key is on record that has no certificate, which harms nobody. The other way round a
	// proven issuance would have no key to verify sealing records with.
	if err := g.ca.cfg.Registry.AddKey(ctx, Key{Gateway: gateway, EK: ek, SPKI: spki,
		Public: cert.Leaf.RawSubjectPublicKeyInfo, Serial: Serial(cert.Leaf),
		NotBefore: cert.Leaf.NotBefore, NotAfter: cert.Leaf.NotAfter}); errors.Is(err, ErrNotActive) {
		// Revoked since it was asked a moment ago: the registry says why.
		return g.withheld(ctx, gateway, cmp.Or(g.admitted(ctx, ek, gateway), err))
	} else if errors.Is(err, ErrTaken) {
		return g.withheld(ctx, gateway, refusedBy(acme.ErrorUnauthorizedType, "the device key is another gateway's"))
	} else if err != nil {
		return fmt.Errorf("certificate for %s is withheld, its key could not be recorded: %w", id, err)
	}
	if err := g.ca.issued(ctx, audit.Actor{ID: id.String()}, peerOf(ctx), id, cert.Leaf); err != nil {
		return err
	}
	return g.Request.CreateCertificate(ctx, cert)
}

// The COSE algorithms (RFC 9053, RFC 8812) that a statement may name. Smallstep takes no more of them than the hash, and stock step writes that of
// the attested key where WebAuthn has that of the AK: ES256 beside the AK's RSA signature.
const (
	rs256 = -257
	es256 = -7
)

// attestationPayload is what judge needs of a device-attest-01 payload.
type attestationPayload struct {
	ak   *x509.Certificate
	spki [32]byte // SHA-256 of the attested key, PKIX DER
}

// payloadDecoding bounds what fxamacker/cbor allocates for a stranger: an attestation is two levels of small maps.
var payloadDecoding = func() cbor.DecMode {
	mode, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxArrayElements: 16, MaxMapPairs: 16, MaxNestedLevels: 4,
		IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden}.DecMode()
	if err != nil {
		panic(err) // the options are constant
	}
	return mode
}()

// attObj is the CBOR in a challenge's payload.
func attObj(payload []byte) ([]byte, error) {
	var outer struct {
		AttObj string `json:"attObj"`
	}
	if err := json.Unmarshal(payload, &outer); err != nil {
		return nil, errors.New(`payload: expected {"attObj": base64url}`)
	}
	raw, err := base64.RawURLEncoding.DecodeString(outer.AttObj)
	if err != nil {
		return nil, errors.New("attObj: not base64url")
	}
	return raw, nil
}

// decodable says whether a payload has the form of an attestation of any format, within bounds. A client that says why it has none is smallstep's.
func decodable(payload []byte) error {
	var failed struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(payload, &failed) == nil && failed.Error != "" {
		return nil
	}
	raw, err := attObj(payload)
	if err != nil {
		return err
	}
	var object struct {
		Format    string         `cbor:"fmt"`
		Statement map[string]any `cbor:"attStmt"`
	}
	if err := payloadDecoding.Unmarshal(raw, &object); err != nil {
		return errors.New("attObj: not the CBOR of an attestation")
	}
	return nil
}

// parseAttestation reads a challenge's payload and checks algorithm and kind of the attested key.
func parseAttestation(payload []byte) (*attestationPayload, error) {
	raw, err := attObj(payload)
	if err != nil {
		return nil, err
	}
	var object struct {
		Format    string `cbor:"fmt"`
		Statement struct {
			Algorithm int64    `cbor:"alg"`
			Chain     [][]byte `cbor:"x5c"`
			Public    []byte   `cbor:"pubArea"`
		} `cbor:"attStmt"`
	}
	if err := payloadDecoding.Unmarshal(raw, &object); err != nil {
		return nil, errors.New("attObj: not the CBOR of an attestation")
	}
	if object.Format != "tpm" || len(object.Statement.Chain) == 0 {
		return nil, errors.New("attObj: expected format tpm with an AK certificate")
	}
	if alg := object.Statement.Algorithm; alg != rs256 && alg != es256 {
		return nil, errors.New("attObj: expected an algorithm with SHA-256")
	}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](object.Statement.Public)
	if err != nil {
		return nil, errors.New("device key: not a TPMT_PUBLIC")
	}
	if ecc, err := public.Parameters.ECCDetail(); err != nil || ecc.CurveID != tpm2.TPMECCNistP256 || !public.ObjectAttributes.SignEncrypt {
		return nil, errors.New("device key: expected ECDSA P-256")
	}
	key, err := tpm2.Pub(*public)
	if err != nil { // cannot fail: go-tpm asks for type and curve alone
		return nil, errors.New("device key: not a point of P-256")
	}
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, errors.New("device key: not a point of P-256")
	}
	ak, err := x509.ParseCertificate(object.Statement.Chain[0])
	if err != nil {
		return nil, errors.New("AK certificate: not DER")
	}
	return &attestationPayload{ak: ak, spki: sha256.Sum256(spki)}, nil
}
