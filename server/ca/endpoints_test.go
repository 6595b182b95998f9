package ca

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/acme"

	"wardlink/enroll/verify"
)

// raw sends bytes as they are on a connection of their own, no more after them if ends, and gives the answer.
func (h *hospital) raw(t *testing.T, request string, ends bool) (*http.Response, string) {
	t.Helper()
	conn, err := tls.Dial("tcp", address(h), &tls.Config{InsecureSkipVerify: true}) // whose certificate it is does not matter here
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	go func() { // a server that refuses what is too long closes before it has all of it: the answer counts
		if _, err := io.WriteString(conn, request); err == nil && ends {
			_ = conn.CloseWrite()
		}
	}()
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer, string(body)
}

// TestEachEndpointRefuses: what is forged, replayed, truncated, too long, slow or for another door, at each door of the CA: a 4xx and a problem document.
func TestEachEndpointRefuses(t *testing.T) {
	var refused atomic.Int64
	h := hospitalOf(t, func(c *Config) {
		c.PerSource = 1 << 20
		c.Refused = func(string, string) { refused.Add(1) }
	})
	h.ca.bodyTime = 50 * time.Millisecond
	board := newSoftBoard(t, h.server.URL, h.server.Client())
	h.registry.active[board.Hash()] = "gw-1"
	client, err := board.newClient()
	if err != nil {
		t.Fatal(err)
	}
	account, err := client.Register(t.Context(), &acme.Account{}, acme.AcceptTOS)
	if err != nil {
		t.Fatal(err)
	}
	order, challenge, _ := ordered(t, client)
	key := client.Key.(*ecdsa.PrivateKey)
	stranger, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	base := h.server.URL + "/acme/attest/"
	attest, err := json.Marshal(board.Request)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := json.Marshal(verify.SecretRequest{Secret: make([]byte, secretSize)})
	if err != nil {
		t.Fatal(err)
	}
	signed := map[string]string{ // doors of ACME, and what is right to say there
		base + "new-order":   `{"identifiers":[{"type":"permanent-identifier","value":"gw-1"}]}`,
		base + "new-account": `{"termsOfServiceAgreed":true}`, order.URI: "", order.AuthzURLs[0]: "", challenge.URI: "{}", order.FinalizeURL: `{"csr":"MAA"}`,
		account.URI: "{}", account.URI + "/orders": "", strings.Replace(order.URI, "/order/", "/certificate/", 1): "",
	}
	bodies := map[string]string{h.server.URL + "/attestation/attest": string(attest), h.server.URL + secretPath: string(answer)}
	for target, payload := range signed {
		bodies[target] = h.signed(t, key, account.URI, target, []byte(payload))
	}
	post := func(target, body string, length int) string {
		at, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/jose+json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", at.RequestURI(), at.Host, length, body)
	}
	expect := func(what, target, request string, ends bool) {
		t.Helper()
		got, body := h.raw(t, request, ends)
		kind := got.Header.Get("Content-Type")
		var problem struct{ Type, Detail string }
		if got.StatusCode/100 != 4 || kind != "application/problem+json" || json.Unmarshal([]byte(body), &problem) != nil || problem.Type == "" {
			t.Errorf("%s at %s: %s %q %s", what, target, got.Status, kind, body)
		}
	}
	for target, body := range bodies {
		expect("truncated", target, post(target, body[:len(body)/2], len(body)), true)
		expect("slow", target, post(target, body[:len(body)/2], len(body)), false)
		expect("half of it", target, post(target, body[:len(body)/2], len(body)/2), false)
		long := strings.Repeat("a", verify.MaxSecretRequest+1)
		expect("too long", target, post(target, long, len(long)), false)
		expect("nothing", target, post(target, "", 0), false)
		expect("zeros", target, post(target, strings.Repeat("\x00", 100), 100), false)
		expect("asked for", target, strings.Replace(post(target, "", 0), "POST", "GET", 1), false)
		expect("deleted", target, strings.Replace(post(target, "", 0), "POST", "DELETE", 1), false)
	}
	for target, payload := range signed {
		right := h.signed(t, key, account.URI, target, []byte(payload))
		spoilt := strings.Replace(right, `"signature":"`, `"signature":"AAAA`, 1)
		expect("with a spoilt signature", target, post(target, spoilt, len(spoilt)), false)
		forged := h.signed(t, stranger, account.URI, target, []byte(payload))
		expect("by another key", target, post(target, forged, len(forged)), false)
		nobody := h.signed(t, key, account.URI+"x", target, []byte(payload))
		expect("of an account that is not there", target, post(target, nobody, len(nobody)), false)
		elsewhere := h.signed(t, key, account.URI, base+"elsewhere", []byte(payload))
		expect("signed for another door", target, post(target, elsewhere, len(elsewhere)), false)
		unsigned := fmt.Sprintf(`{"protected":%q,"payload":"","signature":""}`, base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"`+account.URI+`","url":"`+target+`"}`)))
		expect("unsigned", target, post(target, unsigned, len(unsigned)), false)
		h.raw(t, post(target, right, len(right)), false) // whatever this says, its nonce is used up
		expect("replayed", target, post(target, right, len(right)), false)
	}
	for _, path := range []string{"/", "/acme", "/acme/", "/acme/attest", "/acme/other/directory", "/acme/attest/elsewhere", "/acme/attest/key-change", "/attestation/", "/attestation/other", "/crl/", "/%00", "/acme/attest/order/%2e%2e"} {
		expect("no door", path, post(h.server.URL+path, "{}", 2), false)
	}
	if _, err := board.Enrol(t.Context(), "gw-1"); err != nil {
		t.Errorf("after all that: %v", err)
	}
	if refused.Load() == 0 {
		t.Error("nothing is counted")
	}
}
