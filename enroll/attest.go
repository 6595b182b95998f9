package enroll

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"strings"
	"unicode"

	"wardlink/enroll/tpm"
	"wardlink/enroll/verify"
	"wardlink/internal/secret"
	"wardlink/internal/spiffe"
)

// WaitingProblem is the type of the problem document (RFC 9457) by which the attestation CA says that a gateway waits for approval.
const WaitingProblem = "urn:wardlink:waiting"

// RevokedProblem is the type by which it says that an operator has revoked the gateway; Detail is the operator's reason.
const RevokedProblem = "urn:wardlink:revoked"

// The types by which it says that the gateway is cut off otherwise; Detail is the operator's reason.
const (
	SuspendedProblem      = "urn:wardlink:suspended"      // until an operator resumes it
	DecommissionedProblem = "urn:wardlink:decommissioned" // for ever
	ReplacedProblem       = "urn:wardlink:replaced"       // another board is this gateway now
)

// VersionsProblem is the type by which the server says that it speaks none of the agent's protocol versions; Detail names both ranges.
const VersionsProblem = "urn:wardlink:versions"

// CodeProblem is the type by which it says that this TPM's first attestation wants a one-time code; Detail says what is wrong with the one that was given.
const CodeProblem = "urn:wardlink:code"

// WindowProblem is the type by which it says that the gateway's time has not come, or is over; Detail is its validity.
const WindowProblem = "urn:wardlink:outside-validity"

// WipedPath is where a gateway that has wiped itself posts its signed word (package wipe). It needs no certificate: the signature counts.
const WipedPath = "/wiped"

// Problem is a problem document as the attestation CA answers it.
type Problem struct {
	Type        string `json:"type"`
	Title       string `json:"title,omitempty"`
	Status      int    `json:"status,omitempty"`
	Detail      string `json:"detail,omitempty"`
	Fingerprint string `json:"fingerprint,omitempty"` // with WaitingProblem
	Order       []byte `json:"order,omitempty"`       // with DecommissionedProblem: the signed order to wipe (package wipe)
}

// attestation is the AK certificate and the name that it gives this gateway.
type attestation struct {
	gateway string
	chain   [][]byte // DER, AK certificate first
}

// attest proves to the attestation CA that the AK lives in the TPM that holds the EK, and receives the AK certificate.
func (e *Enroller) attest(ctx context.Context, keys *tpm.Keys) (*attestation, error) {
	info, err := e.cfg.TPM.Info(ctx)
	if err != nil {
		return nil, err
	}
	ek, err := e.cfg.TPM.EK(ctx)
	if err != nil {
		return nil, err
	}
	ak := keys.AK()
	request := verify.Request{
		TPMInfo: verify.TPMInfo{Version: 2, Manufacturer: info.Manufacturer, Model: info.Model, FirmwareVersion: info.Firmware},
		EK:      ek.Public,
		AttestParams: verify.Params{Public: ak.Public, CreateData: ak.CreateData, CreateAttestation: ak.CreateAttestation,
			CreateSignature: ak.CreateSignature},
	}
	request.Serial, request.Former = e.cfg.Serial, e.former
	// Without one the hospital can still know the EK by its hash.
	if ek.Certificate != nil {
		request.EKCerts = append([][]byte{ek.Certificate}, ek.Chain...)
	}
	var challenge verify.Challenge
	if err := e.post(ctx, "/attest", request, &challenge); err != nil {
		return nil, err
	}
	plain, err := keys.ActivateCredential(ctx, challenge.Credential, challenge.Secret)
	if err != nil {
		return nil, err
	}
	defer secret.Bytes(plain).Wipe() // it is the name of our challenge at the server: whoever had it would get our AK certificate
	answering := verify.SecretRequest{Secret: plain}
	if challenge.Boot {
		if answering.Boot, err = e.boot(ctx, keys, plain); err != nil {
			return nil, err
		}
	}
	answering.Code = e.code()
	var answer verify.SecretResponse
	if err := e.post(ctx, "/secret", answering, &answer); err != nil {
		if refused := (*codeError)(nil); errors.As(err, &refused) && answering.Code != "" {
			e.refused = answering.Code
		}
		return nil, err
	}
	if answering.Code != "" { // it is used up, or was not wanted
		_ = os.Remove(e.cfg.CodeFile)
	}
	if len(answer.Chain) == 0 || len(answer.Chain) > 4 {
		return nil, fmt.Errorf("AK certificate: a chain of %d; expected 1 to 4", len(answer.Chain))
	}
	leaf, err := x509.ParseCertificate(answer.Chain[0])
	if err != nil {
		return nil, fmt.Errorf("AK certificate: %w", err)
	}
	names, err := PermanentIdentifiers(leaf)
	if err != nil {
		return nil, fmt.Errorf("AK certificate: %w", err)
	}
	if len(names) != 1 {
		return nil, fmt.Errorf("AK certificate: %d permanent identifiers; expected one", len(names))
	}
	if err := spiffe.ValidName(names[0]); err != nil {
		return nil, fmt.Errorf("AK certificate: %w", err)
	}
	return &attestation{gateway: names[0], chain: answer.Chain}, nil
}

// code is the one-time code that somebody left for the first enrolment; "" when there is none, when it cannot be read, which must not keep an
// enrolled gateway from renewing, and when it is the one that was refused: sent again at each try it would use up the tries of the right one.
func (e *Enroller) code() string {
	if e.cfg.CodeFile == "" {
		return ""
	}
	text, err := readCode(e.cfg.CodeFile)
	switch {
	case err != nil:
		e.cfg.Log.Warn("the one-time code cannot be sent", "error", err)
		return ""
	case text == e.refused:
		return ""
	}
	return text
}

// readCode gives "" when there is no file.
func readCode(path string) (string, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("one-time code: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, verify.MaxCode+1))
	if err != nil {
		return "", fmt.Errorf("one-time code: %w", err)
	}
	text := strings.TrimSpace(string(data))
	if len(data) > verify.MaxCode || !verify.PlainSerial(text) {
		return "", fmt.Errorf("one-time code: %s: expected the code alone, as 'wardlink provision code' prints it", path)
	}
	return text, nil
}

// boot says how this machine booted: a quote over the challenge's secret, and the event log where there is one. What the machine cannot say is
// no error here, as the hospital's policy judges it; a TPM that fails is.
func (e *Enroller) boot(ctx context.Context, keys *tpm.Keys, plain []byte) (*verify.Boot, error) {
	quote, err := keys.Quote(ctx, verify.Qualifying(plain))
	if errors.Is(err, tpm.ErrNoBank) {
		e.cfg.Log.Warn("the hospital cannot be told how this machine booted", "error", err)
		return &verify.Boot{Missing: tpm.ErrNoBank.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	b := &verify.Boot{Quote: quote.Attest, Signature: quote.Signature, PCRs: quote.PCRs}
	if b.Log, err = tpm.ReadEventLog(e.cfg.EventLog); err != nil {
		e.cfg.Log.Warn("the hospital cannot be told which parts this machine booted", "error", err)
		b.Missing = printable(err.Error())
	}
	return b, nil
}

// post sends one JSON request of the attestation protocol.
func (e *Enroller) post(ctx context.Context, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, e.cfg.Attestation+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	answer, err := e.http.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if answer.StatusCode >= 300 {
		return problem(path, answer, data)
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// codeError says what is wrong with the one-time code, or that one is wanted, in the server's words.
type codeError struct{ detail string }

func (e *codeError) Error() string { return "one-time code: " + e.detail }

// problem turns a refusal into an error.
func problem(path string, answer *http.Response, data []byte) error {
	var p Problem
	kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if kind != "application/problem+json" || json.Unmarshal(data, &p) != nil {
		return fmt.Errorf("%s: the server answers %s", path, answer.Status)
	}
	if p.Type == WaitingProblem && p.Fingerprint != "" {
		return &WaitingError{Fingerprint: p.Fingerprint}
	}
	if p.Type == CodeProblem {
		return &codeError{printable(p.Detail)}
	}
	if what, ok := cutOffs[p.Type]; ok {
		return &CutOffError{What: what, Reason: printable(p.Detail), Order: p.Order}
	}
	return fmt.Errorf("%s: the server answers %d %s: %q", path, answer.StatusCode, p.Type, p.Detail)
}

// cutOffs are the problems that say for which gateway the hospital has nothing any more, in the words of status.
var cutOffs = map[string]string{
	RevokedProblem: "revoked", SuspendedProblem: "suspended", DecommissionedProblem: "decommissioned", ReplacedProblem: "replaced",
	WindowProblem: "kept out",
}

// printable makes a peer's words fit for one line of a terminal.
func printable(s string) string {
	const longest = 300
	s = strings.ToValidUTF8(s[:min(len(s), longest)], "")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

var (
	oidSubjectAltName      = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidPermanentIdentifier = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 3} // RFC 4043
)

// PermanentIdentifiers lists the names (RFC 4043) that an AK certificate gives its gateway; there should be one.
func PermanentIdentifiers(cert *x509.Certificate) ([]string, error) {
	var found []string
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if rest, err := asn1.Unmarshal(ext.Value, &names); err != nil || len(rest) != 0 {
			return nil, errors.New("the subject alternative name is not DER")
		}
		for _, n := range names {
			if n.Class != asn1.ClassContextSpecific || n.Tag != 0 {
				continue
			}
			var other struct {
				Type  asn1.ObjectIdentifier
				Value struct {
					Identifier string                `asn1:"utf8,optional"`
					Assigner   asn1.ObjectIdentifier `asn1:"optional"`
				} `asn1:"explicit,tag:0"`
			}
			if _, err := asn1.UnmarshalWithParams(n.FullBytes, &other, "tag:0"); err == nil && other.Type.Equal(oidPermanentIdentifier) {
				found = append(found, other.Value.Identifier)
			}
		}
	}
	return found, nil
}
