package ca

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/smallstep/certificates/acme"
	acmeapi "github.com/smallstep/certificates/acme/api"
	"github.com/smallstep/certificates/authority"
	"github.com/smallstep/certificates/authority/config"
	"github.com/smallstep/certificates/authority/provisioner"
	_ "github.com/smallstep/certificates/cas/softcas" // registers the signer that WithX509Signer uses

	"wardlink/enroll"
	"wardlink/internal/spiffe"
	"wardlink/server/ca/acmedb"
)

// provisionerName is the path element of the ACME directory: /acme/attest/directory.
const provisionerName = "attest"

// embedded is smallstep's authority within this process, behind our ACME store.
type embedded struct {
	ca     *CA
	auth   *authority.Authority
	store  *acmedb.Store
	linker acme.Linker
	client acme.Client
	router http.Handler
}

// openTime bounds how long opening waits for a database that is locked.
const openTime = 15 * time.Second

// open makes the authority where there is none yet.
func (c *CA) open() error {
	c.opening.Lock()
	defer c.opening.Unlock()
	if c.authority.Load() != nil {
		return nil
	}
	e, err := openAuthority(c)
	if err == nil {
		c.authority.Store(e)
	}
	return err
}

// openAuthority opens the CA's tables and starts smallstep's authority. Nothing is read from files.
func openAuthority(c *CA) (*embedded, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openTime)
	defer cancel()
	store, err := acmedb.Open(ctx, acmedb.Config{DB: c.cfg.DB, Now: c.cfg.Now, Log: c.cfg.Log, Limits: c.cfg.Limits})
	if err != nil {
		return nil, err
	}
	e := &embedded{ca: c, store: store, client: acme.NewClient(), linker: acme.NewLinker(c.cfg.DNSNames[0], "acme")}
	cfg := &config.Config{DNSNames: c.cfg.DNSNames, SkipValidation: true,
		AuthorityConfig: &config.AuthConfig{Provisioners: provisioner.List{deviceProvisioner(c)},
			Backdate: &provisioner.Duration{Duration: backdate}}}
	cfg.Init()
	e.auth, err = authority.New(cfg, authority.WithDatabase(noAuthDB{}), authority.WithX509RootCerts(c.cfg.Roots...),
		authority.WithX509SignerFunc(c.signer), authority.WithX509Enforcers(validity{c}), authority.WithQuietInit())
	if err != nil {
		return nil, fmt.Errorf("start the authority: %w", err)
	}
	// acmeapi reads its URL parameters through chi, so no other router will do.
	router := chi.NewRouter()
	router.NotFound(func(w http.ResponseWriter, r *http.Request) {
		c.refuse(w, r, http.StatusNotFound, "not-found", "not served")
	})
	router.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		allow := http.MethodPost
		if strings.HasSuffix(r.URL.Path, "/directory") || strings.HasSuffix(r.URL.Path, "/new-nonce") {
			allow = "GET, HEAD"
		}
		w.Header().Set("Allow", allow)
		c.refuse(w, r, http.StatusMethodNotAllowed, "malformed", "expected "+allow)
	})
	router.Route("/acme", func(r chi.Router) { acmeapi.Route(r) })
	e.router = router
	return e, nil
}

// deviceProvisioner accepts TPM attestations under our attestation CA and makes X.509-SVIDs. The name is the order's, which
// CreateOrder has checked; nothing of the CSR but its key gets into the certificate.
func deviceProvisioner(c *CA) *provisioner.ACME {
	yes := true
	shortest := &provisioner.Duration{Duration: min(5*time.Minute, c.cfg.CertLife)}
	longest := &provisioner.Duration{Duration: c.cfg.CertLife}
	template := `{"subject": {"commonName": {{ toJson (index .SANs 0).Value }}},
"uris": [{{ toJson (printf "spiffe://` + c.cfg.TrustDomain + `/gateway/%s" (index .SANs 0).Value) }}],
"keyUsage": ["digitalSignature"], "extKeyUsage": ["clientAuth"]}`
	return &provisioner.ACME{
		Type: "ACME", Name: provisionerName,
		Challenges:         []provisioner.ACMEChallenge{provisioner.DEVICE_ATTEST_01},
		AttestationFormats: []provisioner.ACMEAttestationFormat{provisioner.TPM},
		AttestationRoots:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cfg.Attestation.Raw}),
		Claims: &provisioner.Claims{MinTLSDur: shortest, MaxTLSDur: longest, DefaultTLSDur: longest,
			DisableRenewal: &yes, DisableSmallstepExtensions: &yes},
		Options: &provisioner.Options{X509: &provisioner.X509Options{Template: template}},
	}
}

// validity fixes the dates of each certificate: smallstep backdates by a minute whatever the life, and knows no end of the issuer.
type validity struct{ ca *CA }

// Enforce implements provisioner.CertificateEnforcer.
func (v validity) Enforce(leaf *x509.Certificate) error {
	now, life := v.ca.cfg.Now(), v.ca.cfg.CertLife
	leaf.NotBefore = now.Add(-min(backdate, life/20))
	for _, end := range []time.Time{now.Add(life), v.ca.issuer.Load().cert.NotAfter} {
		if leaf.NotAfter.After(end) {
			leaf.NotAfter = end
		}
	}
	if !leaf.NotAfter.After(now) {
		return errIssuerEnded
	}
	return nil
}

// ServeHTTP serves ACME without revocation and key change, which this product does through its registry.
func (e *embedded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasSuffix(r.URL.Path, "/revoke-cert") || strings.HasSuffix(r.URL.Path, "/key-change") {
		reply(w, http.StatusNotFound, enroll.Problem{Type: problemPrefix + "not-found", Detail: "not served"})
		return
	}
	body, ok := readBody(w, r, maxBody) // smallstep answers a body that is too long with a 500
	if !ok {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	ctx := authority.NewContext(r.Context(), e.auth)
	ctx = acme.NewContext(ctx, &guarded{Request: e.store.Request(), ca: e.ca}, e.client, e.linker, nil)
	e.router.ServeHTTP(w, r.WithContext(ctx))
}

func (e *embedded) close() error { return e.auth.Shutdown() }

// checkSVID checks a gateway's certificate before it is handed out: exactly one name, the gateway's; a P-256 key; a TLS client and
// nothing more.
func checkSVID(leaf *x509.Certificate, id spiffe.ID) error {
	public, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	got, err := spiffe.FromCertificate(leaf)
	switch {
	case err != nil:
		return err
	case got != id:
		return fmt.Errorf("certificate: it names %s, expected %s", got, id)
	case leaf.Subject.String() != "CN="+id.Name:
		return fmt.Errorf("certificate: subject %q", leaf.Subject)
	case len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) != 0:
		return errors.New("certificate: it holds other names")
	case !ok || public.Curve != elliptic.P256():
		return errors.New("certificate: expected an ECDSA P-256 key")
	case leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature:
		return errors.New("certificate: expected a leaf for digital signatures")
	case !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(leaf.UnknownExtKeyUsage) != 0:
		return errors.New("certificate: expected a TLS client only")
	}
	return nil
}
