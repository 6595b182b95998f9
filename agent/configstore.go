package agent

import (
	"crypto/ed25519"
	"fmt"
	"log/slog"
	"sync"

	"wardlink/enroll"
	"wardlink/internal/durable"
	"wardlink/telemetry"
)

// configStore keeps the newest configuration that the config key signed for this gateway.
type configStore struct {
	key ed25519.PublicKey
	log *slog.Logger

	mu      sync.Mutex
	file    *durable.AB
	stored  []byte // the signed document in force, or one stored by a former run and not yet verified
	current enroll.Configuration
}

func openConfigStore(path string, key ed25519.PublicKey, log *slog.Logger) (*configStore, error) {
	file, data, aside, lost, err := durable.OpenABOrAside(path, telemetry.MaxDocument)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if lost != nil {
		// Its version is forgotten with it, so until the server sends the newest, an older one that the config key signed would do.
		log.Error("the stored configuration is lost; the server sends it at the next connection", "set_aside", aside, "error", lost)
	}
	return &configStore{key: key, log: log, file: file, stored: data}, nil
}

// offer puts a document in force if it is newer and meant for this gateway. The stored document of a former run is verified here
// too, once the gateway's id is known. The same version again is no error: the server sends it at every connection.
func (s *configStore) offer(doc []byte, gateway string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current.Version == 0 && s.stored != nil {
		if c, err := enroll.VerifyConfiguration(s.stored, s.key, gateway, "", 0); err == nil {
			s.current = c
		}
	}
	if string(doc) == string(s.stored) && s.current.Version > 0 {
		return nil
	}
	c, err := enroll.VerifyConfiguration(doc, s.key, gateway, s.current.Site, s.current.Version)
	if err != nil {
		return err
	}
	if err := s.file.Store(doc); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	s.current, s.stored = c, doc
	s.log.Info("configuration in force", "version", c.Version, "ward", c.Ward, "profile", c.Profile)
	return nil
}

// inForce is the configuration in force; its Version is 0 when there is none.
func (s *configStore) inForce() enroll.Configuration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}
