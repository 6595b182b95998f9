package alerts

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"wardlink/internal/build"
	"wardlink/internal/secret"
)

// newSender opens what a target needs: secrets and certificates, no connection.
func newSender(t Target, server string) (sender, error) {
	conf, err := clientTLS(t.CAFile)
	if err != nil {
		return nil, err
	}
	if t.Syslog != "" {
		return newSyslog(t, server, conf)
	}
	secrets, err := readSecrets(t.SecretFile)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(t.Webhook)
	if err != nil {
		return nil, errors.New("webhook: not a URL")
	}
	return &webhook{url: u, secrets: secrets, now: time.Now, http: &http.Client{
		Transport: &http.Transport{TLSClientConfig: conf, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ForceAttemptHTTP2: true},
		// The address that was configured is the one that is trusted; Standard Webhooks counts a redirect as a failure.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

func clientTLS(caFile string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile == "" {
		return conf, nil
	}
	text, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("ca_file: %w", err)
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("ca_file: %s holds no PEM certificate", caFile)
	}
	return conf, nil
}

// webhook posts messages as Standard Webhooks 1.0 has it: webhook-id, webhook-timestamp (Unix seconds of the attempt) and
// webhook-signature, "v1," and the base64 of HMAC-SHA256 over id, timestamp and body joined by full stops, one for each secret.
type webhook struct {
	url     *url.URL
	secrets []secret.Bytes
	http    *http.Client
	now     func() time.Time
}

// String leaves out path and query, in which some receivers want a token.
func (w *webhook) String() string { return "https://" + w.url.Host }

const maxAnswer = 4 << 10

func (w *webhook) send(ctx context.Context, m *message) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url.String(), bytes.NewReader(m.body))
	if err != nil {
		return "", errors.New("the request cannot be made")
	}
	at := strconv.FormatInt(w.now().Unix(), 10)
	signatures := make([]string, len(w.secrets))
	for i, s := range w.secrets {
		signatures[i] = "v1," + sign(s, m.id, at, m.body)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "wardlink/"+build.Version)
	req.Header.Set("webhook-id", m.id)
	req.Header.Set("webhook-timestamp", at)
	req.Header.Set("webhook-signature", strings.Join(signatures, " "))
	resp, err := w.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return "", errors.New("no answer in time")
		}
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	// Read a little, so that the other side can end its answer; more is not wanted.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	return judge(resp, w.now())
}

// judge tells an answer's meaning.
func judge(resp *http.Response, now time.Time) (string, error) {
	text := "HTTP " + strconv.Itoa(resp.StatusCode) + " " + http.StatusText(resp.StatusCode)
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return text, nil
	}
	f := &failure{text: text, after: retryAfter(resp.Header.Get("Retry-After"), now)}
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		f.ours = true
	case http.StatusGone:
		f.text += ": the receiver wants no more messages; remove the target from server.yaml"
		f.after = max(f.after, maxAfter)
	}
	if resp.StatusCode/100 == 3 {
		f.text += ": redirects are not followed; configure the new address"
	}
	return "", f
}

// retryAfter reads seconds or a date (RFC 9110, section 10.2.3); what cannot be read is 0.
func retryAfter(text string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

func sign(key secret.Bytes, id, at string, body []byte) string {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(id + "." + at + "."))
	h.Write(body)
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}
