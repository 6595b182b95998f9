package registry

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"
	"unicode/utf8"
)

// uses are the last uses of identities that are not written yet. An access is in the log before it is answered; these only say who
// is idle, so that up to a minute of them may be lost with the process, and none makes a reader wait for a write.
type uses struct {
	mu   sync.Mutex
	last map[string]use // by Subject: only who was authorised is in it
}

type use struct {
	kind, name, what string
	at               time.Time
}

// maxUse bounds what is kept of a use, in bytes.
const maxUse = 100

// Use notes that an identity did something now. It writes nothing; WriteUses does.
func (r *Registry) Use(i Identity, what string) {
	for len(what) > maxUse || !utf8.ValidString(what) {
		what = what[:min(len(what)-1, maxUse)]
	}
	r.uses.mu.Lock()
	defer r.uses.mu.Unlock()
	if r.uses.last == nil {
		r.uses.last = make(map[string]use)
	}
	r.uses.last[i.Subject()] = use{string(i.Kind), i.Name, what, r.now()}
}

// WriteUses writes what Use noted, in one transaction for all. What cannot be written is kept for the next time.
func (r *Registry) WriteUses(ctx context.Context) error {
	r.uses.mu.Lock()
	last := r.uses.last
	r.uses.last = nil
	r.uses.mu.Unlock()
	if len(last) == 0 {
		return nil
	}
	err := r.db.Write(ctx, func(tx *sql.Tx) error {
		for _, u := range last {
			if _, err := tx.Exec("UPDATE identities SET used = $1, used_for = $2 WHERE kind = $3 AND name = $4 AND used < $1", u.at.UnixMilli(), u.what, u.kind, u.name); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		return nil
	}
	r.uses.mu.Lock()
	defer r.uses.mu.Unlock()
	for subject, u := range last {
		if now, ok := r.uses.last[subject]; !ok || now.at.Before(u.at) {
			if r.uses.last == nil {
				r.uses.last = make(map[string]use)
			}
			r.uses.last[subject] = u
		}
	}
	return fmt.Errorf("registry: last uses: %w", err)
}
