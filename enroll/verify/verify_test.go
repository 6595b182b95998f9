package verify_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
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

// newForge is an attestation by an AK in software, which is what an attacker without a TPM has. It passes every check but the
// challenge, which only a TPM answers.
func newForge(t *testing.T) *forge {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
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
			other, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				f.t.Fatal(err)
			}
			f.key = other
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

func TestTrailingBytesAreRefused(t *testing.T) {
	r := request(t)
	r.AttestParams.Public = append(r.AttestParams.Public, 0)
	if _, err := verify.Attestation(r, trust(t), within(t)); !errors.Is(err, verify.ErrAKPublic) {
		t.Errorf("behind the public area: %v", err)
	}
	f := newForge(t)
	f.creation()
	r = f.request()
	r.AttestParams.CreateAttestation = append(r.AttestParams.CreateAttestation, 0)
	r.AttestParams.CreateSignature = f.sign(r.AttestParams.CreateAttestation)
	if _, err := verify.Attestation(r, trust(t), within(t)); !errors.Is(err, verify.ErrAttest) {
		t.Errorf("behind the attestation: %v", err)
	}
}

func TestEndorsement(t *testing.T) {
	verdict := func(t *testing.T, change func(*verify.Request), by verify.Trust, now time.Time) (*verify.Verified, error) {
		t.Helper()
		r := request(t)
		change(r)
		return verify.Attestation(r, by, now)
	}
	whole := trust(t)
	now := within(t)
	same := func(*verify.Request) {}

	if _, err := verdict(t, func(r *verify.Request) { r.EK = []byte("ek") }, whole, now); !errors.Is(err, verify.ErrEK) {
		t.Errorf("junk for an EK: %v", err)
	}
	for _, bits := range []int{3072} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verdict(t, func(r *verify.Request) { r.EK, r.EKCerts = der, nil }, whole, now); !errors.Is(err, verify.ErrEK) {
			t.Errorf("an RSA-%d EK: %v", bits, err)
		}
	}
	p384, err := verify.UnwrapCertificate(readFile(t, "nv-p384.der"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verdict(t, func(r *verify.Request) { r.EKCerts = [][]byte{p384} }, whole, now); !errors.Is(err, verify.ErrEKCert) {
		t.Errorf("the certificate of the TPM's other EK: %v", err)
	}
	for name, row := range map[string]struct {
		change func(*verify.Request)
		trust  verify.Trust
		now    time.Time
	}{
		"no certificate":     {func(r *verify.Request) { r.EKCerts = nil }, whole, now},
		"an unknown maker":   {same, verify.Trust{Roots: x509.NewCertPool(), Intermediates: whole.Intermediates}, now},
		"no trusted maker":   {same, verify.Trust{}, now},
		"no intermediate":    {same, verify.Trust{Roots: whole.Roots}, now},
		"not yet valid":      {same, whole, now.Add(-100 * 24 * time.Hour)},
		"unreadable":         {func(r *verify.Request) { r.EKCerts = [][]byte{[]byte("certificate")} }, whole, now},
		"a cut certificate":  {func(r *verify.Request) { r.EKCerts[0] = r.EKCerts[0][:300] }, whole, now},
		"a broken signature": {func(r *verify.Request) { r.EKCerts[0][len(r.EKCerts[0])-1] ^= 1 }, whole, now},
	} {
		v, err := verdict(t, row.change, row.trust, row.now)
		if err != nil || v.Chain || v.ChainErr == nil {
			t.Errorf("%s: %v, chain %v", name, err, v)
		} else if v.Manufacturer == "" || v.Model == "" || v.Version == "" {
			t.Errorf("%s: the TPM is not described: %+v", name, v)
		}
	}
	if v, err := verdict(t, same, verify.Trust{}, now); err != nil || v.ChainErr != verify.ErrNoTrust {
		t.Errorf("without trust the system's roots are asked: %v %v", v, err)
	}
	// The ECC EK is as good: its challenge can be made.
	cert, err := x509.ParseCertificate(p384)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(cert.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	v, err := verdict(t, func(r *verify.Request) { r.EK, r.EKCerts = der, [][]byte{p384} }, whole, now)
	if err != nil || !v.Chain {
		t.Fatalf("P-384: %v %v", v, err)
	}
	if _, err := v.Seal(rand.Reader, make([]byte, 32)); err != nil {
		t.Error(err)
	}
}

// A certificate of the maker's CA that is not for an EK does not make one.
func TestUsageIsChecked(t *testing.T) {
	platform := readFile(t, "not-ek.der")
	cert, err := x509.ParseCertificate(platform)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(cert.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	r := request(t)
	r.EK, r.EKCerts = der, [][]byte{platform}
	v, err := verify.Attestation(r, verify.Trust{Roots: pool}, cert.NotBefore.Add(time.Hour))
	if err != nil || v.Chain || !strings.Contains(v.ChainErr.Error(), "2.23.133.8.1") {
		t.Errorf("%v, chain %+v", err, v)
	}
}

func TestUnwrapCertificate(t *testing.T) {
	der := request(t).EKCerts[0]
	header := append([]byte{0x10, 0x01, 0x00, byte(len(der) >> 8), byte(len(der))}, der...)
	for name, nv := range map[string][]byte{
		"bare":                der,
		"padded with FF":      append(bytes.Clone(der), bytes.Repeat([]byte{0xff}, 500)...),
		"padded with 00":      append(bytes.Clone(der), make([]byte, 500)...),
		"TCG header":          header,
		"TCG header, padding": append(bytes.Clone(header), bytes.Repeat([]byte{0xff}, 9)...),
	} {
		got, err := verify.UnwrapCertificate(nv)
		if err != nil || !bytes.Equal(got, der) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	for name, nv := range map[string][]byte{
		"nothing": nil, "only padding": bytes.Repeat([]byte{0xff}, 100), "cut": der[:len(der)-1], "header lies": header[:len(header)-1],
		"not a sequence": {0x04, 0x02, 1, 2},
	} {
		if _, err := verify.UnwrapCertificate(nv); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestRequestIsBounded(t *testing.T) {
	for name, change := range map[string]func(*verify.Request){
		"certificates":       func(r *verify.Request) { r.EKCerts = make([][]byte, 5) },
		"a long certificate": func(r *verify.Request) { r.EKCerts[0] = make([]byte, 9<<10) },
		"a long structure":   func(r *verify.Request) { r.AttestParams.Public = make([]byte, 3<<10) },
		"TPM 1.2":            func(r *verify.Request) { r.TPMInfo.Version = 1 },
	} {
		r := request(t)
		change(r)
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verify.ParseRequest(data); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := verify.ParseRequest(make([]byte, verify.MaxRequest+1)); err == nil {
		t.Error("a long request: no error")
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

func FuzzUnwrapCertificate(f *testing.F) {
	f.Add(request(f).EKCerts[0])
	f.Add(readFile(f, "nv-p384.der"))
	f.Add([]byte{0x10, 0x01, 0x00, 0x00, 0x02, 0x30, 0x00, 0xff})
	f.Fuzz(func(t *testing.T, nv []byte) {
		der, err := verify.UnwrapCertificate(nv)
		if err == nil && !bytes.Contains(nv, der) {
			t.Fatal("the certificate is not in the index")
		}
	})
}
