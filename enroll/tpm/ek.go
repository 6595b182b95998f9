package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"wardlink/enroll/verify"
)

// Where the RSA-2048 EK and its certificate live (TCG EK Credential Profile for TPM 2.0, 2.6, tables 2 and 3).
const (
	rsaEKHandle      = 0x81010001
	rsaEKCertificate = 0x01C00002
	maxCertificate   = 8 << 10 // bytes of one NV index; real EK certificates have 0.7 to 2 KB
)

// EK is the endorsement key that enrolment uses: RSA-2048, because every TPM has one and stock tools look at no other.
type EK struct {
	Public      []byte   // PKIX DER
	Hash        [32]byte // SHA-256 of Public
	Certificate []byte   // DER as unwrapped from NV; nil when the TPM holds none that belongs to this key
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

// endorsement finds the RSA EK: the persistent one if it has the standard template and agrees with the certificate, else a
// derived one.
func (c *conn) endorsement() (*endorsement, error) {
	if c.tpm.ek != nil {
		return c.tpm.ek, nil
	}
	certificate, err := c.certificate(rsaEKCertificate)
	if err != nil {
		return nil, err
	}
	e := &endorsement{persistent: rsaEKHandle}
	answer, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(rsaEKHandle)}.Execute(c)
	if err == nil {
		public, err := answer.OutPublic.Contents()
		if err != nil {
			return nil, err
		}
		e.public, e.name = *public, answer.Name
	}
	if err != nil || !isRSAEK(&e.public) || !e.describe(certificate) {
		if e, err = c.deriveEK(); err != nil {
			return nil, fmt.Errorf("derive the EK: %w", err)
		}
		e.describe(certificate)
	}
	// OpenKeys compares with the key files once. A reading after a restart of the TPM must not bring in another EK behind its back,
	// to which the sessions would then be salted.
	if c.tpm.pinned == nil {
		c.tpm.pinned = &e.ek.Hash
	} else if *c.tpm.pinned != e.ek.Hash {
		return nil, fmt.Errorf("the EK is another one than before: %w", ErrForeign)
	}
	c.tpm.ek = e
	return e, nil
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
	if cert, err := x509.ParseCertificate(certificate); err == nil {
		if of, err := x509.MarshalPKIXPublicKey(cert.PublicKey); err != nil || !bytes.Equal(of, der) {
			return false
		}
	}
	e.ek.Certificate = certificate // one that Go cannot read is the server's to judge
	return true
}

func isRSAEK(p *tpm2.TPMTPublic) bool {
	return p.Type == tpm2.TPMAlgRSA && p.NameAlg == tpm2.TPMAlgSHA256 &&
		p.ObjectAttributes == tpm2.RSAEKTemplate.ObjectAttributes &&
		bytes.Equal(p.AuthPolicy.Buffer, tpm2.RSAEKTemplate.AuthPolicy.Buffer)
}

// deriveEK makes the EK from the endorsement seed and keeps it as a saved context, since deriving an RSA key takes seconds on a real TPM.
func (c *conn) deriveEK() (*endorsement, error) {
	made, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(tpm2.RSAEKTemplate),
	}.Execute(c)
	if err != nil {
		return nil, err
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

// certificate reads an EK certificate from NV, nil when the index does not exist.
func (c *conn) certificate(index uint32) ([]byte, error) {
	public, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(index)}.Execute(c)
	if errors.Is(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("NV index %#x: %w", index, err)
	}
	nv, err := public.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	if nv.DataSize > maxCertificate {
		return nil, fmt.Errorf("NV index %#x: %d bytes; an EK certificate has at most %d", index, nv.DataSize, maxCertificate)
	}
	chunk, err := c.property(tpm2.TPMPTNVBufferMax)
	if err != nil {
		return nil, err
	}
	if chunk == 0 || chunk > 1024 {
		chunk = 1024 // larger answers may not fit the response buffer
	}
	named := tpm2.NamedHandle{Handle: tpm2.TPMHandle(index), Name: public.NVName}
	auth := tpm2.AuthHandle{Handle: named.Handle, Name: named.Name, Auth: tpm2.PasswordAuth(nil)}
	if !nv.Attributes.AuthRead {
		auth = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	}
	var data []byte
	for len(data) < int(nv.DataSize) {
		part, err := tpm2.NVRead{AuthHandle: auth, NVIndex: named, Offset: uint16(len(data)),
			Size: uint16(min(int(chunk), int(nv.DataSize)-len(data)))}.Execute(c)
		if err != nil {
			return nil, fmt.Errorf("NV index %#x: %w", index, err)
		}
		if len(part.Data.Buffer) == 0 {
			return nil, fmt.Errorf("NV index %#x: the TPM answers with no data", index)
		}
		data = append(data, part.Data.Buffer...)
	}
	der, err := verify.UnwrapCertificate(data)
	if err != nil {
		return nil, nil // an index that holds something else is no certificate; the registry's pin decides then
	}
	return der, nil
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
		if uint32(h) >= 0x01C08000 { // platform certificates and what the owner defined
			continue
		}
		der, err := c.certificate(uint32(h))
		if err != nil || der == nil {
			continue
		}
		if cert, err := x509.ParseCertificate(der); err == nil {
			if public, err := x509.MarshalPKIXPublicKey(cert.PublicKey); err == nil {
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
