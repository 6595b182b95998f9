package tpm

import (
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"wardlink/enroll/verify"
)

// Of NV indices: where certificates' chains lie (TCG EK Credential Profile 2.6, 2.2.1.5), and how much is read.
const (
	firstChain     = 0x01C00100
	lastChain      = 0x01C001FF
	maxCertificate = 8 << 10 // bytes of one NV index; real EK certificates have 0.7 to 2 KB
	maxChain       = 32 << 10
	maxChained     = 6 // certificates; more than any maker has between its root and its TPMs
)

// certificate reads an EK certificate from NV, nil when the index does not exist.
func (c *conn) certificate(index uint32) ([]byte, error) {
	data, err := c.nv(index)
	if err != nil || data == nil {
		return nil, err
	}
	der, err := verify.UnwrapCertificate(data)
	if err != nil {
		return nil, nil // an index that holds something else is no certificate; the registry's pin decides then
	}
	return der, nil
}

// chain reads the certificates of authorities that the TPM holds beside the EK's. They are one text over all indices of their range, in which
// makers leave padding. What cannot be read is left out: the hospital may hold it, too.
func (c *conn) chain() ([][]byte, error) {
	handles, err := c.handles(firstChain)
	if err != nil {
		return nil, err
	}
	var text []byte
	for _, h := range handles {
		if uint32(h) > lastChain || len(text) > maxChain {
			break
		}
		data, err := c.nv(uint32(h))
		if ended := c.ctx.Err(); ended != nil {
			return nil, ended
		}
		if err != nil {
			continue
		}
		text = append(text, data...)
	}
	var found [][]byte
	for _, der := range verify.SplitCertificates(text, maxChained) {
		if cert, err := x509.ParseCertificate(der); err == nil && cert.IsCA && len(der) <= maxCertificate {
			found = append(found, der)
		}
	}
	return found, nil
}

// nv reads the whole of an NV index, nil when it does not exist.
func (c *conn) nv(index uint32) ([]byte, error) {
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
	if !nv.Attributes.AuthRead || !nv.Attributes.NoDA { // a password that is wrong must not count towards the TPM's lockout
		auth = tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	}
	var data []byte
	for len(data) < int(nv.DataSize) {
		part, err := tpm2.NVRead{AuthHandle: auth, NVIndex: named, Offset: uint16(len(data)),
			Size: uint16(min(int(chunk), int(nv.DataSize)-len(data)))}.Execute(c)
		if err != nil && auth.Handle == tpm2.TPMRHOwner {
			err = password("owner", err)
		}
		if err != nil {
			return nil, fmt.Errorf("NV index %#x: %w", index, err)
		}
		if len(part.Data.Buffer) == 0 {
			return nil, fmt.Errorf("NV index %#x: the TPM answers with no data", index)
		}
		data = append(data, part.Data.Buffer...)
	}
	return data, nil
}
