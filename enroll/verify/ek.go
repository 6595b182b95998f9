package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

var (
	oidSubjectAltName             = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidSubjectDirectoryAttributes = asn1.ObjectIdentifier{2, 5, 29, 9}
	oidRSAESOAEP                  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	// TPM description in certificates (TCG EK Credential Profile 2.6, 3.1.2).
	oidManufacturer = asn1.ObjectIdentifier{2, 23, 133, 2, 1}
	oidModel        = asn1.ObjectIdentifier{2, 23, 133, 2, 2}
	oidVersion      = asn1.ObjectIdentifier{2, 23, 133, 2, 3}
)

// UnwrapCertificate finds the DER certificate in what an NV index holds: some TPMs put the TCG header 10 01 00 and a 16-bit length
// before it (TCG PC Client Specific Implementation 1.21, 7.3.2), some pad it with 00 or FF to the size of the index.
func UnwrapCertificate(nv []byte) ([]byte, error) {
	if len(nv) >= 5 && bytes.Equal(nv[:3], []byte{0x10, 0x01, 0x00}) {
		n := int(binary.BigEndian.Uint16(nv[3:5]))
		if n > len(nv)-5 {
			return nil, errors.New("EK certificate: its TCG header claims more bytes than there are")
		}
		nv = nv[5 : 5+n]
	}
	if len(nv) == 0 || nv[0] != 0x30 {
		return nil, errors.New("EK certificate: not a DER sequence")
	}
	var der asn1.RawValue
	if _, err := asn1.Unmarshal(nv, &der); err != nil {
		return nil, fmt.Errorf("EK certificate: %w", err)
	}
	return der.FullBytes, nil
}

// SplitCertificates finds the DER certificates in a text of them, at most n, with padding of 00 or FF between them. It ends at what is neither.
func SplitCertificates(text []byte, n int) (found [][]byte) {
	for len(found) < n {
		text = bytes.TrimLeft(text, "\x00\xff")
		var der asn1.RawValue
		rest, err := asn1.Unmarshal(text, &der)
		if err != nil || text[0] != 0x30 {
			break
		}
		found, text = append(found, der.FullBytes), rest
	}
	return found
}

// CertifiedKey is the PKIX DER of the key that a certificate certifies, in our own encoding; nil when nobody here knows its kind. Some makers
// certify an RSA EK under the algorithm RSAES-OAEP (RFC 4055, 4.1), which crypto/x509 does not know: it is the same key.
func CertifiedKey(cert *x509.Certificate) []byte {
	key := cert.PublicKey
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(cert.RawSubjectPublicKeyInfo, &info); err == nil && info.Algorithm.Algorithm.Equal(oidRSAESOAEP) {
		if oaep, err := x509.ParsePKCS1PublicKey(info.Key.RightAlign()); err == nil {
			key = oaep
		}
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil
	}
	return der
}

// KeyAlgorithm names the algorithm of a PKIX public key for humans, such as "RSA-2048" or "P-384".
func KeyAlgorithm(der []byte) string {
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return "unknown"
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return k.Params().Name
	}
	return "unknown"
}

// ekTemplate rebuilds the public area of the EK from its key: name algorithm and symmetric cipher take part in the encryption of the
// challenge, and only the standard templates say which they are.
func ekTemplate(key crypto.PublicKey) (tpm2.TPMTPublic, error) {
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() != 2048 || k.E != 65537 {
			return tpm2.TPMTPublic{}, ErrEK
		}
		t := tpm2.RSAEKTemplate
		t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
		return t, nil
	case *ecdsa.PublicKey:
		t := tpm2.ECCEKTemplate
		switch k.Curve {
		case elliptic.P256():
		case elliptic.P384(): // template H-3: SHA-384 names, AES-256
			t.NameAlg = tpm2.TPMAlgSHA384
			t.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP384,
				Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgAES,
					KeyBits: tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(256)),
					Mode:    tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB)}})
		default:
			return tpm2.TPMTPublic{}, ErrEK
		}
		point, err := k.Bytes() // 04 || X || Y
		if err != nil {         // cannot fail: a key that was parsed is a point of its curve
			return tpm2.TPMTPublic{}, ErrEK
		}
		half := (len(point) - 1) / 2
		t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+half]}, Y: tpm2.TPM2BECCParameter{Buffer: point[1+half:]}})
		return t, nil
	}
	return tpm2.TPMTPublic{}, ErrEK
}

// describe takes the TPM's words, in the notation of certificates: "id:" and eight hex digits of the manufacturer.
func (v *Verified) describe(info TPMInfo) {
	v.Manufacturer = "id:00000000"
	if n, err := strconv.ParseUint(info.Manufacturer, 10, 32); err == nil {
		v.Manufacturer = fmt.Sprintf("id:%08X", n)
	}
	v.Model = printable(info.Model)
	v.Version = printable(info.FirmwareVersion)
}

// describeBy takes the maker's words, where the certificate has them.
func (v *Verified) describeBy(cert *x509.Certificate) {
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		for _, a := range directoryNames(ext.Value) {
			text, ok := a.Value.(string)
			if !ok || text == "" {
				continue
			}
			switch {
			case a.Type.Equal(oidManufacturer):
				v.Manufacturer = printable(text)
			case a.Type.Equal(oidModel):
				v.Model = printable(text)
			case a.Type.Equal(oidVersion):
				v.Version = printable(text)
			}
		}
	}
}

// directoryNames lists the attributes of a SubjectAltName's directory names (RFC 5280, 4.2.1.6); what it cannot read it leaves out.
func directoryNames(san []byte) []pkix.AttributeTypeAndValue {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(san, &names); err != nil || len(rest) != 0 {
		return nil
	}
	var out []pkix.AttributeTypeAndValue
	for _, n := range names {
		if n.Class != asn1.ClassContextSpecific || n.Tag != 4 {
			continue
		}
		var rdns pkix.RDNSequence
		if _, err := asn1.Unmarshal(n.Bytes, &rdns); err != nil {
			continue
		}
		for _, rdn := range rdns {
			out = append(out, rdn...)
		}
	}
	return out
}

// printable keeps printable ASCII, at most maxText of it, and never returns an empty text: AK certificates want all three words.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if r >= 0x20 && r < 0x7f && b.Len() < maxText {
			b.WriteRune(r)
		}
	}
	if text := strings.TrimSpace(b.String()); text != "" {
		return text
	}
	return "unknown"
}
