package ca

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/acme"

	"wardlink/enroll/verify"
)

// softBoard is a TPM in software: what it says has the form of what a TPM says, and its EK is admitted because the registry pins it. A
// TPM emulator makes some hundred signatures a second and one client at a time; this one is as fast as the machine.
type softBoard struct {
	base string
	http *http.Client
	ek   *rsa.PrivateKey
	ak   *rsa.PrivateKey
	key  *ecdsa.PrivateKey

	ekPublic []byte // PKIX DER
	akName   []byte
	request  verify.Request
	pubArea  []byte // of key
	keyName  tpm2.TPM2BName
}

func newSoftBoard(tb testing.TB, base string, client *http.Client) *softBoard {
	tb.Helper()
	b := &softBoard{base: base, http: client}
	must := func(err error) {
		tb.Helper()
		if err != nil {
			tb.Fatal(err)
		}
	}
	var err error
	b.ek, b.ak, err = madeKeys.pair(base)
	must(err)
	b.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	b.ekPublic, err = x509.MarshalPKIXPublicKey(b.ek.Public())
	must(err)

	fixed := tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true}
	restricted := fixed
	restricted.Restricted = true
	ak := tpm2.TPMTPublic{Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: restricted,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048,
			Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: b.ak.N.Bytes()})}
	name, err := tpm2.ObjectName(&ak)
	must(err)
	b.akName = name.Buffer
	made := []byte("creation data")
	sum := sha256.Sum256(made)
	creation := tpm2.Marshal(tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCreation,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, &tpm2.TPMSCreationInfo{ObjectName: *name, CreationHash: tpm2.TPM2BDigest{Buffer: sum[:]}})})
	b.request = verify.Request{TPMInfo: verify.TPMInfo{Version: 2, Manufacturer: "soft", Model: "soft", FirmwareVersion: "1"}, EK: b.ekPublic,
		AttestParams: verify.Params{Public: tpm2.Marshal(ak), CreateData: made, CreateAttestation: creation, CreateSignature: b.sign(creation)}}

	point, err := b.key.PublicKey.Bytes() // 4, x, y
	must(err)
	key := tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: fixed,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})}
	keyName, err := tpm2.ObjectName(&key)
	must(err)
	b.pubArea, b.keyName = tpm2.Marshal(key), *keyName
	return b
}

// madeKeys are the RSA keys of all boards of this process, since each takes a good part of a second: the nth board of a server has the nth pair, and those of
// other tests' servers have the same ones.
var madeKeys rsaKeys

type rsaKeys struct {
	mu    sync.Mutex
	of    map[string]int // boards by address of their server
	pairs [][2]*rsa.PrivateKey
}

func (k *rsaKeys) pair(base string) (ek, ak *rsa.PrivateKey, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.of == nil {
		k.of = map[string]int{}
	}
	n := k.of[base]
	k.of[base]++
	if n == len(k.pairs) {
		if ek, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return nil, nil, err
		}
		if ak, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			return nil, nil, err
		}
		k.pairs = append(k.pairs, [2]*rsa.PrivateKey{ek, ak})
	}
	return k.pairs[n][0], k.pairs[n][1], nil
}

// hash is by which the registry knows it.
func (b *softBoard) hash() [32]byte { return sha256.Sum256(b.ekPublic) }

// sign is a TPMT_SIGNATURE of the AK.
func (b *softBoard) sign(message []byte) []byte {
	sum := sha256.Sum256(message)
	sig, err := rsa.SignPKCS1v15(nil, b.ak, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA,
		&tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig}})})
}

// activate is TPM2_ActivateCredential (TPM 2.0 library, part 1, clause 24).
func (b *softBoard) activate(c verify.Challenge) ([]byte, error) {
	sealed, err := tpm2.Unmarshal[tpm2.TPM2BEncryptedSecret](c.Secret)
	if err != nil {
		return nil, err
	}
	seed, err := rsa.DecryptOAEP(sha256.New(), nil, b.ek, sealed.Buffer, []byte("IDENTITY\x00"))
	if err != nil {
		return nil, err
	}
	blob, err := tpm2.Unmarshal[tpm2.TPM2BIDObject](c.Credential)
	if err != nil {
		return nil, err
	}
	identity := bytes.Clone(blob.Buffer[2+32:]) // behind the integrity value, a TPM2B_DIGEST
	block, err := aes.NewCipher(tpm2.KDFa(crypto.SHA256, seed, "STORAGE", b.akName, nil, 128))
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 it is what TPMs use
	cipher.NewCFBDecrypter(block, make([]byte, aes.BlockSize)).XORKeyStream(identity, identity)
	plain, err := tpm2.Unmarshal[tpm2.TPM2BDigest](identity)
	if err != nil {
		return nil, err
	}
	return plain.Buffer, nil
}

// post is one request of the attestation protocol.
func (b *softBoard) post(ctx context.Context, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, b.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	answer, err := b.http.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Body.Close() }()
	got, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s %s", path, answer.Status, got)
	}
	return json.Unmarshal(got, out)
}

// attest gets the AK's certificate, and its chain.
func (b *softBoard) attest(ctx context.Context) ([][]byte, error) {
	var challenge verify.Challenge
	if err := b.post(ctx, "/attestation/attest", b.request, &challenge); err != nil {
		return nil, err
	}
	plain, err := b.activate(challenge)
	if err != nil {
		return nil, err
	}
	var answer verify.SecretResponse
	if err := b.post(ctx, "/attestation/secret", verify.SecretRequest{Secret: plain}, &answer); err != nil {
		return nil, err
	}
	return answer.Chain, nil
}

// client is an ACME client with an account of its own, which is not registered yet.
func (b *softBoard) client() (*acme.Client, error) {
	account, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &acme.Client{Key: account, DirectoryURL: b.base + "/acme/attest/directory", HTTPClient: b.http,
		RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return -1 }}, nil
}

// payload answers the challenge with that token: the AK certifies key over it (TPM2_Certify).
func (b *softBoard) payload(keyAuthorization string, chain [][]byte) ([]byte, error) {
	digest := sha256.Sum256([]byte(keyAuthorization))
	info := tpm2.Marshal(tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify, ExtraData: tpm2.TPM2BData{Buffer: digest[:]},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: b.keyName})})
	object, err := cbor.Marshal(map[string]any{"fmt": "tpm", "attStmt": map[string]any{"ver": "2.0", "alg": -257, "x5c": chain,
		"sig": b.sign(info), "certInfo": info, "pubArea": b.pubArea}})
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]string{"attObj": base64.RawURLEncoding.EncodeToString(object)})
}

// prove orders a certificate for name and answers the challenge.
func (b *softBoard) prove(ctx context.Context, client *acme.Client, name string, chain [][]byte) (*acme.Order, error) {
	order, err := client.AuthorizeOrder(ctx, []acme.AuthzID{{Type: "permanent-identifier", Value: name}})
	if err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	authorization, err := client.GetAuthorization(ctx, order.AuthzURLs[0])
	if err != nil {
		return nil, fmt.Errorf("authorization: %w", err)
	}
	challenge := authorization.Challenges[0]
	keyAuthorization, err := client.HTTP01ChallengeResponse(challenge.Token)
	if err != nil {
		return nil, err
	}
	if challenge.Payload, err = b.payload(keyAuthorization, chain); err != nil {
		return nil, err
	}
	answered, err := client.Accept(ctx, challenge)
	if err != nil {
		return nil, fmt.Errorf("challenge: %w", err)
	}
	if answered.Status != acme.StatusValid {
		return nil, fmt.Errorf("challenge: %s, %w", answered.Status, answered.Error)
	}
	return order, nil
}

// finalize has key certified under order.
func (b *softBoard) finalize(ctx context.Context, client *acme.Client, order *acme.Order, key crypto.Signer) (*x509.Certificate, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, err
	}
	chain, _, err := client.CreateOrderCert(ctx, order.FinalizeURL, csr, true)
	if err != nil {
		return nil, fmt.Errorf("finalize: %w", err)
	}
	return x509.ParseCertificate(chain[0])
}

// certify is all that follows the AK's certificate.
func (b *softBoard) certify(ctx context.Context, client *acme.Client, name string, chain [][]byte) (*x509.Certificate, error) {
	if _, err := client.Register(ctx, &acme.Account{}, acme.AcceptTOS); err != nil && err != acme.ErrAccountAlreadyExists {
		return nil, fmt.Errorf("account: %w", err)
	}
	order, err := b.prove(ctx, client, name, chain)
	if err != nil {
		return nil, err
	}
	if _, err := client.WaitOrder(ctx, order.URI); err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	return b.finalize(ctx, client, order, b.key)
}

// enrol is the whole of an enrolment.
func (b *softBoard) enrol(ctx context.Context, name string) (*x509.Certificate, error) {
	chain, err := b.attest(ctx)
	if err != nil {
		return nil, err
	}
	client, err := b.client()
	if err != nil {
		return nil, err
	}
	return b.certify(ctx, client, name, chain)
}

// answers meets a challenge for gw-1 with a payload. The genuine one gets a certificate; any other gets none, an answer that is no fault of ours, and is
// counted once among the refusals.
func (b *softBoard) answers(t *testing.T, client *acme.Client, counted func() int64, genuine bool, payload func(keyAuthorization string) []byte) {
	t.Helper()
	order, challenge, keyAuthorization := ordered(t, client)
	challenge.Payload = payload(keyAuthorization)
	before := counted()
	answered, err := client.Accept(t.Context(), challenge)
	n := counted() - before
	var problem *acme.Error
	switch {
	case genuine:
		if err != nil || answered.Status != acme.StatusValid || n != 0 {
			t.Fatalf("the genuine one: %v, %+v; %d refusals", err, answered, n)
		}
	case err == nil && answered.Status == acme.StatusInvalid, errors.As(err, &problem) && problem.StatusCode/100 == 4:
		if n != 1 {
			t.Errorf("%d refusals are counted", n)
		}
	default:
		t.Errorf("%v, %+v", err, answered)
	}
	if _, err := b.finalize(t.Context(), client, order, b.key); (err == nil) != genuine {
		t.Errorf("certificate: %v", err)
	}
}
