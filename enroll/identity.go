package enroll

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"wardlink/enroll/tpm"
	"wardlink/internal/durable"
	"wardlink/internal/spiffe"
)

const (
	chainFile = "identity.pem"
	maxChain  = 64 << 10
)

// newIdentity reads a chain that belongs to the device key.
func newIdentity(device *tpm.Signer, chain [][]byte) (*Identity, error) {
	certificate, err := device.Certificate(chain)
	if err != nil {
		return nil, err
	}
	id, err := spiffe.FromCertificate(certificate.Leaf)
	if err != nil {
		return nil, err
	}
	if id.Kind != spiffe.Gateway {
		return nil, fmt.Errorf("certificate of %s: expected a gateway's", id)
	}
	return &Identity{Gateway: id.Name, ID: id, Certificate: certificate,
		NotBefore: certificate.Leaf.NotBefore, NotAfter: certificate.Leaf.NotAfter}, nil
}

// store keeps the chain durably: it is what makes this an enrolled gateway.
func (e *Enroller) store(chain [][]byte) error {
	var out bytes.Buffer
	for _, der := range chain {
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return err
		}
	}
	return durable.WriteFile(filepath.Join(e.cfg.Dir, chainFile), out.Bytes(), 0o644)
}

// stored reads the kept chain, ErrNone when there is none. What it cannot read comes back as an empty chain, which fits no key.
func (e *Enroller) stored() ([][]byte, error) {
	path := filepath.Join(e.cfg.Dir, chainFile)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, err
	}
	if info.Size() > maxChain {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseChain(data), nil
}

// Chain reads the certificate that is kept in a state directory, leaf first, without TPM or network: for those who only want to know
// what it says. ErrNone when there is none. Nothing of it is verified.
func Chain(dir string) ([]*x509.Certificate, error) {
	ders, err := (&Enroller{cfg: Config{Dir: dir}}).stored()
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, chainFile), err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("%s: it holds no certificate", filepath.Join(dir, chainFile))
	}
	return chain, nil
}

// parseChain reads PEM certificates, in order. What is left of a file that was cut is none: its leaf may be whole and what vouches for it
// missing, and it would be shown in vain until it ends.
func parseChain(data []byte) [][]byte {
	var chain [][]byte
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type == "CERTIFICATE" {
			chain = append(chain, block.Bytes)
		}
		data = rest
	}
	if len(bytes.TrimSpace(data)) > 0 {
		return nil
	}
	return chain
}
