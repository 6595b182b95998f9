package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"math/big"
	"net"
	"net/url"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/smallstep/certificates/acme"
	client "golang.org/x/crypto/acme"

	"wardlink/audit"
	"wardlink/internal/spiffe"
)

// The tests of this file put each check between an attestation and its certificate to the test alone: everything else is right, so nothing else
// refuses. make mutate takes the checks out one by one. They need no TPM emulator.

// issuance is a hospital and a gateway of it that has its AK's certificate.
type issuance struct {
	*hospital
	board *softBoard
	chain [][]byte
	acme  *client.Client
}

func newIssuance(t *testing.T) *issuance {
	t.Helper()
	i := &issuance{hospital: hospitalOf(t, func(c *Config) { c.PerSource = 1 << 20 })}
	i.board = newSoftBoard(t, i.server.URL, i.server.Client())
	i.registry.active[i.board.Hash()] = "gw-1"
	var err error
	if i.chain, err = i.board.Attest(t.Context()); err != nil {
		t.Fatal(err)
	}
	if i.acme, err = i.board.newClient(); err != nil {
		t.Fatal(err)
	}
	if _, err := i.acme.Register(t.Context(), &client.Account{}, client.AcceptTOS); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *issuance) guarded() *guarded {
	return &guarded{Request: i.ca.authority.Load().store.Request(), ca: i.ca}
}

// says expects an ACME refusal with these words, or, behind "fault: ", an error that is no refusal; "" expects none.
func says(t *testing.T, what string, err error, words string) {
	t.Helper()
	var refused *acme.Error
	text, fault := strings.CutPrefix(words, "fault: ")
	switch {
	case words == "" && err == nil:
	case words == "" || err == nil || errors.As(err, &refused) == fault:
		t.Errorf("%s: %v; expected %q", what, err, words)
	case !fault && !strings.Contains(refused.Detail+refused.Err.Error(), text), fault && !strings.Contains(err.Error(), text):
		t.Errorf("%s: %v; expected %q", what, err, words)
	}
}

func TestIssuanceChecksTheAttestation(t *testing.T) {
	i := newIssuance(t)
	ek := i.board.Hash()
	payload, err := i.board.Payload("key authorization", i.chain)
	if err != nil {
		t.Fatal(err)
	}
	nobody, err := i.board.Payload("key authorization", [][]byte{i.withoutEK(t)})
	if err != nil {
		t.Fatal(err)
	}
	right := acme.Challenge{Type: acme.DEVICEATTEST01, Value: "gw-1", Payload: payload}
	r := i.registry
	for _, row := range []struct {
		what   string
		change func(*acme.Challenge)
		want   string
	}{
		{"all is right", func(*acme.Challenge) {}, ""},
		{"another challenge", func(c *acme.Challenge) { c.Type = acme.HTTP01 }, "only device-attest-01"},
		{"no attestation", func(c *acme.Challenge) { c.Payload = []byte("{}") }, "attObj"},
		{"the AK certificate has the gateway's former name", func(c *acme.Challenge) { c.Value, r.active[ek] = "gw-2", "gw-2" }, "not for gw-2"},
		{"the AK certificate names no EK", func(c *acme.Challenge) { c.Payload = nobody }, "does not name its EK"},
		{"an EK that the registry does not know", func(*acme.Challenge) { delete(r.active, ek) }, "does not admit"},
		{"a gateway that is not active", func(*acme.Challenge) { r.blocked[ek] = true }, "does not admit"},
		{"a revoked gateway", func(*acme.Challenge) { r.revoked[ek] = "stolen" }, "revoked by the hospital: stolen"},
		{"a suspended gateway", func(*acme.Challenge) { r.cut[ek] = &CutOffError{Title: "suspended", Reason: "repair"} }, "suspended by the hospital: repair"},
		{"the EK is another gateway's", func(*acme.Challenge) { r.active[ek] = "gw-2" }, "not the gateway gw-1"},
		{"another gateway's that was revoked", func(*acme.Challenge) { r.active[ek], r.revoked[ek] = "gw-2", "secret reason" }, "does not admit"},
		{"another gateway's that is suspended", func(*acme.Challenge) { r.active[ek], r.cut[ek] = "gw-2", &CutOffError{Reason: "secret reason"} }, "does not admit"},
		{"the registry cannot be asked", func(*acme.Challenge) { r.fail = errors.New("locked") }, "fault: registry"},
	} {
		ch := right
		r.set(func() { row.change(&ch) })
		_, err := i.guarded().judge(t.Context(), &ch)
		says(t, row.what, err, row.want)
		r.set(func() {
			r.active = map[[32]byte]string{ek: "gw-1"}
			r.fail = nil
			clear(r.blocked)
			clear(r.revoked)
			clear(r.cut)
		})
	}
}

// withoutEK is an AK certificate for gw-1 that lacks the URI of the EK.
func (i *issuance) withoutEK(t *testing.T) []byte {
	t.Helper()
	ak, err := x509.ParseCertificate(i.chain[0])
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	for _, e := range ak.Extensions {
		if e.Id.Equal(oidSubjectAltName) {
			var names []asn1.RawValue
			if _, err := asn1.Unmarshal(e.Value, &names); err != nil || len(names) != 3 {
				t.Fatalf("%d names, %v", len(names), err)
			}
			san, err := asn1.Marshal(names[:2])
			if err != nil {
				t.Fatal(err)
			}
			template.ExtraExtensions = []pkix.Extension{{Id: oidSubjectAltName, Critical: true, Value: san}}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, i.ca.cfg.Attestation, ak.PublicKey, i.ca.cfg.AttestationKey)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestIssuanceChecksTheOrder(t *testing.T) {
	i := newIssuance(t)
	right := func() *acme.Order {
		return &acme.Order{Identifiers: []acme.Identifier{{Type: acme.PermanentIdentifier, Value: "gw-1"}}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
	}
	const stored = "expected an order with one identifier" // the store's word for an order that smallstep has not prepared: all of our checks let it pass
	for _, row := range []struct {
		what   string
		change func(*acme.Order)
		want   string
	}{
		{"all is right", func(*acme.Order) {}, stored},
		{"no identifier", func(o *acme.Order) { o.Identifiers = nil }, "exactly one identifier"},
		{"two", func(o *acme.Order) { o.Identifiers = append(o.Identifiers, o.Identifiers[0]) }, "exactly one identifier"},
		{"a server's name", func(o *acme.Order) { o.Identifiers[0].Type = acme.DNS }, "exactly one identifier"},
		{"a strange name", func(o *acme.Order) { o.Identifiers[0].Value = "gw/1" }, "permanent-identifier: "},
		{"no life", func(o *acme.Order) { o.NotAfter = o.NotBefore }, "validity"},
		{"a long life", func(o *acme.Order) { o.NotAfter = o.NotBefore.Add(25 * time.Hour) }, "validity"},
	} {
		o := right()
		row.change(o)
		says(t, row.what, i.guarded().CreateOrder(t.Context(), o), row.want)
	}
	i.ca.sources = newSources(func() time.Time { return time.Unix(0, 0) }, 1)
	for i.ca.sources.allow("") {
	}
	says(t, "an address that floods", i.guarded().CreateOrder(t.Context(), right()), "too many enrolments")
}

func TestIssuanceChecksTheCertificate(t *testing.T) {
	i := newIssuance(t)
	ek := i.board.Hash()
	// leaf is a certificate as smallstep signs it, but for the name and the key.
	leaf := func(name string, key *ecdsa.PrivateKey) *x509.Certificate {
		id, err := url.Parse("spiffe://" + domain + "/gateway/" + name)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, URIs: []*url.URL{id},
			NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
			i.ca.Issuer(), key.Public(), i.ca.cfg.IssuingKey)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := i.registry
	for _, row := range []struct {
		what   string
		change func(*acme.Certificate)
		want   string
	}{
		{"all is right", func(*acme.Certificate) {}, ""},
		{"an order that is not attested", func(c *acme.Certificate) { c.OrderID = "none" }, "the attestation is too old"},
		{"another key", func(c *acme.Certificate) { c.Leaf = leaf("gw-1", other) }, "not the attested one"},
		{"suspended meanwhile", func(*acme.Certificate) { r.blocked[ek] = true }, "does not admit"},
		{"another name", func(c *acme.Certificate) { c.Leaf = leaf("gw-2", i.board.Key) }, "it names spiffe://"},
		{"revoked in the last instant", func(*acme.Certificate) { r.late = func() { r.revoked[ek] = "stolen" } }, "stolen"},
		{"another gateway's key", func(c *acme.Certificate) {
			r.keys[sha256.Sum256(c.Leaf.RawSubjectPublicKeyInfo)] = Key{Gateway: "gw-2"}
		}, "another gateway's"},
		{"a key that cannot be recorded", func(c *acme.Certificate) { c.Leaf.NotAfter = c.Leaf.NotBefore }, "fault: its key could not be recorded"},
		{"no event", func(*acme.Certificate) { i.fail = audit.CertIssued }, "fault: its event could not be journaled"},
	} {
		order, err := i.board.Prove(t.Context(), i.acme, "gw-1", i.chain)
		if err != nil {
			t.Fatal(err)
		}
		cert := &acme.Certificate{OrderID: path.Base(order.URI), Leaf: leaf("gw-1", i.board.Key)}
		r.set(func() { row.change(cert) })
		err = i.guarded().createCertificate(t.Context(), cert)
		says(t, row.what, err, row.want)
		r.set(func() {
			clear(r.blocked)
			clear(r.revoked)
			clear(r.keys)
			r.late, i.fail = nil, ""
		})
	}
}

func TestIssuanceChecksTheSVID(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	id := spiffe.ID{TrustDomain: domain, Kind: spiffe.Gateway, Name: "gw-1"}
	uri, err := url.Parse(id.String())
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := url.Parse("spiffe://" + domain + "/operator/gw-1")
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*x509.Certificate){
		"": func(*x509.Certificate) {}, "two ids": func(c *x509.Certificate) { c.URIs = append(c.URIs, uri) },
		"an operator": func(c *x509.Certificate) { c.URIs[0] = elsewhere }, "another subject": func(c *x509.Certificate) { c.Subject.CommonName = "gw-2" },
		"a server's name": func(c *x509.Certificate) { c.DNSNames = []string{"gw-1"} }, "an address": func(c *x509.Certificate) { c.IPAddresses = []net.IP{{127, 0, 0, 1}} },
		"mail": func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b"} }, "RSA": func(c *x509.Certificate) { c.PublicKey = &rsa.PublicKey{N: big.NewInt(1), E: 1} },
		"P-384": func(c *x509.Certificate) { c.PublicKey = &ecdsa.PublicKey{Curve: elliptic.P384()} }, "an authority": func(c *x509.Certificate) { c.IsCA = true },
		"agrees keys": func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyAgreement }, "a server": func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth) },
		"an EK": func(c *x509.Certificate) { c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}} },
	} {
		leaf := &x509.Certificate{PublicKey: key.Public(), URIs: []*url.URL{uri}, Subject: pkix.Name{CommonName: "gw-1"}, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		change(leaf)
		err := checkSVID(leaf, id)
		if (err == nil) != (what == "") || what == "two ids" && strings.Contains(err.Error(), "it names") {
			t.Errorf("%q: %v", what, err)
		}
	}
}

func TestIssuanceReadsTheEK(t *testing.T) {
	right := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for text, want := range map[string]bool{ekPrefix + right: true, ekPrefix + right + "!": false, ekPrefix + base64.StdEncoding.EncodeToString(make([]byte, 31)): false, "urn:other:" + right: false} {
		uri, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ekOf(&x509.Certificate{URIs: []*url.URL{uri}}); (err == nil) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestIssuanceReadsWhatItKept(t *testing.T) {
	i := newIssuance(t)
	ak, err := x509.MarshalPKIXPublicKey(i.board.AK.Public())
	if err != nil {
		t.Fatal(err)
	}
	ek := i.board.Hash()
	for what, change := range map[string]func(*challenged){
		"": func(*challenged) {}, "another EK's hash": func(c *challenged) { c.EK = make([]byte, 32) }, "another EK": func(c *challenged) { c.EKPublic = ak },
		"no AK": func(c *challenged) { c.AKPublic = []byte{1} },
	} {
		row := challenged{EK: ek[:], EKPublic: i.board.EKPublic, AKName: i.board.AKName, AKPublic: ak}
		change(&row)
		text, err := json.Marshal(row)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := decodeChallenged(text); (err == nil) != (what == "") || (v == nil) != (err != nil) {
			t.Errorf("%q: %v", what, err)
		}
		if _, err := decodeChallenged(bytes.Replace(text, []byte(`"Chain":false`), []byte(`"Chain":7`), 1)); err == nil {
			t.Error("a row of another form")
		}
	}
	for payload, words := range map[string]string{"7": "payload: expected", `{"attObj": "!"}`: "not base64url", `{"attObj": "oA"}`: "", `{"attObj": "_____w"}`: "not the CBOR",
		`{"error": "no TPM"}`: "", `{"error": "no TPM", "error": 5}`: "not the CBOR"} {
		if err := decodable([]byte(payload)); words == "" && err != nil || words != "" && (err == nil || !strings.Contains(err.Error(), words)) {
			t.Errorf("%s: %v; expected %q", payload, err, words)
		}
	}
}
