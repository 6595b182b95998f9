package enroll

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/fxamacker/cbor/v2"

	"wardlink/internal/spiffe"
	"wardlink/telemetry"
)

// configPurpose begins every message that the config key signs as configuration, so that no other document can pass for one.
const configPurpose = "wardlink/config/1\x00"

// Configuration is what the hospital tells one gateway, or all gateways of one site. Ingest only relays it; the config key,
// which ingest does not have, signs it. Keys are integers, so that a field more does not disturb an older agent.
//
// A gateway keeps one document of its own and one of its site, each with its own version; Overlay says what holds. Keys 9 to 19 are
// what an operator sets ('wardlink config set').
type Configuration struct {
	Gateway string `cbor:"1,keyasint,omitempty"` // for this gateway; "" when ForSite is set
	ForSite string `cbor:"2,keyasint,omitempty"` // for all gateways of this site; "" when Gateway is set
	Version uint64 `cbor:"3,keyasint"`           // grows with every configuration for the same target; an agent never goes back
	Issued  int64  `cbor:"4,keyasint"`           // Unix milliseconds, server's clock
	Ward    string `cbor:"5,keyasint,omitempty"`
	Profile string `cbor:"6,keyasint,omitempty"`
	Lanes   uint8  `cbor:"7,keyasint"`           // bit mask of the lanes that the gateway may publish
	Site    string `cbor:"8,keyasint,omitempty"` // of a gateway's own document: its site, by which it knows a site's documents as meant for it
	// Log is the verifier key of the log that a restore of the server began, in note's text form. "" while the kit's log goes on. Keys 30 to 39
	// are about restores.
	Log string `cbor:"30,keyasint,omitempty"`

	Settings
}

// Settings are what an operator may set, for a gateway or for a site. A zero field is not set.
type Settings struct {
	Servers     []string `cbor:"9,keyasint,omitempty"`  // host:port, tried in this order, before those of the kit; at most MaxServers
	ReportEvery uint64   `cbor:"10,keyasint,omitempty"` // milliseconds between two reports while nothing changes; 1 s to 1 h
}

// Bounds of Settings.
const (
	MaxServers     = 16
	MinReportEvery = time.Second
	MaxReportEvery = time.Hour
)

// Check holds settings to their bounds. Its errors name the setting and what is expected.
func (s Settings) Check() error {
	if len(s.Servers) > 0 {
		if err := checkServers(s.Servers); err != nil {
			return err
		}
		for i, server := range s.Servers {
			if slices.Contains(s.Servers[:i], server) {
				return fmt.Errorf("servers[%d]: %q is named twice", i, server)
			}
		}
	}
	if every := s.ReportEvery; every != 0 && (every < uint64(MinReportEvery.Milliseconds()) || every > uint64(MaxReportEvery.Milliseconds())) {
		return fmt.Errorf("report_every: %d ms; expected 1s to 1h", every)
	}
	return nil
}

// Overlay is what holds for a gateway: a setting of its own, else its site's.
func Overlay(site, own Settings) Settings {
	out := own
	if len(out.Servers) == 0 {
		out.Servers = site.Servers
	}
	if out.ReportEvery == 0 {
		out.ReportEvery = site.ReportEvery
	}
	return out
}

type signedConfig struct {
	Body      []byte `cbor:"1,keyasint"`
	Signature []byte `cbor:"2,keyasint"`
}

var (
	configEnc = must(cbor.CoreDetEncOptions().EncMode())
	configDec = must(cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxNestedLevels: 4, MaxArrayElements: 16, MaxMapPairs: 32,
		IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// SignConfiguration makes the document that down/config carries.
func SignConfiguration(c Configuration, key ed25519.PrivateKey) ([]byte, error) {
	if (c.Gateway == "") == (c.ForSite == "") {
		return nil, errors.New("configuration: name either a gateway or a site")
	}
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	body, err := configEnc.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	sig := ed25519.Sign(key, append([]byte(configPurpose), body...))
	return configEnc.Marshal(signedConfig{Body: body, Signature: sig})
}

// OpenConfiguration tells what a document of the config key says, whoever it is for and whatever its version: for a document that was
// verified once and kept. VerifyConfiguration decides whether one that arrives counts.
func OpenConfiguration(doc []byte, key ed25519.PublicKey) (Configuration, error) {
	if len(doc) > telemetry.MaxDocument {
		return Configuration{}, fmt.Errorf("configuration: %d bytes; at most %d", len(doc), telemetry.MaxDocument)
	}
	var s signedConfig
	if err := configDec.Unmarshal(doc, &s); err != nil {
		return Configuration{}, fmt.Errorf("configuration: %w", err)
	}
	if !ed25519.Verify(key, append([]byte(configPurpose), s.Body...), s.Signature) {
		return Configuration{}, errors.New("configuration: not signed by the kit's config key; make a new kit if the key was changed")
	}
	var c Configuration
	if err := configDec.Unmarshal(s.Body, &c); err != nil {
		return Configuration{}, fmt.Errorf("configuration: signed body: %w", err)
	}
	if c.Gateway != "" && c.ForSite != "" {
		return Configuration{}, errors.New("configuration: names a gateway and a site")
	}
	if c.Gateway != "" {
		if err := spiffe.ValidName(c.Gateway); err != nil {
			return Configuration{}, fmt.Errorf("configuration: %w", err)
		}
	}
	if err := c.Check(); err != nil {
		return Configuration{}, fmt.Errorf("configuration: version %d: %w", c.Version, err)
	}
	return c, nil
}

// VerifyConfiguration is the one decision whether a document is configuration for this gateway: signed by the config key, for
// this gateway or its site, and newer than the version in force. site may be "" while the gateway does not know its site.
func VerifyConfiguration(doc []byte, key ed25519.PublicKey, gateway, site string, inForce uint64) (Configuration, error) {
	c, err := OpenConfiguration(doc, key)
	switch {
	case err != nil:
		return Configuration{}, err
	case c.Gateway != "" && c.Gateway != gateway:
		return Configuration{}, fmt.Errorf("configuration: is for gateway %q, this is %q", c.Gateway, gateway)
	case c.Gateway == "" && (c.ForSite == "" || c.ForSite != site):
		return Configuration{}, fmt.Errorf("configuration: is for site %q, this gateway is of %q", c.ForSite, site)
	case c.Version <= inForce:
		return Configuration{}, fmt.Errorf("configuration: version %d is not newer than %d, which is in force", c.Version, inForce)
	}
	return c, nil
}
