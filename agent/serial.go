package agent

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"wardlink/enroll/verify"
)

// serialFiles are where a gateway's serial number stands, below the root of the file system. The firmware of ARM boards passes it in the
// device tree. A PC's is in DMI, which only root may read: the unit copies it, or a service manager passes it on as a credential.
var serialFiles = []string{"run/wardlink-agent/serial", "proc/device-tree/serial-number", "sys/firmware/devicetree/base/serial-number", "sys/class/dmi/id/product_serial"}

// noSerial are what makers leave there instead of a serial number, in lower case.
var noSerial = []string{
	"0", "00000000", "0000000000000000", "0123456789", "123456789", "chassis serial number", "default string", "empty", "invalid", "n/a", "na", "none",
	"not applicable", "not available", "not specified", "oem", "o.e.m.", "system serial number", "to be filled by o.e.m.", "unknown", "xxxxxxxxxx",
}

// Serial is the serial number of the box around the TPM, "" where it has none that could be read. It goes with the first attestation, so
// that operators find the box in their lists; it proves nothing.
func Serial() string { return serialBelow("/", os.Getenv("CREDENTIALS_DIRECTORY")) }

func serialBelow(root, credentials string) string {
	var files []string
	if credentials != "" {
		files = append(files, filepath.Join(credentials, "serial"))
	}
	for _, f := range serialFiles {
		files = append(files, filepath.Join(root, f))
	}
	for _, f := range files {
		data, err := readBounded(f, 4*verify.MaxSerial)
		if err != nil {
			continue
		}
		s := strings.TrimSpace(strings.TrimRight(string(data), "\x00\n"))
		if s != "" && verify.PlainSerial(s) && !slices.Contains(noSerial, strings.ToLower(s)) {
			return s
		}
	}
	return ""
}

// readBounded reads at most limit bytes of a file, and no more than a part of one that is longer.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}
