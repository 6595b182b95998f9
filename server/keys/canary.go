package keys

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"wardlink/internal/secret"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// canary proves at any time, without touching a patient's data, that a recovered records key opens what gateways sealed to it: a
// random value sealed exactly as a batch is, beside its hash. It names the config key as well, so that a check needs no file of keys/.
type canary struct {
	Version int    `json:"wardlink_canary"`
	Config  []byte `json:"config_public_key"`
	Record  []byte `json:"record"`
	Frame   []byte `json:"frame"`
	SHA256  []byte `json:"sha256"`
}

func newCanary(key seal.PublicKey, config ed25519.PublicKey, now time.Time) ([]byte, error) {
	var value [32]byte
	rand.Read(value[:])
	period, err := seal.NewPeriod(key, telemetry.Epoch{}, now)
	if err != nil {
		return nil, fmt.Errorf("canary: %w", err)
	}
	defer period.Forget()
	frame, err := period.Seal(seal.Header{Lane: telemetry.LaneSelf, Wall: now.UnixMilli()}, value[:])
	if err != nil {
		return nil, fmt.Errorf("canary: %w", err)
	}
	sum := sha256.Sum256(value[:])
	out, err := json.MarshalIndent(canary{Version: 1, Config: config, Record: period.Record(), Frame: frame, SHA256: sum[:]}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("canary: %w", err)
	}
	return append(out, '\n'), nil
}

// openCanary says whether a records key opens the canary and a config key (PKCS #8) is the one that it names.
func openCanary(data []byte, key seal.PrivateKey, configDER secret.Bytes) error {
	var c canary
	if err := json.Unmarshal(data, &c); err != nil || c.Version != 1 {
		return errors.New("canary: not a canary file of version 1")
	}
	record, err := seal.ParseRecord(c.Record)
	if err != nil {
		return fmt.Errorf("canary: %w", err)
	}
	opener, err := seal.NewOpener(key, record)
	if err != nil {
		return fmt.Errorf("canary: this recovery file belongs to another server: %w", err)
	}
	_, value, err := opener.Open(c.Frame)
	if err != nil {
		return fmt.Errorf("canary: the records key does not open it; this recovery file belongs to another server: %w", err)
	}
	sum := sha256.Sum256(value)
	if subtle.ConstantTimeCompare(sum[:], c.SHA256) != 1 {
		return errors.New("canary: opened, but its hash differs; the canary file was changed")
	}
	config, err := x509.ParsePKCS8PrivateKey(configDER)
	if err != nil {
		return fmt.Errorf("recovery file: config key: %w", err)
	}
	if pair, ok := config.(ed25519.PrivateKey); !ok || !pair.Public().(ed25519.PublicKey).Equal(ed25519.PublicKey(c.Config)) {
		return errors.New("recovery file: its config key is not this server's")
	}
	return nil
}
