package tpm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"github.com/google/go-tpm/tpm2"
)

// Trouble is a state of a TPM that is known from the field, in an operator's words.
type Trouble struct {
	What string // "it has locked itself ..."
	Mend string // what an operator can do
	Err  error  // how it showed
}

func (t *Trouble) Error() string {
	return t.What + ": " + t.Mend + " (" + t.Err.Error() + ")"
}

// Unwrap makes the cause visible to errors.Is.
func (t *Trouble) Unwrap() error { return t.Err }

// troubles are the known states: the errors by which each shows, its name, its mend. The first that fits counts.
var troubles = []struct {
	shows      []error
	what, mend string
}{
	{[]error{fs.ErrPermission}, "this user may not use it", "let the agent's user read and write it: add the user to the group tss, or add a udev rule"},
	{[]error{syscall.ECONNREFUSED}, "nothing listens on this socket", "start swtpm again"},
	{[]error{syscall.EBUSY}, "another program holds it",
		"use /dev/tpmrm0, which the kernel shares out; /dev/tpm0 has one user at a time ('fuser /dev/tpm0' names it)"},
	{[]error{tpm2.TPMRCInitialize}, "it was not started", "start the machine again: its firmware starts the TPM; swtpm needs --flags not-need-init,startup-clear"},
	{[]error{tpm2.TPMRCFailure}, "it is in failure mode: its own tests failed",
		"switch the machine off and on; if it stays so, the board must be replaced ('wardlink gateway replace')"},
	{busy, "it is busy with its own tests or with another program's work, and stays so",
		"see which other programs use it; if there are none, switch the machine off and on"},
	{[]error{tpm2.TPMRCLockout}, "it has locked itself after wrong passwords, which were not this agent's: its keys have none",
		"find the program that guesses; the TPM forgives with time, or at once by 'tpm2_dictionarylockout --clear-lockout'"},
	{full, "other programs fill its memory for keys and sessions",
		"use /dev/tpmrm0, which gives each program its own; else end those programs, or start the machine again"},
	{[]error{os.ErrDeadlineExceeded, context.DeadlineExceeded}, "it does not answer", "switch the machine off and on; if it stays so, see the kernel's log (dmesg | grep -i tpm)"},
}

// full: no slot is free for a key or a session. Sessions that lie saved for long leave a gap, which is the same to us.
var full = []error{tpm2.TPMRCObjectMemory, tpm2.TPMRCSessionMemory, tpm2.TPMRCMemory, tpm2.TPMRCObjectHandles, tpm2.TPMRCSessionHandles, tpm2.TPMRCContextGap}

// Explain makes a Trouble of an error of the TPM at path that shows a known one; others it returns as they are.
func Explain(path string, err error) error {
	var known *Trouble
	if err == nil || errors.As(err, &known) {
		return err
	}
	if errors.Is(err, fs.ErrNotExist) {
		if socket, ok := strings.CutPrefix(path, "swtpm:"); ok {
			return &Trouble{"it is not there", "start swtpm with --server type=unixio,path=" + socket, err}
		}
		return &Trouble{"it is not there", "if it does not appear within a minute of the machine's start: enable the TPM in the firmware setup or device tree, " +
			"load its kernel driver, or name another device (ls /dev/tpmrm*)", err}
	}
	if errors.Is(err, ErrForeign) { // which has words of its own
		return err
	}
	for _, t := range troubles {
		if shows(err, t.shows) {
			return &Trouble{t.what, t.mend, err}
		}
	}
	return err
}

func shows(err error, list []error) bool {
	for _, e := range list {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// password names the password of a hierarchy that somebody has set: there is none that we know, and none is guessed.
func password(hierarchy string, err error) error {
	if !shows(err, []error{tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail}) {
		return err
	}
	return &Trouble{"the " + hierarchy + " password is set, and the agent has none", "clear it: tpm2_changeauth -c " + hierarchy + " -p PASSWORD", err}
}
