// Package softboard is a gateway's board whose TPM is software, with the whole of an enrolment: for tests and benchmarks of a CA, which want more of them than
// emulated TPMs can be. Who registers its endorsement key trusts a key that lies in memory.
package softboard

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
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/bits"
	"net/http"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/acme"

	"wardlink/enroll/verify"
)

// Board is a TPM in software: what it says has the form of what a TPM says, and its EK is admitted because the registry pins it. A
// TPM emulator makes some hundred signatures a second and one client at a time; this one is as fast as the machine. It may be used by many goroutines.
type Board struct {
	// Quotes: it says how it booted with each attestation, as gateways do: PCRs of zeros, and no event log.
	Quotes bool

	EK, AK   *rsa.PrivateKey
	Key      *ecdsa.PrivateKey // of the device
	EKPublic []byte            // PKIX DER
	AKName   []byte            // TPM2B_NAME's buffer
	Request  verify.Request    // that opens an attestation
	PubArea  []byte            // TPMT_PUBLIC of Key

	base    string
	http    *http.Client
	keyName tpm2.TPM2BName
}

// New makes a board of two RSA keys of 2048 bits, whose device key is new. It is attested by the server at base, an https URL without a path.
func New(base string, client *http.Client, ek, ak *rsa.PrivateKey) (*Board, error) {
	b := &Board{base: base, http: client, EK: ek, AK: ak}
	var err error
	if b.Key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if b.EKPublic, err = x509.MarshalPKIXPublicKey(b.EK.Public()); err != nil {
		return nil, err
	}
	fixed := tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true}
	restricted := fixed
	restricted.Restricted = true
	public := tpm2.TPMTPublic{Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: restricted,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048,
			Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: b.AK.N.Bytes()})}
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return nil, err
	}
	b.AKName = name.Buffer
	made := []byte("creation data")
	sum := sha256.Sum256(made)
	creation := tpm2.Marshal(tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCreation,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, &tpm2.TPMSCreationInfo{ObjectName: *name, CreationHash: tpm2.TPM2BDigest{Buffer: sum[:]}})})
	b.Request = verify.Request{TPMInfo: verify.TPMInfo{Version: 2, Manufacturer: "soft", Model: "soft", FirmwareVersion: "1"}, EK: b.EKPublic,
		AttestParams: verify.Params{Public: tpm2.Marshal(public), CreateData: made, CreateAttestation: creation, CreateSignature: b.Sign(creation)}}

	point, err := b.Key.PublicKey.Bytes() // 4, x, y
	if err != nil {
		return nil, err
	}
	key := tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: fixed,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})}
	keyName, err := tpm2.ObjectName(&key)
	if err != nil {
		return nil, err
	}
	b.PubArea, b.keyName = tpm2.Marshal(key), *keyName
	return b, nil
}

// Hash is by which the registry knows it.
func (b *Board) Hash() [32]byte { return sha256.Sum256(b.EKPublic) }

// Sign is a TPMT_SIGNATURE of the AK.
func (b *Board) Sign(message []byte) []byte {
	sum := sha256.Sum256(message)
	sig, err := rsa.SignPKCS1v15(nil, b.AK, crypto.SHA256, sum[:])
	if err != nil {
		panic(err)
	}
	return tpm2.Marshal(tpm2.TPMTSignature{SigAlg: tpm2.TPMAlgRSASSA, Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgRSASSA,
		&tpm2.TPMSSignatureRSA{Hash: tpm2.TPMAlgSHA256, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig}})})
}

// activate is TPM2_ActivateCredential (TPM 2.0 library, part 1, clause 24).
func (b *Board) activate(c verify.Challenge) ([]byte, error) {
	sealed, err := tpm2.Unmarshal[tpm2.TPM2BEncryptedSecret](c.Secret)
	if err != nil {
		return nil, err
	}
	seed, err := rsa.DecryptOAEP(sha256.New(), nil, b.EK, sealed.Buffer, []byte("IDENTITY\x00"))
	if err != nil {
		return nil, err
	}
	blob, err := tpm2.Unmarshal[tpm2.TPM2BIDObject](c.Credential)
	if err != nil {
		return nil, err
	}
	identity := bytes.Clone(blob.Buffer[2+32:]) // behind the integrity value, a TPM2B_DIGEST
	block, err := aes.NewCipher(tpm2.KDFa(crypto.SHA256, seed, "STORAGE", b.AKName, nil, 128))
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

// Post is one request of the attestation protocol.
func (b *Board) Post(ctx context.Context, path string, in, out any) error {
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

// Attest gets the AK's certificate, and its chain.
func (b *Board) Attest(ctx context.Context) ([][]byte, error) {
	var challenge verify.Challenge
	if err := b.Post(ctx, "/attestation/attest", b.Request, &challenge); err != nil {
		return nil, err
	}
	plain, err := b.activate(challenge)
	if err != nil {
		return nil, err
	}
	answering := verify.SecretRequest{Secret: plain}
	if b.Quotes {
		answering.Boot = b.quote(plain)
	}
	var answer verify.SecretResponse
	if err := b.Post(ctx, "/attestation/secret", answering, &answer); err != nil {
		return nil, err
	}
	return answer.Chain, nil
}

// quote is TPM2_Quote of a machine that measured nothing, for the challenge that secret answers.
func (b *Board) quote(secret []byte) *verify.Boot {
	const pcrs = verify.QuotedPCRs
	values := make([][]byte, bits.OnesCount32(pcrs))
	for i := range values {
		values[i] = make([]byte, sha256.Size)
	}
	digest, over := sha256.Sum256(make([]byte, sha256.Size*len(values))), verify.Qualifying(secret)
	info := tpm2.Marshal(tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestQuote, ExtraData: tpm2.TPM2BData{Buffer: over[:]},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{PCRDigest: tpm2.TPM2BDigest{Buffer: digest[:]},
			PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{pcrs & 0xff, pcrs >> 8, 0}}}}})})
	return &verify.Boot{Quote: info, Signature: b.Sign(info), PCRs: values, Missing: "a board in software has no event log"}
}

// Directory is that of the server that attests.
func (b *Board) Directory() string { return b.base + "/acme/attest/directory" }

// Client is an ACME client of the directory at an https URL, with an account of its own, which is not registered yet.
func (b *Board) Client(directory string) (*acme.Client, error) {
	account, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &acme.Client{Key: account, DirectoryURL: directory, HTTPClient: b.http,
		RetryBackoff: func(int, *http.Request, *http.Response) time.Duration { return -1 }}, nil
}

// Payload answers the challenge with that token: the AK certifies key over it (TPM2_Certify).
func (b *Board) Payload(keyAuthorization string, chain [][]byte) ([]byte, error) {
	digest := sha256.Sum256([]byte(keyAuthorization))
	info := tpm2.Marshal(tpm2.TPMSAttest{Magic: tpm2.TPMGeneratedValue, Type: tpm2.TPMSTAttestCertify, ExtraData: tpm2.TPM2BData{Buffer: digest[:]},
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{Name: b.keyName})})
	object, err := cbor.Marshal(map[string]any{"fmt": "tpm", "attStmt": map[string]any{"ver": "2.0", "alg": -257, "x5c": chain,
		"sig": b.Sign(info), "certInfo": info, "pubArea": b.PubArea}})
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]string{"attObj": base64.RawURLEncoding.EncodeToString(object)})
}

// Prove orders a certificate for name and answers the challenge.
func (b *Board) Prove(ctx context.Context, client *acme.Client, name string, chain [][]byte) (*acme.Order, error) {
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
	if challenge.Payload, err = b.Payload(keyAuthorization, chain); err != nil {
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

// Finalize has key certified under order.
func (b *Board) Finalize(ctx context.Context, client *acme.Client, order *acme.Order, key crypto.Signer) (*x509.Certificate, error) {
	// Our server takes nothing from it but the key; stock ones compare the name.
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: order.Identifiers[0].Value}}, key)
	if err != nil {
		return nil, err
	}
	chain, _, err := client.CreateOrderCert(ctx, order.FinalizeURL, csr, true)
	if err != nil {
		return nil, fmt.Errorf("finalize: %w", err)
	}
	return x509.ParseCertificate(chain[0])
}

// Certify is all that follows the AK's certificate.
func (b *Board) Certify(ctx context.Context, client *acme.Client, name string, chain [][]byte) (*x509.Certificate, error) {
	if _, err := client.Register(ctx, &acme.Account{}, acme.AcceptTOS); err != nil && err != acme.ErrAccountAlreadyExists {
		return nil, fmt.Errorf("account: %w", err)
	}
	order, err := b.Prove(ctx, client, name, chain)
	if err != nil {
		return nil, err
	}
	if _, err := client.WaitOrder(ctx, order.URI); err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	return b.Finalize(ctx, client, order, b.Key)
}

// Enrol is the whole of an enrolment with the server that attests.
func (b *Board) Enrol(ctx context.Context, name string) (*x509.Certificate, error) {
	chain, err := b.Attest(ctx)
	if err != nil {
		return nil, err
	}
	client, err := b.Client(b.Directory())
	if err != nil {
		return nil, err
	}
	return b.Certify(ctx, client, name, chain)
}
