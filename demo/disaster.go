package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"wardlink/internal/child"
	"wardlink/server/api/client"
)

// Disaster is what came of losing the server's whole directory.
type Disaster struct {
	BackupSeconds  float64 `json:"backup_seconds"` // while the monitors sent
	BackupBytes    int64   `json:"backup_bytes"`
	BackupAge      float64 `json:"backup_age_seconds"` // when the directory was lost
	RestoreSeconds float64 `json:"restore_seconds"`    // from the loss until the restored server was ready
	Brought        uint64  `json:"brought"`            // batches that the gateways sent once more
	Gone           uint64  `json:"gone"`               // that the server lacks and no gateway has
	FormerLeaves   uint64  `json:"former_leaves"`      // of the log that ended, as far as the backup has it
	Succession     bool    `json:"succession_verified"`
}

// recovered: an old backup and the gateways together have everything.
func (d *Disaster) recovered() bool {
	return d != nil && d.BackupBytes > 0 && d.RestoreSeconds > 0 && d.Brought > 0 && d.Gone == 0 && d.FormerLeaves > 0 && d.Succession
}

func (t *theatre) passphrase() string { return filepath.Join(t.dir, "passphrase") }
func (t *theatre) backupFile() string { return filepath.Join(t.dir, "hospital.wlbackup") }

// makeBackup backs the server up in the middle of the stream.
func (t *theatre) makeBackup(ctx context.Context) error {
	if _, err := t.untilHalf(ctx, t.fleet[0]); err != nil {
		return err
	}
	begun := time.Now()
	out, err := child.Output(ctx, t.bin("wardlink-server"), "backup", "--dir", t.server, "--out", t.backupFile(), "--json")
	if err != nil {
		return err
	}
	var res struct {
		Bytes     int64 `json:"bytes"`
		Behind    int   `json:"records_behind"`
		LogBehind bool  `json:"log_behind"`
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	t.stages.note("backup made beside the running server: %.2f MB in %.1f s", float64(res.Bytes)/1e6, time.Since(begun).Seconds())
	t.backedUp = time.Now()
	status, err := t.fleet[0].status(ctx)
	if err != nil {
		return err
	}
	t.backedUpAcked = status.acknowledged()
	t.count(func(s *Summary) {
		s.Disaster = &Disaster{BackupSeconds: time.Since(begun).Seconds(), BackupBytes: res.Bytes}
	})
	return nil
}

// afterBackup is how many batches of the first gateway are acknowledged after the backup, at the least, before the server is lost: what was
// acknowledged and is in no backup is what a disaster is about, however slowly a gateway came back from its own kill.
const afterBackup = 20

// loseServer takes the server and everything it had, while the monitors send on, and restores the old backup.
func (t *theatre) loseServer(ctx context.Context) error {
	n, err := t.untilHalf(ctx, t.fleet[0])
	if err != nil {
		return err
	}
	err = child.Until(ctx, "deliveries after the backup", t.running(), func(ctx context.Context) (bool, error) {
		s, err := t.fleet[0].status(ctx)
		return err == nil && s.acknowledged() >= t.backedUpAcked+afterBackup, nil
	})
	if err != nil {
		return err
	}
	begun := time.Now()
	t.process().Kill()
	t.count(func(s *Summary) { s.ServerKills++; s.Kills.Server++; s.Kills.Total++ })
	if err := os.RemoveAll(t.server); err != nil {
		return err
	}
	t.stages.note("after %d messages the server is killed and its directory destroyed; the backup is %.1f s old", n, begun.Sub(t.backedUp).Seconds())
	out, err := child.Output(ctx, t.bin("wardlink-server"), "restore", "--dir", t.server, "--from", t.backupFile(), "--verify",
		"--passphrase-file", t.passphrase(), "--json")
	if err != nil {
		return err
	}
	var res struct {
		Leaves uint64 `json:"former_leaves"`
		Log    string `json:"log"`
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	t.newLog = res.Log
	if err := t.runServer(); err != nil {
		return err
	}
	if t.api, err = client.Open(t.operator()); err != nil {
		return err
	}
	if err := t.serverReady(ctx); err != nil {
		return err
	}
	t.stages.note("restored and ready after %.1f s: former log verified to leaf %d, %s begun", time.Since(begun).Seconds(), res.Leaves, res.Log)
	t.count(func(s *Summary) {
		d := s.Disaster
		d.BackupAge, d.RestoreSeconds, d.FormerLeaves = begun.Sub(t.backedUp).Seconds(), time.Since(begun).Seconds(), res.Leaves
	})
	return nil
}

// refill waits until every gateway has answered what the restored server asked of it.
func (t *theatre) refill(ctx context.Context) error {
	if !t.Disaster {
		return nil
	}
	t.stages.begin("refill")
	var brought, gone uint64
	err := child.Until(ctx, "the gateways' answers", t.running(), func(ctx context.Context) (bool, error) {
		brought, gone = 0, 0
		for _, g := range t.fleet {
			s, err := g.status(ctx)
			if err != nil || s.Resend.Asked == 0 || s.Resend.Working || s.Uplink.Again < s.Resend.Brought {
				return false, nil
			}
			brought, gone = brought+s.Resend.Brought, gone+s.Resend.Gone
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	t.count(func(s *Summary) { s.Disaster.Brought, s.Disaster.Gone = brought, gone })
	// Each gateway was shown the former log, and takes its successor because the signed configuration names it.
	var doubt string
	err = child.Until(ctx, "the gateways' word on the log", t.running(), func(ctx context.Context) (bool, error) {
		for _, g := range t.fleet {
			s, err := g.status(ctx)
			if err != nil || s.Log.Origin != t.newLog || s.Log.Doubt != "" {
				doubt = s.Log.Doubt
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("%w (doubt: %q)", err, doubt)
	}
	t.stages.done("%s sent once more by the gateways, %d gone; %s is their log now", plurals(int(brought), "batch", "batches"), gone, t.newLog)
	return nil
}

// checkSuccession takes from the verifier's report what it says of the log that ended.
func (t *theatre) checkSuccession(report []byte) error {
	if !t.Disaster {
		return nil
	}
	var r struct {
		Verified bool
		Former   []struct {
			Verified     bool
			Leaves, Rows uint64
		}
	}
	if err := json.Unmarshal(report, &r); err != nil {
		return fmt.Errorf("audit verify: %w", err)
	}
	if len(r.Former) != 1 || r.Former[0].Leaves != t.summary.Disaster.FormerLeaves {
		return errors.New("audit verify: it does not know of the log that the restore ended")
	}
	t.summary.AuditRows += r.Former[0].Rows
	t.summary.Disaster.Succession = r.Verified && r.Former[0].Verified
	return nil
}
