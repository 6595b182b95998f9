package tpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"wardlink/internal/tpmproxy"
)

// What an owner, a thief of passwords or other programs do to a TPM that the agent shares a machine with.

// do runs one operation of a test.
func (f *field) do(what string, run func(c *conn) error) {
	f.Helper()
	if err := f.tpm.do(f.Context(), what, run); err != nil {
		f.Fatal(err)
	}
}

// setPassword changes a hierarchy's password.
func (f *field) setPassword(hierarchy tpm2.TPMHandle, old, new string) {
	f.Helper()
	f.do("change a password", func(c *conn) error {
		_, err := tpm2.HierarchyChangeAuth{AuthHandle: tpm2.AuthHandle{Handle: hierarchy, Auth: tpm2.PasswordAuth([]byte(old))},
			NewAuth: tpm2.TPM2BAuth{Buffer: []byte(new)}}.Execute(c)
		return err
	})
}

// An owner who sets a password locks the agent out of the hierarchy of its keys, and hears what to do. Nothing of it counts as a guess.
func (f *field) testPasswords() {
	f.setPassword(tpm2.TPMRHOwner, "", "secret")
	f.troubled(f.sign(), "the owner password is set", "tpm2_changeauth -c owner")
	_, err := CreateKeys(f.Context(), f.tpm, f.TempDir())
	f.troubled(err, "the owner password is set", "tpm2_changeauth -c owner")
	f.setPassword(tpm2.TPMRHOwner, "secret", "")

	f.setPassword(tpm2.TPMRHEndorsement, "", "secret")
	_, err = f.keys.ActivateCredential(f.Context(), make([]byte, 2), make([]byte, 2))
	f.troubled(err, "the endorsement password is set", "tpm2_changeauth -c endorsement")
	f.setPassword(tpm2.TPMRHEndorsement, "secret", "")
	f.unguessed()
}

// unguessed: nothing that the agent did counts towards a lockout.
func (f *field) unguessed() {
	f.Helper()
	if l, err := f.tpm.Lockout(f.Context()); err != nil || l.Failures != 0 || l.Locked {
		f.Errorf("%+v, %v", l, err)
	}
}

// An index in the place of an EK certificate whose password is not empty and counts: it is read by the owner's right, or not at all.
func (f *field) testGuardedIndex() {
	const index = tpm2.TPMHandle(0x01C0000A)
	define := func(a tpm2.TPMANV) {
		f.do("define an index", func(c *conn) error {
			a.OwnerWrite = true
			_, err := tpm2.NVDefineSpace{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, Auth: tpm2.TPM2BAuth{Buffer: []byte("secret")},
				PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: 4, Attributes: a})}.Execute(c)
			if err != nil {
				return err
			}
			public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
			if err != nil {
				return err
			}
			_, err = tpm2.NVWrite{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
				NVIndex: tpm2.NamedHandle{Handle: index, Name: public.NVName}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: []byte("text")}}.Execute(c)
			return err
		})
	}
	undefine := func() {
		f.do("undefine an index", func(c *conn) error {
			public, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c)
			if err != nil {
				return err
			}
			_, err = tpm2.NVUndefineSpace{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
				NVIndex: tpm2.NamedHandle{Handle: index, Name: public.NVName}}.Execute(c)
			return err
		})
	}
	read := func() (data []byte, err error) {
		return value(f.Context(), f.tpm, "read", func(c *conn) ([]byte, error) { return c.nv(uint32(index)) })
	}
	define(tpm2.TPMANV{AuthRead: true, OwnerRead: true})
	if data, err := read(); err != nil || string(data) != "text" {
		f.Errorf("by the owner's right: %q, %v", data, err)
	}
	undefine()
	define(tpm2.TPMANV{AuthRead: true})
	if data, err := read(); err == nil {
		f.Errorf("read %q without a right to", data)
	}
	undefine()
	f.unguessed()
}

// A TPM that refuses for its lockout is asked once, not again and again, and the refusal is named. Whether ours are refused is its maker's affair:
// by the specification they are not, as TestLockout shows.
func (f *field) testLockedOut() {
	f.proxy.Count()
	f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCSign), Answer: uint32(tpm2.TPMRCLockout)})
	f.troubled(f.sign(), "locked itself", "tpm2_dictionarylockout")
	if n := f.proxy.Count()[uint32(tpm2.TPMCCSign)]; n != 1 {
		f.Errorf("asked %d times", n)
	}
}

// Cuts of the power do not count as guesses: many TPMs count one for each cut after somebody used a key that their defence guards.
func (f *field) testPowerCuts() {
	for range 3 {
		f.signs()
		if _, err := f.keys.Certify(f.Context(), [32]byte{1}); err != nil {
			f.Error(err)
		}
		f.sw.Restart()
	}
	f.signs()
	f.unguessed()
}

// Another program on the same bare transport fills the slots while the agent runs: the operation that meets it clears them and goes on.
func (f *field) testFullSlots() {
	other, err := Open(f.Context(), f.sw.Path)
	if err != nil {
		f.Fatal(err)
	}
	defer other.Close()
	fill := func(leak func(c *conn) error) {
		for range 3 {
			if err := other.do(f.Context(), "fill a slot", leak); err != nil {
				f.Fatal(err)
			}
		}
		f.signs()
	}
	fill(func(c *conn) error { _, err := c.storageKey(); return err })
	fill(func(c *conn) error { _, _, err := tpm2.PolicySession(c, tpm2.TPMAlgSHA256, 16); return err })
	// A flush that fails is none: the slot is cleared before the next operation.
	f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCFlushContext), Times: 1, Answer: uint32(tpm2.TPMRCFailure)})
	f.signs()
	if n := loaded(f.T, f.tpm); n != 0 {
		f.Errorf("%d slots are left occupied", n)
	}
	// Where that does not help it is named, and given up.
	f.proxy.Count()
	f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCSign), Answer: uint32(tpm2.TPMRCObjectMemory)})
	f.troubled(f.sign(), "other programs fill its memory", "/dev/tpmrm0")
	if n := f.proxy.Count()[uint32(tpm2.TPMCCSign)]; n != 2 {
		f.Errorf("tried %d times; expected 2", n)
	}
}

// Whatever an operating system keeps where a storage key is usually kept is nothing to us, and stays.
func (f *field) testForeignStorageKey() {
	const usual = tpm2.TPMHandle(0x81000001)
	var name []byte
	f.do("keep a foreign storage key", func(c *conn) error {
		made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}, InPublic: tpm2.New2B(deviceTemplate()),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: []byte("theirs")}}}}.Execute(c)
		if err != nil {
			return err
		}
		defer c.flush(made.ObjectHandle)
		name = made.Name.Buffer
		_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, ObjectHandle: &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: usual}.Execute(c)
		return err
	})
	f.signs()
	again, err := OpenKeys(f.Context(), f.tpm, f.dir)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := again.Certify(f.Context(), [32]byte{1}); err != nil {
		f.Error(err)
	}
	f.do("look at it", func(c *conn) error {
		found, err := tpm2.ReadPublic{ObjectHandle: usual}.Execute(c)
		if err == nil && !bytes.Equal(found.Name.Buffer, name) {
			f.Error("it is another key than before")
		}
		return err
	})
	f.unguessed()
}

// A device that goes away and comes back: the next operation finds it.
func (f *field) testAway() {
	f.proxy.Away()
	f.troubled(f.sign(), "it is not there", "start swtpm")
	_, err := Open(f.Context(), f.proxy.Path)
	f.troubled(err, "it is not there", "start swtpm")
	if err := f.proxy.Back(); err != nil {
		f.Fatal(err)
	}
	f.signs()
	// An answer that is cut off is an error of this operation alone.
	f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCSign), Times: 1, Drop: true})
	if err := f.sign(); err == nil {
		f.Error("signed without an answer")
	}
}

// Somebody on the bus who swaps a public area, of any key and on either way: no key is made or used.
func (f *field) testInterposer() {
	eks := func() {
		f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCReadPublic), Change: func(_, answer []byte) []byte { return swap(answer, headerSize) }})
		f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCCreatePrimary), Change: func(command, answer []byte) []byte {
			if tpm2.TPMHandle(binary.BigEndian.Uint32(command[headerSize:])) != tpm2.TPMRHEndorsement {
				return answer
			}
			return swap(answer, headerSize+8)
		}})
	}
	for name, inject := range map[string]func(){
		"the EK": eks,
		"the new key": func() {
			f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCCreate), Change: func(_, answer []byte) []byte {
				private := headerSize + 4
				return swap(answer, private+2+int(binary.BigEndian.Uint16(answer[private:])))
			}})
		},
		"the storage key's name": func() { f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCCreatePrimary), Change: renamed}) },
		"the new key's template": func() {
			f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCCreate), Forge: func(command []byte) []byte {
				command[len(command)-30] ^= 1 // its attributes or its curve; at the end are what else it holds and the PCRs
				return command
			}})
		},
	} {
		d, err := Open(f.Context(), f.proxy.Path)
		if err != nil {
			f.Fatal(err)
		}
		inject()
		if err := d.do(f.Context(), "create a key", func(c *conn) error { return c.createKey(&blob{purpose: purposeDevice}, deviceTemplate()) }); err == nil {
			f.Errorf("%s was swapped, and a key was made", name)
		}
		f.proxy.Heal()
		d.Close()
	}
	// Of an enrolled gateway: the EK is pinned by the key files, and the name of a key is known.
	d, err := Open(f.Context(), f.proxy.Path)
	if err != nil {
		f.Fatal(err)
	}
	defer d.Close()
	eks()
	if _, err := OpenKeys(f.Context(), d, f.dir); !errors.Is(err, ErrForeign) || errors.Is(err, ErrCleared) {
		f.Errorf("another EK was taken for the gateway's: %v", err)
	}
	f.proxy.Heal()
	f.proxy.Inject(tpmproxy.Fault{Code: uint32(tpm2.TPMCCLoad), Change: renamed})
	if err := f.sign(); err == nil || !strings.Contains(err.Error(), "another key") {
		f.Errorf("a key of another name signed: %v", err)
	}
}

// swap makes another key of the public area at an offset.
func swap(answer []byte, at int) []byte {
	answer[at+2+int(binary.BigEndian.Uint16(answer[at:]))-10] ^= 1
	return answer
}

// renamed changes the name that ends what an answer says of a loaded key.
func renamed(_, answer []byte) []byte {
	answer[headerSize+8+int(binary.BigEndian.Uint32(answer[headerSize+4:]))-1] ^= 1
	return answer
}
