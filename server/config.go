// Package server wires the hospital's side together: certificate authority, registry, ingest, journal, transparency log, records, FHIR
// and the operators' API, in one process. What concerns all of a server's directory is here too, for wardlink-server's other commands:
// Init, Backup and Restore, operators' files, the terms of its certificates, the rotation of its issuing CA.
package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"wardlink/enroll"
	"wardlink/internal/spiffe"
	"wardlink/internal/strictyaml"
	"wardlink/server/alerts"
)

// ConfigFile is the configuration's name within the server's directory.
const ConfigFile = "server.yaml"

// Config is the server's configuration file, DIR/server.yaml. Unknown keys are errors. 'init' writes one with comments.
type Config struct {
	TrustDomain string   `yaml:"trust_domain"` // fixed at init: it is in every certificate
	Names       []string `yaml:"names"`        // host names and addresses by which gateways and hospital reach this server
	Gateways    string   `yaml:"gateways"`     // listen address for gateways; default :8883
	Hospital    string   `yaml:"hospital"`     // listen address for FHIR; default :8443
	Operators   string   `yaml:"operators"`    // listen address for the operators' API; default :9443
	HospitalTLS struct {
		Cert string `yaml:"cert"` // PEM file of the hospital's own server certificate; default: one of our CA
		Key  string `yaml:"key"`
	} `yaml:"hospital_tls"`
	// ExpiredGrace is how long after its end a gateway's certificate is admitted while the CA cannot issue; 0 is never, 72h the most.
	ExpiredGrace Span `yaml:"expired_grace"`
	// EnrolCode: required has each TPM's first attestation want a one-time code (wardlink provision code); default: those for which one was made.
	EnrolCode string `yaml:"enrol_code"`

	// Database is a PostgreSQL database, postgres://user@host/name without a password; default: SQLite in the server's directory. The
	// password is in DIR/keys/database.password or a systemd credential (see database.go).
	Database string   `yaml:"database"`
	Services Services `yaml:"services"` // of the process that runs on this directory, unless its command says others; default: all
	Server   []string `yaml:"server"`   // of an ingest node: addresses of the gateways' port of the server that it belongs to
	CA       []string `yaml:"ca"`       // where the service ca runs in processes of its own: addresses of their gateways' ports; for nodes and for api
	Health   string   `yaml:"health"`   // of an ingest node: listen address for a balancer's checks, plain HTTP; default: none

	Balancers Balancers       `yaml:"balancers"` // before the gateways' port, which send PROXY headers; default: none
	Limits    Limits          `yaml:"limits"`    // of the gateways' port; what is left out has its default
	Log       string          `yaml:"log"`       // text (default) or json
	Alerts    alerts.Settings `yaml:"alerts"`    // targets, and when the watchers raise; without targets alerts are rows and events alone
	Retention Retention       `yaml:"retention"` // how long each class is kept; see retention.go for the defaults
}

// EnrolCodeRequired is the one value of enrol_code.
const EnrolCodeRequired = "required"

// MaxExpiredGrace is the longest grace, and the default. A server's own certificate has at least 84 hours left when it cannot be renewed
// (serviceLife), so that it outlives the grace.
const MaxExpiredGrace = enroll.ExpiredGrace

// Span is a time as Go writes it, such as 72h or 90m; a plain 0 is none.
type Span time.Duration

// String writes whole hours without the rest.
func (s Span) String() string {
	if d := time.Duration(s); d%time.Hour == 0 {
		return fmt.Sprintf("%dh", d/time.Hour)
	}
	return time.Duration(s).String()
}

// UnmarshalYAML implements the decoder's interface.
func (s *Span) UnmarshalYAML(unmarshal func(any) error) error {
	var text string
	if err := unmarshal(&text); err != nil {
		return err
	}
	d, err := time.ParseDuration(strings.TrimSpace(text))
	if err != nil {
		return fmt.Errorf("%.40q; expected a time such as 72h or 90m, or 0", text)
	}
	*s = Span(d)
	return nil
}

// DefaultConfig is what init starts from.
func DefaultConfig() Config {
	return Config{Gateways: ":8883", Hospital: ":8443", Operators: ":9443", Retention: DefaultRetention(), ExpiredGrace: Span(MaxExpiredGrace), Log: "text"}
}

// LoadConfig reads DIR/server.yaml. It refuses a directory whose restore did not come to its end.
func LoadConfig(dir string) (Config, error) {
	if err := whole(dir); err != nil {
		return Config{}, err
	}
	return loadConfig(dir)
}

func loadConfig(dir string) (Config, error) {
	path := filepath.Join(dir, ConfigFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Config{}, fmt.Errorf("%s is no server's directory: %w; make one with 'wardlink-server init --dir %s'", dir, err, dir)
	}
	if err != nil {
		return Config{}, fmt.Errorf("config: %w", err)
	}
	c, err := parseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("config %s: %w", path, err)
	}
	return c, nil
}

// maxConfig bounds what is parsed; the file that init writes has a kilobyte.
const maxConfig = 64 << 10

func parseConfig(data []byte) (Config, error) {
	if len(data) > maxConfig {
		return Config{}, fmt.Errorf("%d bytes; at most %d", len(data), maxConfig)
	}
	c := DefaultConfig()
	if err := strictyaml.Decode(data, &c); err != nil {
		return Config{}, err
	}
	if err := c.Check(); err != nil {
		return Config{}, err
	}
	return c, nil
}

// Check says what is wrong with the values.
func (c Config) Check() error {
	if err := spiffe.ValidTrustDomain(c.TrustDomain); err != nil {
		return fmt.Errorf("trust_domain: %w", err)
	}
	if len(c.Names) == 0 || len(c.Names) > 32 {
		return fmt.Errorf("names: %d; expected 1 to 32 host names or addresses of this server", len(c.Names))
	}
	for i, n := range c.Names {
		if n == "" || strings.ContainsAny(n, " /:") && net.ParseIP(n) == nil {
			return fmt.Errorf("names[%d]: %q; expected a host name or an address without port", i, n)
		}
	}
	for key, addr := range map[string]string{"gateways": c.Gateways, "hospital": c.Hospital, "operators": c.Operators} {
		_, port, err := net.SplitHostPort(addr)
		if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n > 65535 {
			return fmt.Errorf("%s: %q; expected address:port such as :8883 or 10.1.2.3:8883", key, addr)
		}
	}
	if err := c.checkParts(); err != nil {
		return err
	}
	if err := c.Retention.Check(); err != nil {
		return err
	}
	if c.EnrolCode != "" && c.EnrolCode != EnrolCodeRequired {
		return fmt.Errorf("enrol_code: %.40q; expected required, or leave it out", c.EnrolCode)
	}
	if g := time.Duration(c.ExpiredGrace); g != 0 && (g < time.Minute || g > MaxExpiredGrace) {
		return fmt.Errorf("expired_grace: %s; expected 0 (off) or 1m to 72h", c.ExpiredGrace)
	}
	if c.Log != "text" && c.Log != "json" {
		return fmt.Errorf("log: %q; expected text or json", c.Log)
	}
	if (c.HospitalTLS.Cert == "") != (c.HospitalTLS.Key == "") {
		return errors.New("hospital_tls: give both cert and key, or neither")
	}
	if _, err := c.Balancers.prefixes(); err != nil {
		return err
	}
	if err := c.Limits.Check(); err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	if err := c.Alerts.Check(); err != nil {
		return fmt.Errorf("alerts: %w", err)
	}
	return nil
}

// hospitalCertificate is the hospital's own certificate where one is configured.
func (c Config) hospitalCertificate() (*tls.Certificate, error) {
	if c.HospitalTLS.Cert == "" {
		return nil, nil
	}
	cert, err := tls.LoadX509KeyPair(c.HospitalTLS.Cert, c.HospitalTLS.Key)
	if err != nil {
		return nil, fmt.Errorf("hospital_tls: %w", err)
	}
	return &cert, nil
}
