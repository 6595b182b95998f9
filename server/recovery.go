package server

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"wardlink/audit"
	"wardlink/server/keys"
)

// ConfirmRecovery proves that the recovery file of dir opens with a passphrase that a person gives, that its keys are this server's, and
// notes it, with an event. Until then Run says at every start that nobody has.
func ConfirmRecovery(ctx context.Context, dir, passphrase string) error {
	if _, err := LoadConfig(dir); err != nil {
		return err
	}
	if err := keys.CheckRecovery(dir, passphrase); err != nil {
		return err
	}
	c, err := keys.Confirm(dir, time.Now())
	if err != nil {
		return err
	}
	return leave(ctx, dir, audit.Event{Type: audit.RecoveryProven, Detail: map[string]string{"recovery_sha256": c.SHA256, "by": "wardlink-server init --confirm-recovery"}}, nil)
}

// unproven says whether nobody has proven that the recovery file opens, and since when it is there.
func (s *Server) unproven() (since time.Time, unproven bool) {
	if _, ok := keys.Confirmed(s.dir); ok {
		return time.Time{}, false
	}
	info, err := os.Stat(filepath.Join(s.dir, keys.RecoveryFile))
	if err != nil {
		return s.started, true
	}
	return info.ModTime(), true
}
