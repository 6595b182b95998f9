package verify_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"wardlink/enroll/verify"
)

// testdata/request.json is a request that the agent's code made on an swtpm whose maker's CA is testdata/root.pem and issuer.pem;
// nv-p384.der is the content of that TPM's NV index of its P-384 EK certificate. go test ./enroll/tpm -make-testdata writes them anew.

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func request(t testing.TB) *verify.Request {
	t.Helper()
	r, err := verify.ParseRequest(readFile(t, "request.json"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func trust(t testing.TB) verify.Trust {
	t.Helper()
	pool := func(name string) *x509.CertPool {
		p := x509.NewCertPool()
		if !p.AppendCertsFromPEM(readFile(t, name)) {
			t.Fatalf("%s holds no certificate", name)
		}
		return p
	}
	return verify.Trust{Roots: pool("root.pem"), Intermediates: pool("issuer.pem")}
}

// within is a time at which the recorded certificates are valid.
func within(t testing.TB) time.Time {
	t.Helper()
	cert, err := x509.ParseCertificate(request(t).EKCerts[0])
	if err != nil {
		t.Fatal(err)
	}
	return cert.NotBefore.Add(time.Hour)
}

func TestGenuineAttestation(t *testing.T) {
	v, err := verify.Attestation(request(t), trust(t), within(t))
	if err != nil {
		t.Fatal(err)
	}
	if !v.Chain || v.ChainErr != nil {
		t.Errorf("chain: %v", v.ChainErr)
	}
	if v.EK != sha256.Sum256(request(t).EK) || v.Manufacturer != "id:00001014" || v.Model != "swtpm" || !strings.HasPrefix(v.Version, "id:") {
		t.Errorf("verified: %+v", v)
	}
	if _, err := v.Seal(rand.Reader, make([]byte, 32)); err != nil {
		t.Error(err)
	}
}

// forge is a genuine request with a change, and with the AK's own signature over it: only the check that the change is for notices.
type forge struct {
	t      *testing.T
	key    *rsa.PrivateKey
	public tpm2.TPMTPublic
	attest tpm2.TPMSAttest
	data   []byte
	sign   func([]byte) []byte
}

// softKey is one of the two RSA keys of testdata/soft.pem, which are secret to nobody: making keys would take most of these tests' time, and
// make mutate runs them once for each check.
func softKey(t testing.TB, n int) *rsa.PrivateKey {
	t.Helper()
	rest := readFile(t, "soft.pem")
	var block *pem.Block
	for range n + 1 {
		if block, rest = pem.Decode(rest); block == nil {
			t.Fatalf("testdata/soft.pem: no key %d", n)
		}
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

// newForge is an attestation by an AK in software, which is what an attacker without a TPM has. It passes every check but the
// challenge, which only a TPM answers.
func newForge(t *testing.T) *forge {
	t.Helper()
	key := softKey(t, 0)
	f := &forge{t: t, key: key, data: request(t).AttestParams.CreateData}
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](request(t).AttestParams.Public)
	if err != nil {
		t.Fatal(err)
	}
	f.public = *public
	f.public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: key.N.Bytes()})
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](request(t).AttestParams.CreateAttestation)
	if err != nil {
		t.Fatal(err)
	}
	f.attest = *attest
	f.sign = func(message []byte) []byte {
		sum := sha256.Sum256(message)
		sig, err := rsa.SignPKCS1v15(nil, f.key, crypto.SHA256, sum[:])
		if err != nil {
			t.Fatal(err)
		}
		return tpm2.Marshal(signature(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256, sig))
	}
	return f
}

func signature(alg tpm2.TPMAlgID, hash tpm2.TPMIAlgHash, sig []byte) tpm2.TPMTSignature {
	return tpm2.TPMTSignature{SigAlg: alg, Signature: tpm2.NewTPMUSignature(alg, &tpm2.TPMSSignatureRSA{Hash: hash, Sig: tpm2.TPM2BPublicKeyRSA{Buffer: sig}})}
}

// creation fills in the attested creation of the AK as it is now.
func (f *forge) creation() *tpm2.TPMSCreationInfo {
	f.t.Helper()
	name, err := tpm2.ObjectName(&f.public)
	if err != nil {
		f.t.Fatal(err)
	}
	sum := sha256.Sum256(f.data)
	info := &tpm2.TPMSCreationInfo{ObjectName: *name, CreationHash: tpm2.TPM2BDigest{Buffer: sum[:]}}
	f.attest.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, info)
	return info
}

func (f *forge) request() *verify.Request {
	r := request(f.t)
	attest := tpm2.Marshal(f.attest)
	r.AttestParams = verify.Params{Public: tpm2.Marshal(f.public), CreateData: f.data, CreateAttestation: attest, CreateSignature: f.sign(attest)}
	return r
}

// Each row breaks one thing, and everything else, signature included, is right: only that row's check refuses it.
func TestEachCheckStandsAlone(t *testing.T) {
	attribute := func(change func(*tpm2.TPMAObject)) func(*forge) {
		return func(f *forge) { change(&f.public.ObjectAttributes); f.creation() }
	}
	rows := map[string]struct {
		change func(*forge)
		want   error
	}{
		"a software key (only the challenge stops it)": {func(f *forge) { f.creation() }, nil},
		"duplicable to another TPM":                    {attribute(func(a *tpm2.TPMAObject) { a.FixedTPM = false }), verify.ErrFixedTPM},
		"duplicable under another parent":              {attribute(func(a *tpm2.TPMAObject) { a.FixedParent = false }), verify.ErrFixedParent},
		"imported":                                     {attribute(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false }), verify.ErrOrigin},
		"signs anything":                               {attribute(func(a *tpm2.TPMAObject) { a.Restricted = false }), verify.ErrRestricted},
		"does not sign":                                {attribute(func(a *tpm2.TPMAObject) { a.SignEncrypt = false }), verify.ErrSign},
		"decrypts":                                     {attribute(func(a *tpm2.TPMAObject) { a.Decrypt = true }), verify.ErrDecrypt},
		"named by SHA-384":                             {func(f *forge) { f.public.NameAlg = tpm2.TPMAlgSHA384; f.creation() }, verify.ErrAKAlgorithm},
		"of another kind":                              {func(f *forge) { f.public = ecc(); f.creation() }, verify.ErrAKAlgorithm},
		"too long":                                     {modulus(new(big.Int).SetBit(big.NewInt(1), 4096, 1)), verify.ErrAKAlgorithm},
		"an even modulus":                              {modulus(new(big.Int).Lsh(big.NewInt(1), 2047)), verify.ErrAKAlgorithm},
		"an exponent of 3": {func(f *forge) {
			parms, err := f.public.Parameters.RSADetail()
			if err != nil {
				f.t.Fatal(err)
			}
			changed := *parms
			changed.Exponent = 3
			f.public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &changed)
			f.creation()
		}, verify.ErrAKAlgorithm},
		"no signature": {func(f *forge) { f.creation(); f.sign = func([]byte) []byte { return nil } }, verify.ErrSigFormat},
		"signs with PSS": {func(f *forge) {
			f.scheme(tpm2.TPMAlgRSAPSS, tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAPSS, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: tpm2.TPMAlgSHA256}))
			f.creation()
		}, verify.ErrAKScheme},
		"signs SHA-1": {func(f *forge) {
			f.scheme(tpm2.TPMAlgRSASSA, tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA1}))
			f.creation()
		}, verify.ErrAKScheme},
		"other creation data": {func(f *forge) { f.creation(); f.data = append(bytes.Clone(f.data), 0) }, verify.ErrCreation},
		"another key's creation": {func(f *forge) {
			f.creation().ObjectName = tpm2.TPM2BName{Buffer: make([]byte, 34)}
		}, verify.ErrName},
		"a quote": {func(f *forge) {
			f.attest.Type = tpm2.TPMSTAttestQuote
			f.attest.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{})
		}, verify.ErrAttestType},
		"made by software": {func(f *forge) { f.creation(); f.attest.Magic = 0x41414141 }, verify.ErrMagic},
		"signed by another key": {func(f *forge) {
			f.creation()
			f.key = softKey(f.t, 1)
		}, verify.ErrSignature},
		"a signature of another kind": {func(f *forge) {
			f.creation()
			f.sign = func([]byte) []byte {
				return tpm2.Marshal(signature(tpm2.TPMAlgRSAPSS, tpm2.TPMAlgSHA256, make([]byte, 256)))
			}
		}, verify.ErrSigFormat},
		"a signature over SHA-1": {func(f *forge) {
			f.creation()
			right := f.sign
			f.sign = func(m []byte) []byte { // the bytes are right, the label is not
				s, err := tpm2.Unmarshal[tpm2.TPMTSignature](right(m))
				if err != nil {
					f.t.Fatal(err)
				}
				rsassa, err := s.Signature.RSASSA()
				if err != nil {
					f.t.Fatal(err)
				}
				return tpm2.Marshal(signature(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA1, rsassa.Sig.Buffer))
			}
		}, verify.ErrSigFormat},
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			f := newForge(t)
			row.change(f)
			if _, err := verify.Attestation(f.request(), trust(t), within(t)); !errors.Is(err, row.want) {
				t.Errorf("%v; expected %v", err, row.want)
			}
		})
	}
}

// modulus has another RSA key in the public area's place.
func modulus(n *big.Int) func(*forge) {
	return func(f *forge) {
		f.public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: n.Bytes()})
		f.creation()
	}
}

// ecc is a restricted signing key of P-256.
func ecc() tpm2.TPMTPublic {
	public := tpm2.ECCEKTemplate
	public.ObjectAttributes = tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true}
	return public
}

func TestShortAK(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	weak := newForge(t)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak.key = small
	weak.public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: small.N.Bytes()})
	weak.creation()
	if _, err := verify.Attestation(weak.request(), trust(t), within(t)); !errors.Is(err, verify.ErrAKAlgorithm) {
		t.Errorf("an AK of 1024 bits: %v", err)
	}
}

func (f *forge) scheme(alg tpm2.TPMAlgID, details tpm2.TPMUAsymScheme) {
	f.public.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA,
		&tpm2.TPMSRSAParms{KeyBits: 2048, Scheme: tpm2.TPMTRSAScheme{Scheme: alg, Details: details}})
}

// What is no TPM structure, or more than one, is refused before anything is read off it.
func TestStructuresAreWhole(t *testing.T) {
	for name, spoil := range map[string]func([]byte) []byte{
		"bytes behind it": func(b []byte) []byte { return append(b, 0) }, "cut": func(b []byte) []byte { return b[:len(b)-1] }, "none": func([]byte) []byte { return nil },
	} {
		f := newForge(t)
		f.creation()
		r := f.request()
		r.AttestParams.Public = spoil(r.AttestParams.Public)
		if _, err := verify.Attestation(r, trust(t), within(t)); !errors.Is(err, verify.ErrAKPublic) {
			t.Errorf("the public area, %s: %v", name, err)
		}
		r = f.request()
		r.AttestParams.CreateAttestation = spoil(r.AttestParams.CreateAttestation)
		r.AttestParams.CreateSignature = f.sign(r.AttestParams.CreateAttestation)
		if _, err := verify.Attestation(r, trust(t), within(t)); !errors.Is(err, verify.ErrAttest) {
			t.Errorf("the attestation, %s: %v", name, err)
		}
	}
}

// Whatever a stranger sends is refused or judged; nothing panics.
func FuzzAttestation(f *testing.F) {
	f.Add(readFile(f, "request.json"))
	f.Add([]byte("{}"))
	by, now := trust(f), within(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := verify.ParseRequest(data)
		if err != nil {
			return
		}
		v, err := verify.Attestation(r, by, now)
		if (v == nil) == (err == nil) {
			t.Fatalf("verdict %v with error %v", v, err)
		}
	})
}

// The TPM structures are reached without JSON and base64 in the way.
func FuzzStructures(f *testing.F) {
	p := request(f).AttestParams
	f.Add(p.Public, p.CreateData, p.CreateAttestation, p.CreateSignature)
	r, by, now := request(f), trust(f), within(f)
	f.Fuzz(func(t *testing.T, public, data, attest, sig []byte) {
		forged := *r
		forged.AttestParams = verify.Params{Public: public, CreateData: data, CreateAttestation: attest, CreateSignature: sig}
		if v, err := verify.Attestation(&forged, by, now); err == nil && !bytes.Equal(public, p.Public) {
			t.Fatalf("a forged key passed: %+v", v)
		}
	})
}
