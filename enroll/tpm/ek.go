package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"wardlink/enroll/verify"
)

// EK is the endorsement key that enrolment uses: the one that the key files name; on a gateway without them RSA-2048, or the kind of which the
// TPM shows a certificate.
type EK struct {
	Public      []byte   // PKIX DER
	Hash        [32]byte // SHA-256 of Public
	Certificate []byte   // DER as unwrapped from NV; nil when the TPM holds none that belongs to this key
	Chain       [][]byte // DER: certificates between Certificate and the maker's root, as far as the TPM holds them
	Handle      uint32   // persistent handle, 0 when the key is derived at each use
}

// Info describes a TPM to its operator and to the hospital.
type Info struct {
	Manufacturer string // decimal of TPM_PT_MANUFACTURER, as the attestation protocol wants it
	Model        string // vendor string
	Firmware     string // "major.minor" of the two firmware words
	EKs          []EKInfo
}

// EKInfo names one EK of a TPM: one TPM has several, and a registry may know any of them.
type EKInfo struct {
	Hash      [32]byte // SHA-256 of the PKIX DER public key
	Algorithm string   // "RSA-2048", "ECDSA P-384", ...
	Where     uint32   // persistent handle or NV index of its certificate
}

// endorsement is the EK as the owner goroutine uses it.
type endorsement struct {
	public     tpm2.TPMTPublic
	name       tpm2.TPM2BName
	persistent tpm2.TPMHandle    // 0: derived, and kept as saved
	saved      *tpm2.TPMSContext // valid until the TPM restarts
	ek         EK
}

// EK reads the endorsement key and its certificate. The result is cached for the life of t.
func (t *TPM) EK(ctx context.Context) (EK, error) {
	return value(ctx, t, "read the EK", func(c *conn) (EK, error) {
		e, err := c.endorsement()
		if err != nil {
			return EK{}, err
		}
		return e.ek, nil
	})
}

// endorsement finds the EK. OpenKeys compares with the key files once. A reading after a restart of the TPM must not bring in another EK behind
// its back, to which the sessions would then be salted.
func (c *conn) endorsement() (*endorsement, error) {
	if c.tpm.ek != nil {
		return c.tpm.ek, nil
	}
	e, err := c.choose(c.tpm.pinned)
	if err != nil {
		return nil, err
	}
	if e.ek.Certificate != nil {
		if e.ek.Chain, err = c.chain(); err != nil {
			return nil, err
		}
	}
	c.tpm.pinned, c.tpm.ek = &e.ek.Hash, e
	return e, nil
}

// pin takes the EK of the key files for the one that counts, if it is one of this TPM's.
func (t *TPM) pin(ctx context.Context, hash [32]byte) error {
	return t.do(ctx, "find the EK of the key files", func(c *conn) error {
		if _, err := c.choose(&hash); err != nil {
			return err
		}
		c.tpm.pinned, c.tpm.ek = &hash, nil
		return nil
	})
}

// describe fills e.ek and reports whether the certificate, if there is one, is for this key.
func (e *endorsement) describe(certificate []byte) bool {
	der, err := pkix(&e.public)
	if err != nil {
		return false
	}
	e.ek = EK{Public: der, Hash: sha256.Sum256(der), Handle: uint32(e.persistent)}
	if certificate == nil {
		return true
	}
	if cert, err := x509.ParseCertificate(certificate); err == nil && !bytes.Equal(verify.CertifiedKey(cert), der) {
		return false
	}
	e.ek.Certificate = certificate // one that Go cannot read is the server's to judge
	return true
}

// deriveEK makes the EK from the endorsement seed and keeps it as a saved context, since deriving an RSA key takes seconds on a real TPM.
func (c *conn) deriveEK(k *ekKind) (*endorsement, error) {
	made, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(k.template),
	}.Execute(c)
	if err != nil {
		return nil, password("endorsement", err)
	}
	defer c.flush(made.ObjectHandle)
	public, err := made.OutPublic.Contents()
	if err != nil {
		return nil, err
	}
	saved, err := tpm2.ContextSave{SaveHandle: made.ObjectHandle}.Execute(c)
	if err != nil {
		return nil, err
	}
	return &endorsement{public: *public, name: made.Name, saved: &saved.Context}, nil
}

// loadEK makes the EK usable and returns its handle and how to release it. A derived EK takes an object slot until then.
func (c *conn) loadEK() (e *endorsement, h tpm2.TPMHandle, release func(), err error) {
	if e, err = c.endorsement(); err != nil {
		return nil, 0, nil, err
	}
	if e.persistent != 0 {
		return e, e.persistent, func() {}, nil
	}
	loaded, err := tpm2.ContextLoad{Context: *e.saved}.Execute(c)
	if err != nil {
		c.tpm.ek = nil // the TPM restarted: the next operation derives it again
		return nil, 0, nil, fmt.Errorf("load the EK: %w", err)
	}
	h = tpm2.TPMHandle(loaded.LoadedHandle)
	return e, h, func() { c.flush(h) }, nil
}

// Info reads what the TPM says of itself and every EK that it shows: persistent ones and those with a certificate in NV.
func (t *TPM) Info(ctx context.Context) (Info, error) {
	return value(ctx, t, "describe", (*conn).describe)
}

func (c *conn) describe() (Info, error) {
	var words [7]uint32
	for i, p := range []tpm2.TPMPT{tpm2.TPMPTManufacturer, tpm2.TPMPTVendorString1, tpm2.TPMPTVendorString2,
		tpm2.TPMPTVendorString3, tpm2.TPMPTVendorString4, tpm2.TPMPTFirmwareVersion1, tpm2.TPMPTFirmwareVersion2} {
		var err error
		if words[i], err = c.property(p); err != nil {
			return Info{}, err
		}
	}
	var model strings.Builder
	for _, w := range words[1:5] {
		for shift := 24; shift >= 0; shift -= 8 {
			if b := byte(w >> shift); b >= 0x20 && b < 0x7f {
				model.WriteByte(b)
			}
		}
	}
	info := Info{Manufacturer: fmt.Sprint(words[0]), Model: strings.TrimSpace(model.String()),
		Firmware: fmt.Sprintf("%d.%d", words[5], words[6])}
	e, err := c.endorsement()
	if err != nil {
		return Info{}, err
	}
	info.add(e.ek.Public, uint32(e.persistent))
	return info, c.otherEKs(&info)
}

// otherEKs adds the EKs that other handles and certificates show. One that cannot be read is skipped: this is a description.
func (c *conn) otherEKs(info *Info) error {
	handles, err := c.handles(persistentEKs)
	if err != nil {
		return err
	}
	for _, h := range handles {
		answer, err := tpm2.ReadPublic{ObjectHandle: h}.Execute(c)
		if err != nil {
			continue
		}
		public, err := answer.OutPublic.Contents()
		if err != nil || !public.ObjectAttributes.Restricted || !public.ObjectAttributes.Decrypt || uint32(h) >= 0x81020000 {
			continue
		}
		if der, err := pkix(public); err == nil {
			info.add(der, uint32(h))
		}
	}
	indices, err := c.handles(nvCertificates)
	if err != nil {
		return err
	}
	for _, h := range indices {
		if uint32(h) >= firstChain { // chains; platform certificates and what the owner defined
			continue
		}
		der, err := c.certificate(uint32(h))
		if err != nil || der == nil {
			continue
		}
		if cert, err := x509.ParseCertificate(der); err == nil && !cert.IsCA {
			if public := verify.CertifiedKey(cert); public != nil {
				info.add(public, uint32(h))
			}
		}
	}
	return nil
}

func (i *Info) add(der []byte, where uint32) {
	hash := sha256.Sum256(der)
	for _, known := range i.EKs {
		if known.Hash == hash {
			return
		}
	}
	i.EKs = append(i.EKs, EKInfo{Hash: hash, Algorithm: verify.KeyAlgorithm(der), Where: where})
}

// pkix is the PKIX DER of a TPM public area.
func pkix(public *tpm2.TPMTPublic) ([]byte, error) {
	key, err := tpm2.Pub(*public)
	if err != nil {
		return nil, err
	}
	return x509.MarshalPKIXPublicKey(key)
}
