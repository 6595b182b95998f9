package registry

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"time"
)

//go:embed devices_0001.sql
var devices1 string

// Device is the TPM of a gateway and the box around it, as far as the newest attestation said.
type Device struct {
	Manufacturer, Model, Firmware string // of the EK certificate, else the TPM's own words
	Serial                        string // the box's own word; nothing proves it
	At                            time.Time
}

// Describe notes what a TPM says of itself. It writes only what has changed.
func (r *Registry) Describe(ctx context.Context, ek [32]byte, d Device) error {
	d.Manufacturer, d.Model, d.Firmware, d.Serial = printable(d.Manufacturer), printable(d.Model), printable(d.Firmware), ascii(d.Serial, maxSerial)
	var have Device
	err := r.db.QueryRow(ctx, "SELECT manufacturer, model, firmware, serial FROM devices WHERE ek = $1", ek[:]).Scan(&have.Manufacturer, &have.Model, &have.Firmware, &have.Serial)
	switch have.At = d.At; {
	case err == nil && have == d:
		return nil
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return fmt.Errorf("registry: %w", err)
	}
	err = r.db.Write(ctx, func(tx *sql.Tx) error {
		_, err := tx.Exec(`INSERT INTO devices (ek, manufacturer, model, firmware, serial, at) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (ek) DO UPDATE SET manufacturer = excluded.manufacturer, model = excluded.model, firmware = excluded.firmware, serial = excluded.serial, at = excluded.at`,
			ek[:], d.Manufacturer, d.Model, d.Firmware, d.Serial, r.now().UnixMilli())
		return err
	})
	if err != nil {
		return fmt.Errorf("registry: %w", err)
	}
	return nil
}

// Devices gives the TPM of each gateway that has attested, by gateway: the newest of its endorsement keys.
func (r *Registry) Devices(ctx context.Context) (map[string]Device, error) {
	out := make(map[string]Device)
	err := r.db.Read(ctx, func(tx *sql.Tx) error {
		return each(tx, `SELECT e.gateway, d.manufacturer, d.model, d.firmware, d.serial, d.at FROM devices d JOIN gateway_eks e ON e.ek = d.ek ORDER BY d.at`, func(rows *sql.Rows) error {
			var id string
			var at int64
			var d Device
			if err := rows.Scan(&id, &d.Manufacturer, &d.Model, &d.Firmware, &d.Serial, &at); err != nil {
				return err
			}
			d.At = instant(at)
			out[id] = d
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}

// BootState is how a gateway boots, in short.
type BootState struct {
	State, Policy string    // State is "" while nothing is measured
	Quarantined   time.Time // zero: it is not
}

// BootStates gives it of all gateways.
func (r *Registry) BootStates(ctx context.Context) (map[string]BootState, error) {
	out := make(map[string]BootState)
	err := r.db.Read(ctx, func(tx *sql.Tx) error {
		return each(tx, `SELECT g.id, COALESCE(m.state, ''), COALESCE(o.mode, a.mode, 'off'), COALESCE(q.since, 0) FROM gateways g
			LEFT JOIN boot_measurements m ON m.gateway = g.id LEFT JOIN boot_policies o ON o.gateway = g.id LEFT JOIN boot_policies a ON a.gateway = ''
			LEFT JOIN boot_quarantines q ON q.gateway = g.id`, func(rows *sql.Rows) error {
			var id string
			var since int64
			var b BootState
			if err := rows.Scan(&id, &b.State, &b.Policy, &since); err != nil {
				return err
			}
			b.Quarantined = instant(since)
			out[id] = b
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	return out, nil
}
