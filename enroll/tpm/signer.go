package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// Signer is the device key: ECDSA P-256 in the TPM, for SHA-256 digests only. It is safe for concurrent use; each signature loads
// the key, signs and flushes it, so nothing is left in the TPM between signatures.
type Signer struct {
	tpm    *TPM
	blob   *blob
	public *ecdsa.PublicKey
}

var _ crypto.Signer = (*Signer)(nil)

func newSigner(t *TPM, b *blob) (*Signer, error) {
	sized, err := tpm2.Unmarshal[tpm2.TPM2BPublic](b.public)
	if err != nil {
		return nil, fmt.Errorf("device key: %w", err)
	}
	area, err := sized.Contents()
	if err != nil {
		return nil, fmt.Errorf("device key: %w", err)
	}
	public, err := tpm2.Pub(*area)
	if err != nil {
		return nil, fmt.Errorf("device key: %w", err)
	}
	key, ok := public.(*ecdsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("device key: a %T; expected ECDSA P-256", public)
	}
	return &Signer{tpm: t, blob: b, public: key}, nil
}

// Public implements crypto.Signer; the key is an *ecdsa.PublicKey.
func (s *Signer) Public() crypto.PublicKey { return s.public }

// SPKI is the public key as PKIX DER.
func (s *Signer) SPKI() ([]byte, error) { return x509.MarshalPKIXPublicKey(s.public) }

// Sign implements crypto.Signer for a SHA-256 digest; the signature is ASN.1. The TPM's own randomness is used.
func (s *Signer) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if opts == nil || opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, errors.New("sign: the device key signs SHA-256 digests only")
	}
	digest = bytes.Clone(digest) // the operation may outlive this call
	return value(context.Background(), s.tpm, "sign", func(c *conn) (signature []byte, err error) {
		err = c.withKeys(func(loaded []tpm2.NamedHandle) error {
			ek, h, release, err := c.loadEK()
			if err != nil {
				return err
			}
			defer release()
			answer, err := tpm2.Sign{
				KeyHandle:  auth(loaded[0], session(ek, h, tpm2.AESEncryption(128, tpm2.EncryptIn))),
				Digest:     tpm2.TPM2BDigest{Buffer: digest},
				InScheme:   tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
				Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
			}.Execute(c)
			if err != nil {
				return err
			}
			rs, err := answer.Signature.Signature.ECDSA()
			if err != nil {
				return err
			}
			signature, err = asn1.Marshal(struct{ R, S *big.Int }{
				new(big.Int).SetBytes(rs.SignatureR.Buffer), new(big.Int).SetBytes(rs.SignatureS.Buffer)})
			return err
		}, s.blob)
		return signature, err
	})
}

// Certificate is chain (leaf first, DER) with this key, as crypto/tls wants it. TLS 1.2 peers are told that only SHA-256 will do.
func (s *Signer) Certificate(chain [][]byte) (tls.Certificate, error) {
	if len(chain) == 0 {
		return tls.Certificate{}, errors.New("certificate chain: empty")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("certificate chain: %w", err)
	}
	if !s.public.Equal(leaf.PublicKey) {
		return tls.Certificate{}, fmt.Errorf("certificate chain: %w", ErrOtherKey)
	}
	return tls.Certificate{Certificate: chain, PrivateKey: s, Leaf: leaf,
		SupportedSignatureAlgorithms: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}}, nil
}

// ErrOtherKey: a certificate is for another key than the device key.
var ErrOtherKey = errors.New("it is for another key than this TPM's device key")
