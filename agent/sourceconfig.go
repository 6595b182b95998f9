package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"wardlink/agent/source"
	"wardlink/internal/spiffe"
	"wardlink/telemetry"
)

// BindingConfig says of which bed a device is; exactly one of its last four keys tells the device.
type BindingConfig struct {
	ID  string `yaml:"id"`  // source id of its own; default: the source's
	Bed string `yaml:"bed"` // as the hospital calls it

	Certificate string `yaml:"certificate"` // a name in its client certificate
	Address     string `yaml:"address"`     // its IP address
	MSH3        string `yaml:"msh3"`        // sending application
	Device      string `yaml:"device"`      // OBX-18, entity identifier
}

// LimitsConfig bounds a source. Beyond messages and bytes its devices are read later; beyond connections they are turned away.
type LimitsConfig struct {
	Messages    int    `yaml:"messages"`    // a second; default: no limit
	Burst       int    `yaml:"burst"`       // at once after a pause; default: a second's messages
	Bytes       string `yaml:"bytes"`       // a second, such as 1MB; default: no limit
	Connections int    `yaml:"connections"` // at a time; default 200
	PerAddress  int    `yaml:"per_address"` // of one address at a time; default: three quarters of connections
}

// TLSConfig makes a source speak TLS and nothing else.
type TLSConfig struct {
	Certificate string   `yaml:"certificate"` // path, PEM
	Key         string   `yaml:"key"`         // path, PEM, mode 0600
	ClientCA    string   `yaml:"client_ca"`   // path, PEM: devices must show a certificate of it
	Allow       []string `yaml:"allow"`       // names of which a device's certificate must have one
}

// maxBindings is how many devices one port has at most: as many as a report has sources.
const maxBindings = telemetry.MaxSources

// device is what the source of an HL7 port is made of, but for what only the agent can add: who takes the messages.
func (s SourceConfig) device() (source.Config, error) {
	cfg := source.Config{ID: s.ID, Listen: s.MLLP, MaxConns: s.Limits.Connections}
	var err error
	if cfg.Zone, err = s.zone(); err != nil {
		return cfg, err
	}
	if cfg.Allow, err = s.prefixes(); err != nil {
		return cfg, err
	}
	if cfg.Bindings, err = s.bindings(); err != nil {
		return cfg, err
	}
	if cfg.Limits, err = s.limits(); err != nil {
		return cfg, err
	}
	cfg.TLS, err = s.secure()
	return cfg, err
}

// bindings are the source's; whether they go together its Check says.
func (s SourceConfig) bindings() ([]source.Binding, error) {
	if len(s.Bindings) > maxBindings {
		return nil, fmt.Errorf("bindings: %d; at most %d", len(s.Bindings), maxBindings)
	}
	var out []source.Binding
	for i, b := range s.Bindings {
		x := source.Binding{ID: b.ID, Bed: b.Bed, Certificate: b.Certificate, MSH3: b.MSH3, Device: b.Device}
		if b.ID != "" {
			if err := spiffe.ValidName(b.ID); err != nil {
				return nil, fmt.Errorf("bindings[%d].id: %w", i, err)
			}
		}
		if b.Address != "" {
			addr, err := netip.ParseAddr(b.Address)
			if err != nil {
				return nil, fmt.Errorf("bindings[%d].address: %q; expected one device's IP address, such as 10.1.2.3", i, b.Address)
			}
			x.Address = addr.Unmap().WithZone("")
		}
		out = append(out, x)
	}
	return out, nil
}

func (s SourceConfig) limits() (l source.Limits, err error) {
	c := s.Limits
	l = source.Limits{Messages: c.Messages, Burst: c.Burst, PerAddress: c.PerAddress}
	if c.Bytes != "" {
		n, ok := parseSize(c.Bytes)
		if !ok || n > 1<<30 {
			return l, fmt.Errorf("limits.bytes: %q; expected bytes a second, such as 512KB or 1MB", c.Bytes)
		}
		l.Bytes = int(n)
	}
	return l, nil
}

// secure is the source's TLS; nil for none.
func (s SourceConfig) secure() (*source.TLS, error) {
	if s.TLS == nil {
		return nil, nil
	}
	t := s.TLS
	for _, f := range []struct {
		key, path string
		must      bool
	}{{"certificate", t.Certificate, true}, {"key", t.Key, true}, {"client_ca", t.ClientCA, false}} {
		if f.path == "" && f.must || f.path != "" && !filepath.IsAbs(f.path) {
			return nil, fmt.Errorf("tls.%s: expected the absolute path of a PEM file", f.key)
		}
	}
	if len(t.Allow) > 0 && t.ClientCA == "" {
		return nil, errors.New("tls.allow: without client_ca no device shows a certificate; set tls.client_ca")
	}
	for i, name := range t.Allow {
		if name == "" {
			return nil, fmt.Errorf("tls.allow[%d]: expected a name of the devices' certificates, such as monitor-7.ward.example", i)
		}
	}
	return &source.TLS{Certificate: t.Certificate, Key: t.Key, ClientCA: t.ClientCA, Allow: t.Allow}, nil
}

// Secure is the source's TLS, for those who look at its files; nil for none.
func (s SourceConfig) Secure() *source.TLS {
	t, _ := s.secure() // ParseConfig found no fault
	return t
}

// checkIDs finds an id that two sources or bindings have.
func (c Config) checkIDs() error {
	seen := map[string]string{}
	add := func(where, id string) error {
		if former, dup := seen[id]; dup {
			return fmt.Errorf("%s.id: %q is %s's already; ids are part of every observation's key", where, id, former)
		}
		seen[id] = where
		return nil
	}
	for i, s := range c.Sources {
		where := fmt.Sprintf("sources[%d]", i)
		if err := add(where, s.ID); err != nil {
			return err
		}
		for j, b := range s.Bindings {
			if b.ID == "" {
				continue
			}
			if err := add(fmt.Sprintf("%s.bindings[%d]", where, j), b.ID); err != nil {
				return err
			}
		}
	}
	if len(seen) > telemetry.MaxSources {
		return fmt.Errorf("sources: they and their bindings have %d ids; a report holds %d: leave the id out of some bindings", len(seen), telemetry.MaxSources)
	}
	return nil
}
