package swtpm

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"time"
)

// Clear sends TPM2_Clear (TPM 2.0 library, part 3) with the lockout's empty password, as an operator does in a machine's firmware setup:
// the storage and endorsement hierarchies lose their keys, and the endorsement seed stays. Nobody else may speak to the socket meanwhile.
func Clear(socket string) error {
	conn, err := net.DialTimeout("unix", socket, 5*time.Second)
	if err != nil {
		return fmt.Errorf("clear the TPM: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	command := []byte{
		0x80, 0x02, 0, 0, 0, 27, 0, 0, 0x01, 0x26, // TPM_ST_SESSIONS, 27 bytes, TPM_CC_Clear
		0x40, 0, 0, 0x0a, // TPM_RH_LOCKOUT
		0, 0, 0, 9, 0x40, 0, 0, 0x09, 0, 0, 0, 0, 0, // TPM_RS_PW, no nonce, no attributes, empty password
	}
	if _, err := conn.Write(command); err != nil {
		return fmt.Errorf("clear the TPM: %w", err)
	}
	answer := make([]byte, 10)
	if _, err := io.ReadFull(conn, answer); err != nil {
		return fmt.Errorf("clear the TPM: %w", err)
	}
	if code := binary.BigEndian.Uint32(answer[6:]); code != 0 {
		return fmt.Errorf("clear the TPM: it answers %#x", code)
	}
	return nil
}
