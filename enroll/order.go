package enroll

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/crypto/acme"

	"wardlink/enroll/tpm"
	"wardlink/internal/durable"
)

const (
	accountFile   = "account.pem" // the ACME account key; it proves nothing without an attestation, so it needs no TPM
	challengeType = "device-attest-01"
	cosRS256      = -257 // COSE algorithm of the AK's signature (RFC 8812)
)

// attestationObject is WebAuthn's, as draft-acme-device-attest uses it.
type attestationObject struct {
	Format    string            `cbor:"fmt"`
	Statement attestationResult `cbor:"attStmt"`
}

type attestationResult struct {
	Version   string   `cbor:"ver"`
	Algorithm int      `cbor:"alg"`
	Chain     [][]byte `cbor:"x5c"`
	Signature []byte   `cbor:"sig"`      // TPMT_SIGNATURE
	Info      []byte   `cbor:"certInfo"` // TPMS_ATTEST
	Public    []byte   `cbor:"pubArea"`  // TPMT_PUBLIC
}

// order runs ACME's device-attest-01 for the device key and returns the certificate chain, DER, leaf first.
func (e *Enroller) order(ctx context.Context, keys *tpm.Keys, a *attestation) ([][]byte, error) {
	key, err := e.accountKey()
	if err != nil {
		return nil, err
	}
	client := &acme.Client{Key: key, DirectoryURL: e.cfg.Directory, HTTPClient: e.http, UserAgent: "wardlink-agent", RetryBackoff: backoff}
	// Registering again with the same key returns the same account: its number need not be kept, and a server that lost its
	// store gets the account back.
	if _, err := client.Register(ctx, &acme.Account{}, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return nil, fmt.Errorf("account: %w", err)
	}
	order, err := client.AuthorizeOrder(ctx, []acme.AuthzID{{Type: "permanent-identifier", Value: a.gateway}})
	if err != nil {
		return nil, err
	}
	for _, url := range order.AuthzURLs {
		if err := e.authorize(ctx, client, url, keys, a); err != nil {
			return nil, err
		}
	}
	if order, err = client.WaitOrder(ctx, order.URI); err != nil {
		return nil, err
	}
	// The server takes nothing from the CSR but the key; the name is there because stock servers compare it.
	csr, err := x509.CreateCertificateRequest(rand.Reader,
		&x509.CertificateRequest{Subject: pkix.Name{CommonName: a.gateway}, SignatureAlgorithm: x509.ECDSAWithSHA256}, keys.Device())
	if err != nil {
		return nil, err
	}
	chain, _, err := client.CreateOrderCert(ctx, order.FinalizeURL, csr, true)
	return chain, err
}

// authorize answers one authorization with the AK's certification of the device key over the server's challenge. It believes the
// challenge object that the answer holds: step-ca never marks the authorization itself invalid, so polling it would spin for hours.
func (e *Enroller) authorize(ctx context.Context, client *acme.Client, url string, keys *tpm.Keys, a *attestation) error {
	authorization, err := client.GetAuthorization(ctx, url)
	if err != nil {
		return err
	}
	if authorization.Status == acme.StatusValid {
		return nil
	}
	for _, challenge := range authorization.Challenges {
		if challenge.Type != challengeType {
			continue
		}
		keyAuthorization, err := client.HTTP01ChallengeResponse(challenge.Token) // token "." thumbprint, whatever the challenge
		if err != nil {
			return err
		}
		if challenge.Payload, err = payload(ctx, keys, a, keyAuthorization); err != nil {
			return err
		}
		answered, err := client.Accept(ctx, challenge)
		if err != nil {
			return err
		}
		if answered.Status != acme.StatusValid {
			return fmt.Errorf("the server holds the %s challenge for %s: %w", challengeType, answered.Status, challengeError(answered))
		}
		return nil
	}
	return fmt.Errorf("the server offers no %s challenge; check that it is a wardlink server or a step-ca with an attestation provisioner", challengeType)
}

// challengeError never returns nil.
func challengeError(c *acme.Challenge) error {
	if c.Error != nil {
		return c.Error
	}
	return errors.New("it says no reason")
}

func payload(ctx context.Context, keys *tpm.Keys, a *attestation, keyAuthorization string) (json.RawMessage, error) {
	certified, err := keys.Certify(ctx, sha256.Sum256([]byte(keyAuthorization)))
	if err != nil {
		return nil, err
	}
	object, err := cbor.Marshal(attestationObject{Format: "tpm", Statement: attestationResult{Version: "2.0", Algorithm: cosRS256,
		Chain: a.chain, Signature: certified.Signature, Info: certified.Info, Public: certified.Public}})
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]string{"attObj": base64.RawURLEncoding.EncodeToString(object)})
}

// backoff bounds x/crypto/acme's own repetitions, which exist for stale nonces; Run repeats whole enrolments.
func backoff(n int, _ *http.Request, _ *http.Response) time.Duration {
	if n > 3 {
		return -1
	}
	return time.Duration(n) * 200 * time.Millisecond
}

// accountKey reads the ACME account key, or makes one. A damaged file is set aside: the key proves nothing without an attestation, so
// a new account costs nothing, and a person on site would.
func (e *Enroller) accountKey() (*ecdsa.PrivateKey, error) {
	path := filepath.Join(e.cfg.Dir, accountFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return newAccountKey(path)
	}
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(data); block != nil {
		if parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
			if key, ok := parsed.(*ecdsa.PrivateKey); ok && key.Curve == elliptic.P256() {
				return key, nil
			}
		}
	}
	aside, err := durable.SetAside(path)
	if err != nil {
		return nil, fmt.Errorf("account key %s: not a P-256 key in PEM; remove the file, a new account costs nothing: %w", path, err)
	}
	e.cfg.Log.Error("the ACME account key is damaged; a new one is made", "path", path, "set_aside", aside)
	return newAccountKey(path)
}

func newAccountKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}
