package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"wardlink/enroll"
	"wardlink/enroll/label"
	"wardlink/enroll/tpm"
	"wardlink/internal/durable"
)

// showConsole writes the notice of the box's console, where it has changed: who stands before the box sees
// under which fingerprint it waits, and who it is once it has been approved.
func (a *Agent) showConsole() {
	a.consoleMu.Lock()
	defer a.consoleMu.Unlock()
	text := a.notice()
	if text == a.console {
		return
	}
	if _, err := os.Stat(filepath.Dir(a.cfg.Console)); errors.Is(err, fs.ErrNotExist) {
		return // nobody made room for it: this machine's console is not ours
	}
	if err := durable.WriteFile(a.cfg.Console, []byte(text), 0o644); err != nil {
		a.log.Warn("the console's notice is not written", "file", a.cfg.Console, "error", err)
		return
	}
	a.console = text
}

// notice is what the console shows. agetty reads a backslash as an escape, so none is in it.
func (a *Agent) notice() string {
	a.mu.Lock()
	gateway, waiting, former, cutOff, trouble, fingerprint := "", a.waiting, a.former, a.cutOff, a.tpmState, a.fingerprint
	if a.identity != nil {
		gateway = a.identity.Gateway
	}
	a.mu.Unlock()
	if fingerprint == "" {
		fingerprint = waiting // of a new board with an enrolled gateway's disk
	}
	head := "wardlink gateway of " + a.kit.TrustDomain + ", kit " + a.kit.ShortFingerprint() + "\n"
	switch {
	case cutOff != nil:
		return onConsole(head + gateway + " is cut off by the hospital\n")
	case gateway != "":
		return onConsole(head + "enrolled as " + gateway + "\n")
	case fingerprint == "":
		return onConsole(head + "not enrolled: " + trouble + "\n")
	}
	var b strings.Builder
	b.WriteString(head)
	if waiting != "" {
		b.WriteString("waits for the hospital's approval; an operator runs: " + enroll.AdmitCommand(fingerprint, former) + "\n\n")
	} else {
		b.WriteString("not enrolled: " + trouble + "\n\n")
	}
	if code, err := label.QR(fingerprint); err == nil {
		for _, l := range code.Lines(true) {
			b.WriteString("    " + l + "\n")
		}
	}
	b.WriteString("\n    " + fingerprint + "\n\n")
	return onConsole(b.String())
}

// onConsole keeps what a peer said from playing with the console.
func onConsole(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (r == '\\' || !unicode.IsPrint(r)) {
			return '?'
		}
		return r
	}, s)
}

// introduce finds out under which fingerprint this gateway will wait, before the hospital can be reached, and logs it.
func (a *Agent) introduce(ctx context.Context, dev *tpm.TPM) {
	if a.cfg.enrolled() {
		return
	}
	ek, err := dev.EK(ctx)
	if err != nil {
		a.log.Error("the TPM's endorsement key cannot be read", "error", err)
		return
	}
	short := enroll.Fingerprint(ek.Hash)
	a.mu.Lock()
	a.fingerprint = short
	a.mu.Unlock()
	a.log.Info("not enrolled yet", "fingerprint", short, "serial", Serial())
	a.showConsole()
}
