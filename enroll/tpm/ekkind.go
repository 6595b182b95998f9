package tpm

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// ekKind is one of the endorsement keys that TPMs are made with (TCG EK Credential Profile for TPM 2.0, 2.6, tables 2, 3 and annex B).
type ekKind struct {
	certificate uint32 // NV index of its certificate
	handle      uint32 // where makers keep the key, if they do
	template    tpm2.TPMTPublic
}

const rsaEKHandle = 0x81010001

// ekKinds is in the order in which they are taken: RSA-2048 first, because nearly every TPM has one with a certificate, and stock tools look at no
// other; of the rest the one with a certificate.
func ekKinds() []ekKind {
	return []ekKind{
		{certificate: 0x01C00002, handle: rsaEKHandle, template: tpm2.RSAEKTemplate}, // L-1
		{certificate: 0x01C0000A, handle: 0x81010002, template: tpm2.ECCEKTemplate},  // L-2
		{certificate: 0x01C00012, handle: 0x81010012, template: highRange(rsaParms(2048, 128), tpm2.TPMAlgSHA256)},
		{certificate: 0x01C00014, handle: 0x81010014, template: highRange(eccParms(tpm2.TPMECCNistP256, 128), tpm2.TPMAlgSHA256)},
		{certificate: 0x01C00016, handle: 0x81010016, template: highRange(eccParms(tpm2.TPMECCNistP384, 256), tpm2.TPMAlgSHA384)},
	}
}

// lowKinds says how many of ekKinds need no certificate to be taken: every TPM derives one of them.
const lowKinds = 2

// branches are the policies of the high range (annex B): a key is used under either, and its template has the digest of that.
type branches struct {
	secret []byte // PolicyA: whoever has the endorsement hierarchy's password
	nv     []byte // PolicyC: what NV index 0x01C07F01 or 0x01C07F02 says
	either []byte // PolicyB
}

var highPolicies = map[tpm2.TPMIAlgHash]branches{
	tpm2.TPMAlgSHA256: {
		secret: []byte{0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xB3, 0xF8, 0x1A, 0x90, 0xCC, 0x8D, 0x46, 0xA5, 0xD7, 0x24, 0xFD, 0x52, 0xD7, 0x6E, 0x06, 0x52, 0x0B, 0x64, 0xF2, 0xA1, 0xDA, 0x1B, 0x33, 0x14, 0x69, 0xAA},
		nv:     []byte{0x37, 0x67, 0xE2, 0xED, 0xD4, 0x3F, 0xF4, 0x5A, 0x3A, 0x7E, 0x1E, 0xAE, 0xFC, 0xEF, 0x78, 0x64, 0x3D, 0xCA, 0x96, 0x46, 0x32, 0xE7, 0xAA, 0xD8, 0x2C, 0x67, 0x3A, 0x30, 0xD8, 0x63, 0x3F, 0xDE},
		either: []byte{0xCA, 0x3D, 0x0A, 0x99, 0xA2, 0xB9, 0x39, 0x06, 0xF7, 0xA3, 0x34, 0x24, 0x14, 0xEF, 0xCF, 0xB3, 0xA3, 0x85, 0xD4, 0x4C, 0xD1, 0xFD, 0x45, 0x90, 0x89, 0xD1, 0x9B, 0x50, 0x71, 0xC0, 0xB7, 0xA0},
	},
	tpm2.TPMAlgSHA384: {
		secret: []byte{0x8B, 0xBF, 0x22, 0x66, 0x53, 0x7C, 0x17, 0x1C, 0xB5, 0x6E, 0x40, 0x3C, 0x4D, 0xC1, 0xD4, 0xB6, 0x4F, 0x43, 0x26, 0x11, 0xDC, 0x38, 0x6E, 0x6F, 0x53, 0x20, 0x50, 0xC3, 0x27, 0x8C, 0x93, 0x0E, 0x14, 0x3E, 0x8B, 0xB1, 0x13, 0x38, 0x24, 0xCC, 0xB4, 0x31, 0x05, 0x38, 0x71, 0xC6, 0xDB, 0x53},
		nv:     []byte{0xD6, 0x03, 0x2C, 0xE6, 0x1F, 0x2F, 0xB3, 0xC2, 0x40, 0xEB, 0x3C, 0xF6, 0xA3, 0x32, 0x37, 0xEF, 0x2B, 0x6A, 0x16, 0xF4, 0x29, 0x3C, 0x22, 0xB4, 0x55, 0xE2, 0x61, 0xCF, 0xFD, 0x21, 0x7A, 0xD5, 0xB4, 0x94, 0x7C, 0x2D, 0x73, 0xE6, 0x30, 0x05, 0xEE, 0xD2, 0xDC, 0x2B, 0x35, 0x93, 0xD1, 0x65},
		either: []byte{0xB2, 0x6E, 0x7D, 0x28, 0xD1, 0x1A, 0x50, 0xBC, 0x53, 0xD8, 0x82, 0xBC, 0xF5, 0xFD, 0x3A, 0x1A, 0x07, 0x41, 0x48, 0xBB, 0x35, 0xD3, 0xB4, 0xE4, 0xCB, 0x1C, 0x0A, 0xD9, 0xBD, 0xE4, 0x19, 0xCA, 0xCB, 0x47, 0xBA, 0x09, 0x69, 0x96, 0x46, 0x15, 0x0F, 0x9F, 0xC0, 0x00, 0xF3, 0xF8, 0x0E, 0x12},
	},
}

func highRange(parms tpm2.TPMUPublicParms, hash tpm2.TPMIAlgHash) tpm2.TPMTPublic {
	t := tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: hash, Parameters: parms, AuthPolicy: tpm2.TPM2BDigest{Buffer: highPolicies[hash].either},
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, AdminWithPolicy: true, Restricted: true, Decrypt: true},
		Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})}
	if _, err := parms.RSADetail(); err == nil {
		t.Type, t.Unique = tpm2.TPMAlgRSA, tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	}
	return t
}

func rsaParms(bits, aes int) tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: cfb(aes), KeyBits: tpm2.TPMKeyBits(bits)})
}

func eccParms(curve tpm2.TPMECCCurve, aes int) tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: cfb(aes), CurveID: curve})
}

func cfb(bits int) tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgAES, KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(bits)),
		Mode: tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)}
}

// auth authorises the use of the EK h. Its empty password would do in the high range, too, and count as an attempt against dictionary attacks.
func (e *endorsement) auth(h tpm2.TPMHandle) tpm2.Session {
	callback := endorsementPolicy
	if policy := highPolicies[e.public.NameAlg]; bytes.Equal(e.public.AuthPolicy.Buffer, policy.either) {
		callback = func(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
			if err := endorsementPolicy(t, session, nonce); err != nil {
				return err
			}
			_, err := tpm2.PolicyOr{PolicySession: session, PHashList: tpm2.TPMLDigest{Digests: []tpm2.TPM2BDigest{{Buffer: policy.secret}, {Buffer: policy.nv}}}}.Execute(t)
			return err
		}
	}
	return tpm2.Policy(e.public.NameAlg, 16, leakFree(callback), tpm2.Salted(h, e.public))
}

// made tells whether a key is of this kind: its public area is the template but for the key.
func (k *ekKind) made(p *tpm2.TPMTPublic) bool {
	keyless := *p
	keyless.Unique = k.template.Unique
	return keyless.Type == k.template.Type && bytes.Equal(tpm2.Marshal(keyless), tpm2.Marshal(k.template))
}

// choose finds the EK: the one whose hash is want or, without want, the first with a certificate, else the first that the TPM can derive.
// ErrForeign when it has none that is wanted.
func (c *conn) choose(want *[32]byte) (*endorsement, error) {
	kinds := ekKinds()
	var unread error // of an index that may not be the one that counts
	for i := range kinds {
		certificate, err := c.certificate(kinds[i].certificate)
		if err != nil && (want == nil || c.ctx.Err() != nil) {
			return nil, err
		}
		if err != nil {
			unread = err
			continue
		}
		if certificate == nil {
			continue
		}
		e, err := c.find(&kinds[i], certificate)
		if unsupported(err) {
			continue // a certificate of a key that this TPM does not make
		}
		if err != nil {
			return nil, err
		}
		if want == nil && e.ek.Certificate != nil || want != nil && e.ek.Hash == *want {
			return e, nil
		}
	}
	for i := range kinds[:lowKinds] {
		e, err := c.find(&kinds[i], nil)
		if unsupported(err) && i+1 < lowKinds {
			continue
		}
		if err != nil {
			return nil, err
		}
		if want == nil || e.ek.Hash == *want {
			return e, nil
		}
	}
	if unread != nil {
		return nil, unread
	}
	return nil, fmt.Errorf("the EK is another one than before: %w", ErrForeign)
}

// unsupported tells whether a TPM refuses a template because it does not know its algorithm.
func unsupported(err error) bool {
	for _, code := range []tpm2.TPMRC{tpm2.TPMRCValue, tpm2.TPMRCAsymmetric, tpm2.TPMRCCurve, tpm2.TPMRCHash, tpm2.TPMRCSymmetric, tpm2.TPMRCKeySize, tpm2.TPMRCType} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// find opens the EK of one kind: the persistent one if it has the standard template and agrees with the certificate, else a derived one.
func (c *conn) find(k *ekKind, certificate []byte) (*endorsement, error) {
	e := &endorsement{persistent: tpm2.TPMHandle(k.handle)}
	answer, err := tpm2.ReadPublic{ObjectHandle: e.persistent}.Execute(c)
	if err == nil {
		public, err := answer.OutPublic.Contents()
		if err != nil {
			return nil, err
		}
		e.public, e.name = *public, answer.Name
	}
	if err != nil || !k.made(&e.public) || !e.describe(certificate) {
		if e, err = c.deriveEK(k); err != nil {
			return nil, fmt.Errorf("derive the EK: %w", err)
		}
		e.describe(certificate)
	}
	return e, nil
}
