package ca

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-tpm/tpm2"
)

// The payload of a challenge has passed smallstep's parser when ours sees it; ours must not rely on that. The seed is the payload of
// a real enrolment.
func FuzzParseAttestation(f *testing.F) {
	seed, err := os.ReadFile(filepath.Join("testdata", "payload.json"))
	if err != nil {
		f.Fatal(err)
	}
	if _, err := parseAttestation(seed); err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"attObj":"oA"}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		a, err := parseAttestation(payload)
		if (err == nil) != (a != nil && a.ak != nil) {
			t.Fatal("neither a result nor an error")
		}
	})
}

// What smallstep would let pass, or judges only by accident, each refused by its own line.
func TestParseAttestation(t *testing.T) {
	seed, err := os.ReadFile(filepath.Join("testdata", "payload.json"))
	if err != nil {
		t.Fatal(err)
	}
	forged := func(change func(object, statement map[string]any)) []byte {
		var outer map[string]string
		if err := json.Unmarshal(seed, &outer); err != nil {
			t.Fatal(err)
		}
		raw, err := base64.RawURLEncoding.DecodeString(outer["attObj"])
		if err != nil {
			t.Fatal(err)
		}
		var object struct {
			Format    string         `cbor:"fmt"`
			Statement map[string]any `cbor:"attStmt"`
		}
		if err := cbor.Unmarshal(raw, &object); err != nil {
			t.Fatal(err)
		}
		whole := map[string]any{"fmt": object.Format, "attStmt": object.Statement}
		change(whole, object.Statement)
		if raw, err = cbor.Marshal(whole); err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(map[string]string{"attObj": base64.RawURLEncoding.EncodeToString(raw)})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	device := func(change func(*tpm2.TPMTPublic)) func(_, s map[string]any) {
		return func(_, s map[string]any) {
			public, err := tpm2.Unmarshal[tpm2.TPMTPublic](s["pubArea"].([]byte))
			if err != nil {
				t.Fatal(err)
			}
			change(public)
			s["pubArea"] = tpm2.Marshal(public)
		}
	}
	for _, algorithm := range []int{rs256, es256} { // our agent's and stock step's
		if _, err := parseAttestation(forged(func(_, s map[string]any) { s["alg"] = algorithm })); err != nil {
			t.Fatal(err)
		}
	}
	for name, row := range map[string]struct {
		words  string
		change func(object, statement map[string]any)
	}{
		"SHA-1":          {"an algorithm with SHA-256", func(_, s map[string]any) { s["alg"] = -65535 }},
		"another format": {"expected format tpm", func(o, _ map[string]any) { o["fmt"] = "apple" }},
		"no certificate": {"expected format tpm", func(_, s map[string]any) { s["x5c"] = [][]byte{} }},
		"a broken one":   {"AK certificate: not DER", func(_, s map[string]any) { s["x5c"] = [][]byte{{0x30}} }},
		"too many":       {"not the CBOR", func(_, s map[string]any) { s["x5c"] = make([][]byte, 17) }},
		"an RSA key":     {"expected ECDSA P-256", device(func(p *tpm2.TPMTPublic) { *p = tpm2.RSAEKTemplate; p.ObjectAttributes.SignEncrypt = true })},
		"P-384": {"expected ECDSA P-256", device(func(p *tpm2.TPMTPublic) {
			ecc, err := p.Parameters.ECCDetail()
			if err != nil {
				t.Fatal(err)
			}
			ecc.CurveID = tpm2.TPMECCNistP384
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, ecc)
		})},
		"no key": {"not a TPMT_PUBLIC", func(_, s map[string]any) { s["pubArea"] = []byte{1, 2} }},
		"a point that is not on the curve": {"not a point of P-256", device(func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte{1}}, Y: tpm2.TPM2BECCParameter{Buffer: []byte{1}}})
		})},
		"a key that cannot sign": {"expected ECDSA P-256", device(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = false })},
	} {
		if _, err := parseAttestation(forged(row.change)); err == nil || !strings.Contains(err.Error(), row.words) {
			t.Errorf("%s: %v; expected %q", name, err, row.words)
		}
	}
	if _, err := parseAttestation([]byte("7")); err == nil || !strings.Contains(err.Error(), "payload") {
		t.Errorf("no object: %v", err)
	}
}
