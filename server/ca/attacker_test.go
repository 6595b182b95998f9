package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/crypto/acme"

	"wardlink/enroll/tpm"
	"wardlink/enroll/verify"
)

// attacker drives the protocols step by step, so that each step can be wrong.
type attacker struct {
	t    *testing.T
	h    *hospital
	tpm  *tpm.TPM
	ek   tpm.EK
	keys *tpm.Keys
	acme *acme.Client
}

func (h *hospital) attacker(t *testing.T, path string) *attacker {
	t.Helper()
	d, err := tpm.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	ek, err := d.EK(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := tpm.CreateKeys(t.Context(), d, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	account, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	client := &acme.Client{Key: account, DirectoryURL: h.server.URL + "/acme/attest/directory", HTTPClient: h.server.Client(),
		RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return -1 }}
	if _, err := client.Register(t.Context(), &acme.Account{}, acme.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	return &attacker{t: t, h: h, tpm: d, ek: ek, keys: keys, acme: client}
}

// post returns the status and the body.
func (a *attacker) post(path string, body any) (int, []byte) {
	a.t.Helper()
	data, ok := body.([]byte)
	if !ok {
		var err error
		if data, err = json.Marshal(body); err != nil {
			a.t.Fatal(err)
		}
	}
	answer, err := a.h.server.Client().Post(a.h.server.URL+path, "application/json", bytes.NewReader(data))
	if err != nil {
		a.t.Fatal(err)
	}
	defer answer.Body.Close()
	out, err := io.ReadAll(answer.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	if kind := answer.Header.Get("Content-Type"); answer.StatusCode >= 400 && kind != "application/problem+json" {
		a.t.Errorf("%s: a refusal of type %q", path, kind)
	}
	return answer.StatusCode, out
}

func (a *attacker) request() verify.Request {
	ak := a.keys.AK()
	return verify.Request{EK: a.ek.Public, EKCerts: [][]byte{a.ek.Certificate}, AttestParams: verify.Params{Public: ak.Public,
		CreateData: ak.CreateData, CreateAttestation: ak.CreateAttestation, CreateSignature: ak.CreateSignature}}
}

func (a *attacker) challenge(r verify.Request) verify.Challenge {
	a.t.Helper()
	status, body := a.post("/attestation/attest", r)
	var c verify.Challenge
	if err := json.Unmarshal(body, &c); status != http.StatusOK || err != nil {
		a.t.Fatalf("attest: %d %s %v", status, body, err)
	}
	return c
}

func (a *attacker) activate(c verify.Challenge) []byte {
	a.t.Helper()
	plain, err := a.keys.ActivateCredential(a.t.Context(), c.Credential, c.Secret)
	if err != nil {
		a.t.Fatal(err)
	}
	return plain
}

func (a *attacker) akChain() [][]byte {
	a.t.Helper()
	status, body := a.post("/attestation/secret", verify.SecretRequest{Secret: a.activate(a.challenge(a.request()))})
	var answer verify.SecretResponse
	if err := json.Unmarshal(body, &answer); status != http.StatusOK || err != nil {
		a.t.Fatalf("secret: %d %s %v", status, body, err)
	}
	return answer.Chain
}

// prove answers the challenge of a new order for name.
func (a *attacker) prove(name string, chain [][]byte, algorithm int) (*acme.Order, *acme.Challenge, error) {
	a.t.Helper()
	ctx := a.t.Context()
	order, err := a.acme.AuthorizeOrder(ctx, []acme.AuthzID{{Type: "permanent-identifier", Value: name}})
	if err != nil {
		return nil, nil, err
	}
	authorization, err := a.acme.GetAuthorization(ctx, order.AuthzURLs[0])
	if err != nil {
		return nil, nil, err
	}
	challenge := authorization.Challenges[0]
	keyAuthorization, err := a.acme.HTTP01ChallengeResponse(challenge.Token)
	if err != nil {
		return nil, nil, err
	}
	certified, err := a.keys.Certify(ctx, sha256.Sum256([]byte(keyAuthorization)))
	if err != nil {
		a.t.Fatal(err)
	}
	object, err := cbor.Marshal(map[string]any{"fmt": "tpm", "attStmt": map[string]any{"ver": "2.0", "alg": algorithm, "x5c": chain,
		"sig": certified.Signature, "certInfo": certified.Info, "pubArea": certified.Public}})
	if err != nil {
		a.t.Fatal(err)
	}
	challenge.Payload, err = json.Marshal(map[string]string{"attObj": base64.RawURLEncoding.EncodeToString(object)})
	if err != nil {
		a.t.Fatal(err)
	}
	answered, err := a.acme.Accept(ctx, challenge)
	return order, answered, err
}

func (a *attacker) finalize(order *acme.Order, key crypto.Signer, template x509.CertificateRequest) ([][]byte, error) {
	a.t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(a.t.Context(), 10*time.Second)
	defer cancel()
	chain, _, err := a.acme.CreateOrderCert(ctx, order.FinalizeURL, csr, true)
	return chain, err
}

// refusedWith expects a problem document of a 4xx status.
func refusedWith(t *testing.T, what string, err error, want string) {
	t.Helper()
	var problem *acme.Error
	if !errors.As(err, &problem) || problem.StatusCode < 400 || problem.StatusCode > 499 || !strings.Contains(problem.Error(), want) {
		t.Errorf("%s: %v; expected a 4xx problem with %q", what, err, want)
	}
}
