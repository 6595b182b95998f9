package spiffe

import (
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	id, err := Parse("spiffe://ward.example/gateway/icu-3-bed-7")
	if err != nil || id != (ID{"ward.example", Gateway, "icu-3-bed-7"}) {
		t.Errorf("%+v, %v", id, err)
	}
	for _, bad := range []string{
		"", "spiffe://", "https://ward.example/gateway/a", "spiffe://ward.example/gateway", "spiffe://ward.example/gateway/a/b",
		"spiffe://ward.example/gateway/", "spiffe://ward.example/person/a", "spiffe://Ward.example/gateway/a", "spiffe://ward.example/gateway/A",
		"spiffe://ward.example/gateway/a+b", "spiffe://ward.example/gateway/#", "spiffe://ward.example/gateway/-a",
		"spiffe://ward.example/gateway/" + strings.Repeat("a", 64), "spiffe://ward.example:1/gateway/a", "spiffe://u@ward.example/gateway/a",
		"spiffe://ward.example/gateway/a?x=1", "spiffe://ward.example/gateway/%61",
	} {
		if id, err := Parse(bad); err == nil {
			t.Errorf("%q is %+v", bad, id)
		}
	}
}

func TestFromCertificateWantsExactlyOneIdentity(t *testing.T) {
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	a, b := uri("spiffe://ward.example/gateway/a"), uri("spiffe://ward.example/gateway/b")
	for name, uris := range map[string][]*url.URL{"none": nil, "two": {a, b}, "foreign": {uri("https://ward.example")}} {
		if id, err := FromCertificate(&x509.Certificate{URIs: uris}); err == nil {
			t.Errorf("%s: %v", name, id)
		}
	}
	if id, err := FromCertificate(&x509.Certificate{URIs: []*url.URL{a}}); err != nil || id.Name != "a" {
		t.Errorf("%v, %v", id, err)
	}
}

func TestNames(t *testing.T) {
	long := strings.Repeat("a", 62)
	for name, want := range map[string]bool{
		"a": true, "7": true, "a-b": true, "a--b": true, long + "b": true, long + "bc": false, "": false, "-": false, "-a": false, "a-": false,
		"a.b": false, "a_b": false, "A": false, "é": false, "a\n": false, "a b": false, "a\x00": false,
	} {
		if err := ValidName(name); (err == nil) != want {
			t.Errorf("name %q: %v", name, err)
		}
	}
	long = strings.Repeat("a", 254)
	for domain, want := range map[string]bool{
		"a": true, "ward.example": true, "a..b": true, long + "b": true, long + "bc": false, "": false, ".a": false, "a.": false, "a.-": false, "A.b": false, "a:1": false,
	} {
		if err := ValidTrustDomain(domain); (err == nil) != want {
			t.Errorf("trust domain %q: %v", domain, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://ward.example/gateway/icu-3-bed-7")
	f.Add("spiffe://ward.example/access/")
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := Parse(s); err == nil && id.String() != s {
			t.Errorf("%q reads as %q", s, id)
		}
	})
}
