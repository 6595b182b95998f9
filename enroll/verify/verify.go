// Package verify judges a TPM's attestation of its attestation key (AK): that the AK was made inside a TPM, cannot leave it, and
// signs only what that TPM says; and what is known of the endorsement key (EK) beside it. It is pure: no network, no disk, an
// explicit now. That AK and EK live in the same TPM is proven only when the holder decrypts what Seal encrypts.
package verify

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Trust is the bundle of TPM makers' certificates. Nil pools mean that no chain verifies and only pinned EKs are admitted.
type Trust struct {
	Roots         *x509.CertPool
	Intermediates *x509.CertPool // beside those that the TPM shows itself; none is fetched: hospitals have no Internet there
}

// Verified is an attestation that passed every check. Only Attestation makes one; server/ca keeps it in the database until the TPM answers.
type Verified struct {
	EK       [32]byte // SHA-256 of EKPublic
	EKPublic []byte   // PKIX DER
	Chain    bool     // the EK certificate chains to the trust bundle
	ChainErr error    // why not
	AKName   []byte   // TPM name: hash algorithm and digest of the public area
	AKPublic crypto.PublicKey

	// From the EK certificate, or, without one, the TPM's own unproven words. Never empty, printable ASCII.
	Manufacturer, Model, Version string

	Serial string // of the box around the TPM, as it says; nothing proves it
	Former string // the gateway that its disk was with another TPM, as it says; "" is none

	ek tpm2.TPMTPublic
}

// The reasons of a refusal, one for each check.
var (
	ErrEK          = errors.New("EK: expected an RSA-2048, P-256 or P-384 public key as PKIX DER")
	ErrEKCert      = errors.New("EK certificate: it is for another key than the EK")
	ErrAKPublic    = errors.New("AK: the public area is not one TPMT_PUBLIC")
	ErrAKAlgorithm = errors.New("AK: expected RSA of 2048 to 4096 bits with SHA-256 names")
	ErrAKScheme    = errors.New("AK: expected the signing scheme RSASSA with SHA-256")
	ErrFixedTPM    = errors.New("AK: not fixed to its TPM")
	ErrFixedParent = errors.New("AK: not fixed to its parent")
	ErrOrigin      = errors.New("AK: made outside the TPM")
	ErrRestricted  = errors.New("AK: not restricted, so it would sign forged attestations")
	ErrSign        = errors.New("AK: not a signing key")
	ErrDecrypt     = errors.New("AK: may decrypt")
	ErrAttest      = errors.New("AK creation: not one TPMS_ATTEST")
	ErrMagic       = errors.New("AK creation: the attestation was not made by a TPM")
	ErrAttestType  = errors.New("AK creation: the attestation is of another kind")
	ErrCreation    = errors.New("AK creation: the creation data is not what the TPM attests")
	ErrName        = errors.New("AK creation: the TPM attests another key")
	ErrSigFormat   = errors.New("AK creation: the signature is not RSASSA with SHA-256")
	ErrSignature   = errors.New("AK creation: the signature does not verify under the AK")
)

// ErrNoTrust is Verified.ChainErr when the trust bundle is empty.
var ErrNoTrust = errors.New("no TPM maker is trusted")

// ekUsage is the extended key usage of EK certificates, tcg-kp-EKCertificate (TCG EK Credential Profile 2.6, 3.2).
const ekUsage = "2.23.133.8.1"

// Attestation judges r at now. The errors are those above, wrapped; an EK whose certificate is absent or does not chain is no error
// but a verdict, since the registry may hold its hash.
func Attestation(r *Request, trust Trust, now time.Time) (*Verified, error) {
	v := &Verified{Serial: r.Serial, Former: r.Former}
	if err := v.endorsement(r, trust, now); err != nil {
		return nil, err
	}
	if err := v.attestationKey(r.AttestParams); err != nil {
		return nil, err
	}
	return v, nil
}

// endorsement checks the EK and its certificates.
func (v *Verified) endorsement(r *Request, trust Trust, now time.Time) (err error) {
	key, _ := x509.ParsePKIXPublicKey(r.EK) // what is none is nil, and no EK
	if v.ek, err = ekTemplate(key); err != nil {
		return err
	}
	// The hash is over our own encoding: two encodings of one key must not be two gateways.
	if v.EKPublic, err = x509.MarshalPKIXPublicKey(key); err != nil { // cannot fail: ekTemplate has taken it
		return fmt.Errorf("%w: %v", ErrEK, err)
	}
	v.EK = sha256.Sum256(v.EKPublic)
	v.describe(r.TPMInfo)
	own, between, err := v.certificates(r.EKCerts)
	if err != nil {
		return err
	}
	for _, cert := range own {
		v.describeBy(cert)
		if v.ChainErr = chain(cert, between, trust, now); v.ChainErr == nil {
			v.Chain = true
			return nil
		}
	}
	return nil
}

// certificates sorts what the TPM shows into the EK's own certificates and those of authorities between them and a maker's root, which some
// TPMs hold, too. Neither is believed yet. ChainErr says why there may be none; a certificate of another key is a refusal.
func (v *Verified) certificates(shown [][]byte) (own, between []*x509.Certificate, err error) {
	v.ChainErr = errors.New("the TPM shows no EK certificate")
	for _, nv := range shown {
		der, err := UnwrapCertificate(nv)
		if err != nil {
			v.ChainErr = err
			continue
		}
		cert, err := x509.ParseCertificate(der)
		switch {
		case err != nil:
			v.ChainErr = fmt.Errorf("EK certificate: %w", err)
		case bytes.Equal(CertifiedKey(cert), v.EKPublic):
			own = append(own, cert)
		case cert.IsCA:
			between = append(between, cert)
		default:
			return nil, nil, ErrEKCert
		}
	}
	return own, between, nil
}

// chain verifies an EK certificate, with the help of what was shown beside it. SubjectAltName and subjectDirectoryAttributes are critical in EK certificates and unknown to
// crypto/x509; both only describe the TPM.
func chain(cert *x509.Certificate, between []*x509.Certificate, trust Trust, now time.Time) error {
	if trust.Roots == nil { // crypto/x509 would take the system's roots
		return ErrNoTrust
	}
	intermediates := trust.Intermediates
	if len(between) > 0 {
		intermediates = x509.NewCertPool()
		if trust.Intermediates != nil {
			intermediates = trust.Intermediates.Clone()
		}
		for _, c := range between {
			intermediates.AddCert(c)
		}
	}
	open := *cert
	open.UnhandledCriticalExtensions = nil
	for _, oid := range cert.UnhandledCriticalExtensions {
		if !oid.Equal(oidSubjectAltName) && !oid.Equal(oidSubjectDirectoryAttributes) {
			open.UnhandledCriticalExtensions = append(open.UnhandledCriticalExtensions, oid)
		}
	}
	if _, err := open.Verify(x509.VerifyOptions{Roots: trust.Roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return fmt.Errorf("EK certificate: %w", err)
	}
	for _, usage := range cert.UnknownExtKeyUsage {
		if usage.String() == ekUsage {
			return nil
		}
	}
	return errors.New("EK certificate: not issued for an EK (extended key usage " + ekUsage + " is missing)")
}

// attestationKey checks the AK: one line, one check.
func (v *Verified) attestationKey(p Params) error {
	ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](p.Public)
	if err != nil || !bytes.Equal(tpm2.Marshal(ak), p.Public) {
		return ErrAKPublic
	}
	key, err := rsaKey(ak)
	if err != nil {
		return err
	}
	switch a := ak.ObjectAttributes; {
	case !a.FixedTPM:
		return ErrFixedTPM
	case !a.FixedParent:
		return ErrFixedParent
	case !a.SensitiveDataOrigin:
		return ErrOrigin
	case !a.Restricted:
		return ErrRestricted
	case !a.SignEncrypt:
		return ErrSign
	case a.Decrypt:
		return ErrDecrypt
	}
	name, err := tpm2.ObjectName(ak)
	if err != nil { // cannot fail: names are by SHA-256
		return ErrAKPublic
	}
	if err := creation(p, key, name.Buffer); err != nil {
		return err
	}
	v.AKName, v.AKPublic = name.Buffer, key
	return nil
}

// rsaKey returns the AK's key if algorithm and scheme are the ones that smallstep's verifier accepts.
func rsaKey(ak *tpm2.TPMTPublic) (*rsa.PublicKey, error) {
	if ak.NameAlg != tpm2.TPMAlgSHA256 {
		return nil, ErrAKAlgorithm
	}
	parms, noParms := ak.Parameters.RSADetail() // go-tpm ties both unions' members to the type
	unique, noKey := ak.Unique.RSA()
	if errors.Join(noParms, noKey) != nil {
		return nil, ErrAKAlgorithm
	}
	if scheme, err := parms.Scheme.Details.RSASSA(); err != nil || scheme.HashAlg != tpm2.TPMAlgSHA256 {
		return nil, ErrAKScheme
	}
	key, err := tpm2.RSAPub(parms, unique)
	if err != nil { // cannot fail: go-tpm checks nothing here
		return nil, ErrAKAlgorithm
	}
	if key.N.BitLen() < 2048 || key.N.BitLen() > 4096 || key.E != 65537 || key.N.Bit(0) == 0 {
		return nil, ErrAKAlgorithm
	}
	return key, nil
}

// creation checks the TPM's word that it made this very AK.
func creation(p Params, ak *rsa.PublicKey, name []byte) error {
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](p.CreateAttestation)
	if err != nil || !bytes.Equal(tpm2.Marshal(attest), p.CreateAttestation) {
		return ErrAttest
	}
	if attest.Magic != tpm2.TPMGeneratedValue { // a restricted key signs outside data too, but never with this prefix
		return ErrMagic
	}
	info, err := attest.Attested.Creation() // go-tpm ties the union's member to the attested type
	if err != nil {
		return ErrAttestType
	}
	if sum := sha256.Sum256(p.CreateData); !bytes.Equal(info.CreationHash.Buffer, sum[:]) {
		return ErrCreation
	}
	if !bytes.Equal(info.ObjectName.Buffer, name) {
		return ErrName
	}
	return rsassa(ak, p.CreateAttestation, p.CreateSignature, ErrSigFormat, ErrSignature)
}

// rsassa checks a TPMT_SIGNATURE by the AK over message: format is the error of another scheme, wrong that of a signature that does not verify.
func rsassa(ak *rsa.PublicKey, message, sig []byte, format, wrong error) error {
	signature, err := tpm2.Unmarshal[tpm2.TPMTSignature](sig)
	if err != nil {
		return format
	}
	rsassa, err := signature.Signature.RSASSA() // go-tpm ties the union's member to the algorithm
	if err != nil || rsassa.Hash != tpm2.TPMAlgSHA256 {
		return format
	}
	sum := sha256.Sum256(message)
	if rsa.VerifyPKCS1v15(ak, crypto.SHA256, sum[:], rsassa.Sig.Buffer) != nil {
		return wrong
	}
	return nil
}

// Seal encrypts secret (32 bytes) so that only a TPM holding both the EK and this very AK can read it: TPM2_MakeCredential in software.
func (v *Verified) Seal(random io.Reader, secret []byte) (Challenge, error) {
	kem, err := tpm2.ImportEncapsulationKey(&v.ek)
	if err != nil { // cannot fail: Attestation has made it
		return Challenge{}, fmt.Errorf("make credential: %w", err)
	}
	id, enc, err := tpm2.CreateCredential(random, kem, v.AKName, secret)
	if err != nil {
		return Challenge{}, fmt.Errorf("make credential: %w", err)
	}
	return Challenge{
		Credential: tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: id}),
		Secret:     tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: enc}),
	}, nil
}
