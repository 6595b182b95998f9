package tpm

import (
	"context"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Lockout is the TPM's defence against the guessing of passwords (TPM 2.0 Part 1, 19.8). Our keys stand outside it (noDA), so a TPM
// that is locked out still serves them; somebody else on this machine is then guessing, or has lost a password.
type Lockout struct {
	Locked   bool          // no authorisation that it protects succeeds at present
	Failures uint32        // wrong passwords that count at present
	Most     uint32        // at which it locks
	Forgiven time.Duration // after which one failure counts no more; 0: never
}

// Lockout reads the state of that defence.
func (t *TPM) Lockout(ctx context.Context) (Lockout, error) {
	return value(ctx, t, "read the lockout", func(c *conn) (Lockout, error) {
		var words [4]uint32
		for i, p := range []tpm2.TPMPT{tpm2.TPMPTPermanent, tpm2.TPMPTLockoutCounter, tpm2.TPMPTMaxAuthFail, tpm2.TPMPTLockoutInterval} {
			var err error
			if words[i], err = c.property(p); err != nil {
				return Lockout{}, err
			}
		}
		const inLockout = 1 << 9 // TPMA_PERMANENT (Part 2, 8.6)
		return Lockout{
			Locked: words[0]&inLockout != 0, Failures: words[1], Most: words[2], Forgiven: time.Duration(words[3]) * time.Second,
		}, nil
	})
}
