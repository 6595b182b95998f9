package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// keyAttributes: made inside this TPM, cannot leave it, and a wrong password elsewhere cannot lock it (noDA).
var keyAttributes = tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true}

// akTemplate is a restricted RSA-2048 key, RSASSA with SHA-256: the only kind that smallstep's verifier accepts.
func akTemplate() tpm2.TPMTPublic {
	attributes := keyAttributes
	attributes.Restricted = true
	return tpm2.TPMTPublic{Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048,
			Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})}})}
}

// deviceTemplate is ECDSA P-256, fixed to SHA-256.
func deviceTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: keyAttributes,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256,
			Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})}})}
}

// session authorises one command by a session salted to the EK. All our keys have the empty password: what protects them is that
// nobody without the EK can take part in the session.
func session(ek *endorsement, h tpm2.TPMHandle, options ...tpm2.AuthOption) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, append(options, tpm2.Salted(h, ek.public))...)
}

func auth(key tpm2.NamedHandle, s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: key.Handle, Name: key.Name, Auth: s}
}

// endorsementPolicy satisfies the EK template's policy, PolicySecret(TPM_RH_ENDORSEMENT), with the empty endorsement password.
func endorsementPolicy(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{
		AuthHandle:    tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		PolicySession: session,
		NonceTPM:      nonce,
	}.Execute(t)
	return password("endorsement", err)
}

// storageKey derives the transient ECC storage key. Nothing is written to NV, and it is the same key after each restart.
func (c *conn) storageKey() (tpm2.NamedHandle, error) {
	made, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(tpm2.ECCSRKTemplate),
	}.Execute(c)
	if err != nil {
		return tpm2.NamedHandle{}, fmt.Errorf("derive the storage key: %w", password("owner", err))
	}
	return tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, nil
}

// Usable tells whether keys can be made and loaded: it derives their storage key, and leaves nothing.
func (t *TPM) Usable(ctx context.Context) error {
	return t.do(ctx, "derive the storage key", func(c *conn) error {
		made, err := c.storageKey()
		if err == nil {
			c.flush(made.Handle)
		}
		return err
	})
}

// createKey makes a key under the storage key and fills b. For an AK it has the AK certify its own creation.
func (c *conn) createKey(b *blob, template tpm2.TPMTPublic) error {
	ek, h, release, err := c.loadEK()
	if err != nil {
		return err
	}
	parent, err := c.storageKey()
	if err != nil {
		release()
		return err
	}
	made, err := tpm2.Create{
		ParentHandle: auth(parent, session(ek, h, tpm2.AESEncryption(128, tpm2.EncryptInOut))),
		InPublic:     tpm2.New2B(template),
	}.Execute(c)
	c.flush(parent.Handle) // before the key is loaded below: storage key, derived EK and AK would fill all three slots
	release()
	if err != nil {
		return err
	}
	b.ek = ek.ek.Hash
	b.public, b.private = tpm2.Marshal(made.OutPublic), tpm2.Marshal(made.OutPrivate)
	if b.purpose != purposeAK {
		return nil
	}
	b.creation = made.CreationData.Bytes()
	return c.withKeys(func(loaded []tpm2.NamedHandle) error {
		ek, h, release, err := c.loadEK()
		if err != nil {
			return err
		}
		defer release()
		answer, err := tpm2.CertifyCreation{
			SignHandle:     auth(loaded[0], session(ek, h, tpm2.AESEncryption(128, tpm2.EncryptInOut))),
			ObjectHandle:   loaded[0],
			CreationHash:   made.CreationHash,
			InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
			CreationTicket: made.CreationTicket,
		}.Execute(c)
		if err != nil {
			return err
		}
		b.attest, b.sig = answer.CertifyInfo.Bytes(), tpm2.Marshal(answer.Signature)
		return nil
	}, b)
}

// withKeys loads the keys, gives run their handles in order, and flushes them. The storage key is flushed before run, so that two
// keys and the EK fit a TPM's three slots.
func (c *conn) withKeys(run func(loaded []tpm2.NamedHandle) error, keys ...*blob) error {
	parent, err := c.storageKey()
	if err != nil {
		return err
	}
	var loaded []tpm2.NamedHandle
	defer func() {
		for _, k := range loaded {
			c.flush(k.Handle)
		}
	}()
	for _, b := range keys {
		k, err := c.load(parent, b)
		if err != nil {
			c.flush(parent.Handle)
			return err
		}
		loaded = append(loaded, k)
	}
	c.flush(parent.Handle)
	return run(loaded)
}

// load loads one key. Its name is computed from our own copy of the public area: a TPM that loaded anything else fails the next
// session's authorisation, which covers the name.
func (c *conn) load(parent tpm2.NamedHandle, b *blob) (tpm2.NamedHandle, error) {
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](b.public)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](b.private)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	area, err := public.Contents()
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	answer, err := tpm2.Load{ParentHandle: auth(parent, tpm2.PasswordAuth(nil)), InPrivate: *private, InPublic: *public}.Execute(c)
	if errors.Is(err, tpm2.TPMRCIntegrity) {
		return tpm2.NamedHandle{}, ErrForeign
	}
	if err != nil {
		return tpm2.NamedHandle{}, err
	}
	if !bytes.Equal(answer.Name.Buffer, name.Buffer) {
		c.flush(answer.ObjectHandle)
		return tpm2.NamedHandle{}, errors.New("the TPM loaded another key than it was given")
	}
	return tpm2.NamedHandle{Handle: answer.ObjectHandle, Name: *name}, nil
}
