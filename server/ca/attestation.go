package ca

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/enroll/verify"
	"wardlink/internal/secret"
	"wardlink/server/boot"
	"wardlink/server/ca/acmedb"
)

// secretSize is what stock clients expect, and what fits the credential of an EK with SHA-256 names.
const secretSize = 32

// attest answers POST /attestation/attest: it judges the request and challenges the TPM. Nothing is recorded of a stranger here.
func (c *CA) attest(w http.ResponseWriter, r *http.Request) {
	body, ok := readBody(w, r, verify.MaxRequest)
	if !ok {
		return
	}
	request, err := verify.ParseRequest(body)
	if err != nil {
		c.refuse(w, r, http.StatusBadRequest, "malformed", err.Error())
		return
	}
	verified, err := verify.Attestation(request, c.trust(), c.cfg.Now())
	if err != nil {
		c.refuse(w, r, http.StatusForbidden, "attestation", err.Error())
		return
	}
	e := c.authority.Load()
	if e == nil {
		c.unavailable(w, "the CA's tables", errNoStore)
		return
	}
	if !c.sources.allow(r.RemoteAddr) {
		w.Header().Set("Retry-After", "30")
		c.refuse(w, r, http.StatusTooManyRequests, "rate", "too many enrolments from your address")
		return
	}
	plain := make([]byte, secretSize)
	defer secret.Bytes(plain).Wipe()
	_, _ = rand.Read(plain) // crypto/rand never fails: it ends the program instead
	challenge, err := verified.Seal(rand.Reader, plain)
	if err != nil {
		c.refuse(w, r, http.StatusForbidden, "attestation", err.Error())
		return
	}
	row, err := encodeChallenged(verified)
	if err == nil {
		err = e.store.AddPending(r.Context(), sha256.Sum256(plain), row)
	}
	if errors.Is(err, acmedb.ErrFull) {
		w.Header().Set("Retry-After", "30")
		c.refuse(w, r, http.StatusTooManyRequests, "busy", "too many challenges are pending")
		return
	}
	if err != nil {
		c.unavailable(w, "database", err)
		return
	}
	challenge.Boot = true
	answer(w, challenge)
}

// secret answers POST /attestation/secret: whoever knows the secret is the TPM that holds EK and AK. Only now is the registry asked,
// and only now may the TPM enter the waiting list, so that nobody fills it with keys that he does not have.
func (c *CA) secret(w http.ResponseWriter, r *http.Request) {
	body, ok := readBody(w, r, verify.MaxSecretRequest)
	if !ok {
		return
	}
	request, err := verify.ParseSecretRequest(body)
	if err != nil {
		c.refuse(w, r, http.StatusBadRequest, "malformed", err.Error())
		return
	}
	defer secret.Bytes(request.Secret).Wipe()
	verified, ok, err := c.answered(r.Context(), request.Secret)
	if err != nil {
		c.unavailable(w, "the CA's tables", err)
		return
	}
	if !ok {
		c.refuse(w, r, http.StatusForbidden, "secret", "no challenge with this secret is pending: it was wrong, used, or older than a minute")
		return
	}
	ctx, peer := r.Context(), r.RemoteAddr
	// Whether the EK certificate chained is only told to the operator: what admits a TPM is its hash in the registry.
	gateway, err := c.cfg.Registry.ByEK(ctx, verified.EK)
	switch {
	case errors.Is(err, ErrUnknown):
		c.wait(w, r, verified)
		return
	case errors.Is(err, ErrNotActive):
		ev := audit.Event{Actor: c.gateway(gateway), Target: enroll.Fingerprint(verified.EK), Reason: "gateway is not active",
			Detail: map[string]string{"ek_sha256": hex.EncodeToString(verified.EK[:])}}
		problem := enroll.Problem{Type: problemPrefix + "not-active", Detail: "this gateway may not have a certificate now; ask an operator"}
		// The reason is told to nobody but the TPM itself, which has just proven its EK.
		if revoked := (*RevokedError)(nil); errors.As(err, &revoked) {
			ev.Reason = revokedReason
			problem = enroll.Problem{Type: enroll.RevokedProblem, Title: "revoked", Detail: revoked.Reason}
		} else if cut := (*CutOffError)(nil); errors.As(err, &cut) {
			ev.Reason = "gateway is " + cut.Title
			problem = enroll.Problem{Type: cut.Type, Title: cut.Title, Detail: cut.Reason, Order: cut.Order}
		}
		c.denied(ctx, ev)
		reply(w, http.StatusForbidden, problem)
		return
	case err != nil:
		c.unavailable(w, "registry", err)
		return
	}
	if former := verified.Former; former != "" && former != gateway {
		c.contend(ctx, Contention{Gateway: former, Rival: gateway, Disk: true, Peer: peer})
		c.twofold(w, r, verified, gateway, "disk-of-another-gateway", "this board is gateway "+gateway+", and the disk in it is gateway "+former+
			"'s: put the disk where it belongs, and gateway "+gateway+"'s own or an empty one into this board; what is buffered on it is kept ('wardlink salvage' reads it)")
		return
	}
	booted, quoted, err := measured(request, verified)
	if err != nil {
		c.denied(ctx, audit.Event{Actor: c.gateway(gateway), Target: enroll.Fingerprint(verified.EK), Reason: err.Error(),
			Detail: map[string]string{"ek_sha256": hex.EncodeToString(verified.EK[:])}})
		reply(w, http.StatusForbidden, enroll.Problem{Type: problemPrefix + "quote", Detail: err.Error()})
		return
	}
	wants := (*CodeError)(nil)
	if err := c.cfg.Registry.Attested(ctx, gateway, verified, request.Code, booted); errors.As(err, &wants) {
		c.denied(ctx, audit.Event{Actor: c.gateway(gateway), Target: enroll.Fingerprint(verified.EK), Reason: "one-time code",
			Detail: map[string]string{"ek_sha256": hex.EncodeToString(verified.EK[:]), "why": wants.Why}})
		reply(w, http.StatusForbidden, enroll.Problem{Type: enroll.CodeProblem, Title: "one-time code", Detail: wants.Why})
		return
	} else if errors.Is(err, ErrTaken) {
		c.twofold(w, r, verified, gateway, "two-gateways", "this TPM has proven to be another gateway, too; one TPM is one gateway: an operator must end one of the two")
		return
	} else if err != nil {
		c.unavailable(w, "registry", err)
		return
	}
	cert, err := c.certifyAK(verified, gateway)
	if err != nil {
		c.health.issued(ctx, c.cfg.Now(), err)
		c.unavailable(w, "sign the AK certificate", err)
		return
	}
	// Journaled before the certificate leaves; one that was signed and then withheld proves nothing to anybody.
	if err := c.akCertified(ctx, peer, gateway, verified, cert, quoted); err != nil {
		c.health.issued(ctx, c.cfg.Now(), err)
		c.unavailable(w, "journal", err)
		return
	}
	answer(w, verify.SecretResponse{Chain: [][]byte{cert.Raw, c.cfg.Attestation.Raw}})
}

// measured judges what a gateway says of how it booted. quoted names it for the log: the SHA-256 of the quote and of the event log, nil without
// a quote. An error is a quote that no honest TPM makes.
func measured(request *verify.SecretRequest, v *verify.Verified) (m boot.Measurement, quoted map[string]string, err error) {
	b := request.Boot
	switch {
	case b == nil:
		return boot.Of(nil, nil, ""), nil, nil
	case len(b.Quote) == 0:
		return boot.Of(nil, nil, b.Missing), nil, nil
	}
	ak, ok := v.AKPublic.(*rsa.PublicKey)
	if !ok {
		return m, nil, verify.ErrAKAlgorithm
	}
	proven, err := verify.Quote(b, ak, request.Secret)
	if err != nil {
		return m, nil, err
	}
	quote, log := sha256.Sum256(b.Quote), sha256.Sum256(b.Log)
	quoted = map[string]string{"quote_sha256": hex.EncodeToString(quote[:])}
	if len(b.Log) > 0 {
		quoted["event_log_sha256"] = hex.EncodeToString(log[:])
	}
	return boot.Of(proven, b.Log, b.Missing), quoted, nil
}

// akCertified journals an AK certificate that is about to be handed out.
func (c *CA) akCertified(ctx context.Context, peer, gateway string, v *verify.Verified, cert *x509.Certificate, quoted map[string]string) error {
	detail := map[string]string{
		"ek_sha256": hex.EncodeToString(v.EK[:]), "chain": fmt.Sprint(v.Chain), "ak_name": hex.EncodeToString(v.AKName),
		"manufacturer": v.Manufacturer, "model": v.Model, "version": v.Version,
		"serial": Serial(cert), "not_after": cert.NotAfter.UTC().Format(time.RFC3339),
	}
	maps.Copy(detail, quoted)
	return c.cfg.Events(ctx, audit.Event{Type: audit.AKCertified, Time: c.cfg.Now().UnixMilli(), Actor: audit.Actor{ID: "peer"}, Peer: peer,
		Target: gateway, Outcome: audit.Success, Detail: detail})
}

// answered takes the challenge that the secret answers; false when there is none.
func (c *CA) answered(ctx context.Context, plain []byte) (*verify.Verified, bool, error) {
	e := c.authority.Load()
	if e == nil {
		return nil, false, errNoStore
	}
	row, ok, err := e.store.TakePending(ctx, sha256.Sum256(plain))
	if err != nil || !ok {
		return nil, false, err
	}
	v, err := decodeChallenged(row)
	return v, err == nil, err
}

// twofold refuses a TPM that cannot be the gateway that it is by its endorsement key.
func (c *CA) twofold(w http.ResponseWriter, r *http.Request, v *verify.Verified, gateway, kind, detail string) {
	c.denied(r.Context(), audit.Event{Actor: c.gateway(gateway), Target: enroll.Fingerprint(v.EK), Reason: kind,
		Detail: map[string]string{"ek_sha256": hex.EncodeToString(v.EK[:]), "former": v.Former}})
	reply(w, http.StatusForbidden, enroll.Problem{Type: problemPrefix + kind, Detail: detail})
}

// contend has a claim noted that is refused whether or not that works.
func (c *CA) contend(ctx context.Context, claim Contention) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := c.cfg.Registry.Contend(ctx, claim); err != nil {
		c.cfg.Log.Error("a contention of identities could not be noted", "gateway", claim.Gateway, "rival", claim.Rival, "error", err)
	}
}

func (c *CA) wait(w http.ResponseWriter, r *http.Request, v *verify.Verified) {
	if v.Former != "" {
		c.contend(r.Context(), Contention{Gateway: v.Former, Rival: enroll.Fingerprint(v.EK), Disk: true, Peer: r.RemoteAddr})
	}
	if err := c.cfg.Registry.Wait(r.Context(), Waiting{EK: v.EK, EKPublic: v.EKPublic, Manufacturer: v.Manufacturer, Model: v.Model,
		Chain: v.Chain, Peer: r.RemoteAddr, Serial: v.Serial}); err != nil {
		c.unavailable(w, "waiting list", err)
		return
	}
	fingerprint := enroll.Fingerprint(v.EK)
	reply(w, http.StatusForbidden, enroll.Problem{Type: enroll.WaitingProblem, Title: "waiting for approval", Fingerprint: fingerprint,
		Detail: "an operator must run: " + enroll.ApproveCommand(fingerprint)})
}

var (
	oidSubjectAltName      = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidExtKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidAIKCertificate      = asn1.ObjectIdentifier{2, 23, 133, 8, 3} // tcg-kp-AIKCertificate
	oidPermanentIdentifier = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 3}
	oidManufacturer        = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidModel               = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidVersion             = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
)

// ekPrefix begins the URI by which stock step recognises the EK in its AK certificate; our own ACME check reads it too.
const ekPrefix = "urn:ek:sha256:"

// certifyAK signs the AK certificate. The PermanentIdentifier is always there: smallstep accepts any name from a certificate without one.
func (c *CA) certifyAK(v *verify.Verified, gateway string) (*x509.Certificate, error) {
	san, err := akNames(v, gateway)
	if err != nil {
		return nil, err
	}
	usage, err := asn1.Marshal([]asn1.ObjectIdentifier{oidAIKCertificate})
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := c.cfg.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, NotBefore: now.Add(-backdate), NotAfter: now.Add(c.cfg.AKLife),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtraExtensions: []pkix.Extension{
			{Id: oidSubjectAltName, Critical: true, Value: san}, // critical, as the subject is empty (RFC 5280, 4.1.2.6)
			{Id: oidExtKeyUsage, Value: usage},
		},
	}, c.cfg.Attestation, v.AKPublic, c.cfg.AttestationKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// akNames is the SubjectAltName of an AK certificate: the TPM's description, the gateway's permanent identifier, the EK's hash.
func akNames(v *verify.Verified, gateway string) ([]byte, error) {
	var rdns pkix.RDNSequence
	for _, a := range []struct {
		oid  asn1.ObjectIdentifier
		text string
	}{{oidManufacturer, v.Manufacturer}, {oidModel, v.Model}, {oidVersion, v.Version}} {
		rdns = append(rdns, pkix.RelativeDistinguishedNameSET{{Type: a.oid, Value: a.text}})
	}
	directory, err := asn1.Marshal(rdns)
	if err != nil {
		return nil, err
	}
	identifier, err := asn1.MarshalWithParams(permanentIdentifierName{Type: oidPermanentIdentifier, Value: permanentIdentifier{gateway}}, "tag:0")
	if err != nil {
		return nil, err
	}
	uri := ekPrefix + base64.StdEncoding.EncodeToString(v.EK[:])
	return asn1.Marshal([]asn1.RawValue{
		{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: directory},
		{FullBytes: identifier},
		{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(uri)},
	})
}

// permanentIdentifierName is the otherName of RFC 4043.
type permanentIdentifierName struct {
	Type  asn1.ObjectIdentifier
	Value permanentIdentifier `asn1:"explicit,tag:0"`
}

type permanentIdentifier struct {
	Identifier string `asn1:"utf8"`
}

// ekOf reads the EK hash that certifyAK put into an AK certificate.
func ekOf(ak *x509.Certificate) ([32]byte, error) {
	for _, uri := range ak.URIs {
		if text, ok := strings.CutPrefix(uri.String(), ekPrefix); ok {
			if hash, err := base64.StdEncoding.DecodeString(text); err == nil && len(hash) == 32 {
				return [32]byte(hash), nil
			}
		}
	}
	return [32]byte{}, errors.New("the AK certificate does not name its EK")
}
