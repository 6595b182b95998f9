package api

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"database/sql"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/server/registry"
	"wardlink/server/sqldb"
)

//go:embed sqlite_0001.sql
var schema1 string

// Migrations is the schema that this package owns: the configuration in force for each gateway.
func Migrations() []sqldb.Migration {
	return []sqldb.Migration{{Domain: "api", Version: 1, SQL: schema1}}
}

// Configs issues each gateway's signed configuration. It holds the config key, which ingest does not: ingest relays documents that
// it cannot make.
type Configs struct {
	DB       *sqldb.DB
	Outbox   *sqldb.Outbox
	Registry *registry.Registry
	Key      ed25519.PrivateKey
	Now      func() time.Time
}

// Document is the gateway's configuration as down/config carries it. A new version is signed when the registry says something else
// than the last document did; its event is journaled before the document is given out.
func (c *Configs) Document(ctx context.Context, gateway string) ([]byte, error) {
	g, err := c.Registry.Get(ctx, gateway)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	admission, err := c.Registry.Admit(ctx, gateway)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	want := settings(g, admission)
	version, have, doc, err := c.stored(ctx, gateway)
	if err != nil {
		return nil, err
	}
	if doc != nil && bytes.Equal(have, want[:]) {
		// Whoever stored it may have failed, or be about, to move its event to the journal.
		if err := c.Outbox.Flush(ctx); err != nil {
			return nil, fmt.Errorf("configuration: %w", err)
		}
		return doc, nil
	}
	return c.issue(ctx, enroll.Configuration{
		Gateway: gateway, Version: version + 1, Issued: c.Now().UnixMilli(), Site: g.Site, Ward: g.Ward, Profile: g.Profile,
		Lanes: admission.Lanes,
	}, want)
}

// settings is a digest of everything in the registry that the document says.
func settings(g registry.Gateway, a registry.Admission) [32]byte {
	h := sha256.New()
	for _, s := range []string{g.Site, g.Ward, g.Profile} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(s))))
		h.Write([]byte(s))
	}
	h.Write([]byte{a.Lanes})
	return [32]byte(h.Sum(nil))
}

func (c *Configs) stored(ctx context.Context, gateway string) (version uint64, digest, doc []byte, err error) {
	var v int64
	err = c.DB.QueryRow(ctx, "SELECT version, settings, document FROM configurations WHERE gateway = $1", gateway).Scan(&v, &digest, &doc)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil, nil, nil
	}
	if err != nil {
		return 0, nil, nil, fmt.Errorf("configuration: %w", err)
	}
	return uint64(v), digest, doc, nil
}

func (c *Configs) issue(ctx context.Context, conf enroll.Configuration, digest [32]byte) ([]byte, error) {
	doc, err := enroll.SignConfiguration(conf, c.Key)
	if err != nil {
		return nil, err
	}
	err = c.DB.Write(ctx, func(tx *sql.Tx) error {
		// Two callers at once sign the same version; the second finds the first's row and keeps it.
		res, err := tx.Exec(`INSERT INTO configurations (gateway, version, settings, document, issued) VALUES ($1, $2, $3, $4, $5)
			ON CONFLICT (gateway) DO UPDATE SET version = excluded.version, settings = excluded.settings,
				document = excluded.document, issued = excluded.issued WHERE configurations.version < excluded.version`,
			conf.Gateway, int64(conf.Version), digest[:], doc, conf.Issued)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, tx.QueryRow("SELECT document FROM configurations WHERE gateway = $1", conf.Gateway).Scan(&doc))
		}
		return c.Outbox.Add(tx, audit.Event{
			Type: audit.ConfigIssued, Actor: audit.Actor{ID: "server"}, Target: conf.Gateway, Outcome: audit.Success,
			Detail: map[string]string{"version": strconv.FormatUint(conf.Version, 10), "ward": conf.Ward, "profile": conf.Profile},
		})
	})
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := c.Outbox.Flush(ctx); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return doc, nil
}
