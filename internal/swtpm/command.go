package swtpm

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// emptyPassword authorises one handle whose password is empty: TPM_RS_PW, no nonce, no attributes, no password, behind their length.
var emptyPassword = []byte{0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0}

// Clear sends TPM2_Clear (TPM 2.0 library, part 3) with the lockout's empty password, as an operator does in a machine's firmware setup:
// the storage and endorsement hierarchies lose their keys, and the endorsement seed stays. Nobody else may speak to the socket meanwhile.
func Clear(socket string) error {
	if err := send(socket, 0x126, 0x4000000a, nil); err != nil { // TPM_CC_Clear, TPM_RH_LOCKOUT
		return fmt.Errorf("clear the TPM: %w", err)
	}
	return nil
}

// Extend sends TPM2_PCR_Extend for a PCR of the SHA-256 bank, as firmware does with the hash of what it starts next.
func Extend(socket string, pcr int, digest [32]byte) error {
	parameters := append([]byte{0, 0, 0, 1, 0, 0x0b}, digest[:]...) // one digest, TPM_ALG_SHA256
	if err := send(socket, 0x182, uint32(pcr), parameters); err != nil {
		return fmt.Errorf("extend PCR %d: %w", pcr, err)
	}
	return nil
}

// WithoutSHA256 has the TPM keep its PCRs by SHA-1 alone from its next start on (TPM2_PCR_Allocate), as a machine's firmware setup may.
func WithoutSHA256(socket string) error {
	banks := []byte{0, 0, 0, 2, 0, 0x0b, 3, 0, 0, 0, 0, 0x04, 3, 0xff, 0xff, 0xff} // no PCR by TPM_ALG_SHA256, all by TPM_ALG_SHA1
	if err := send(socket, 0x12b, 0x4000000c, banks); err != nil {                 // TPM_RH_PLATFORM
		return fmt.Errorf("allocate PCRs: %w", err)
	}
	return nil
}

// send sends one command on one handle, with the empty password.
func send(socket string, code, handle uint32, parameters []byte) error {
	conn, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	command := []byte{0x80, 0x02} // TPM_ST_SESSIONS
	command = binary.BigEndian.AppendUint32(command, uint32(14+len(emptyPassword)+len(parameters)))
	command = binary.BigEndian.AppendUint32(command, code)
	command = binary.BigEndian.AppendUint32(command, handle)
	command = append(append(command, emptyPassword...), parameters...)
	if _, err := conn.Write(command); err != nil {
		return err
	}
	answer := make([]byte, 10)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return err
	}
	if code := binary.BigEndian.Uint32(answer[6:]); code != 0 {
		return fmt.Errorf("it answers %#x", code)
	}
	return nil
}
