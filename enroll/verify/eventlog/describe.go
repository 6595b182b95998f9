package eventlog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"
)

// Type is what an event says that it is (TCG PC Client Platform Firmware Profile 1.06, 10.4.1).
type Type uint32

// The types that this package looks into, and NoAction, which is not extended.
const (
	NoAction        Type = 0x03
	Separator       Type = 0x04
	CRTMVersion     Type = 0x08
	IPL             Type = 0x0d
	variableConfig  Type = 0x80000001
	variableBoot    Type = 0x80000002
	BootApplication Type = 0x80000003
	bootDriver      Type = 0x80000004
	runtimeDriver   Type = 0x80000005
	variableBoot2   Type = 0x8000000c
	variableAuth    Type = 0x800000e0
)

var typeNames = map[Type]string{
	0x00: "EV_PREBOOT_CERT", 0x01: "EV_POST_CODE", NoAction: "EV_NO_ACTION", Separator: "EV_SEPARATOR", 0x05: "EV_ACTION", 0x06: "EV_EVENT_TAG",
	0x07: "EV_S_CRTM_CONTENTS", CRTMVersion: "EV_S_CRTM_VERSION", 0x09: "EV_CPU_MICROCODE", 0x0a: "EV_PLATFORM_CONFIG_FLAGS",
	0x0b: "EV_TABLE_OF_DEVICES", 0x0c: "EV_COMPACT_HASH", IPL: "EV_IPL", 0x0e: "EV_IPL_PARTITION_DATA", 0x0f: "EV_NONHOST_CODE",
	0x10: "EV_NONHOST_CONFIG", 0x11: "EV_NONHOST_INFO", 0x12: "EV_OMIT_BOOT_DEVICE_EVENTS", 0x13: "EV_POST_CODE2",
	variableConfig: "EV_EFI_VARIABLE_DRIVER_CONFIG", variableBoot: "EV_EFI_VARIABLE_BOOT", BootApplication: "EV_EFI_BOOT_SERVICES_APPLICATION",
	bootDriver: "EV_EFI_BOOT_SERVICES_DRIVER", runtimeDriver: "EV_EFI_RUNTIME_SERVICES_DRIVER", 0x80000006: "EV_EFI_GPT_EVENT",
	0x80000007: "EV_EFI_ACTION", 0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB", 0x80000009: "EV_EFI_HANDOFF_TABLES",
	0x8000000a: "EV_EFI_PLATFORM_FIRMWARE_BLOB2", 0x8000000b: "EV_EFI_HANDOFF_TABLES2", variableBoot2: "EV_EFI_VARIABLE_BOOT2",
	0x80000010: "EV_EFI_HCRTM_EVENT", variableAuth: "EV_EFI_VARIABLE_AUTHORITY", 0x800000e1: "EV_EFI_SPDM_FIRMWARE_BLOB",
	0x800000e2: "EV_EFI_SPDM_FIRMWARE_CONFIG",
}

// String is the specification's name.
func (t Type) String() string {
	if name, ok := typeNames[t]; ok {
		return name
	}
	return fmt.Sprintf("event type %#x", uint32(t))
}

const maxText = 80 // bytes of a description

// Describe gives what the log says of an event, for a person: the name of a variable, the file that was started, a text. It is empty where
// there is nothing to read, at most 80 bytes of printable ASCII, and the gateway's word.
func (e Event) Describe() string {
	switch e.Type {
	case variableConfig, variableBoot, variableBoot2, variableAuth:
		return variableName(e.Data)
	case BootApplication, bootDriver, runtimeDriver:
		return imagePath(e.Data)
	case Separator:
		if len(e.Data) == 4 { // 0 or FFFFFFFF; another value is an error of the firmware
			return fmt.Sprintf("%x", e.Data)
		}
	}
	if text := wide(e.Data); text != "" {
		return text
	}
	return narrow(e.Data)
}

// variableName reads the name in a UEFI_VARIABLE_DATA: a GUID, the name's length in UTF-16 units, the data's in bytes, and both.
func variableName(data []byte) string {
	if len(data) < 32 {
		return ""
	}
	n := binary.LittleEndian.Uint64(data[16:])
	if n > uint64(len(data)-32)/2 {
		return ""
	}
	return wide(data[32 : 32+2*n])
}

// imagePath reads the file's path in a UEFI_IMAGE_LOAD_EVENT: address, length, link address and length of a device path, and that.
func imagePath(data []byte) string {
	if len(data) < 32 {
		return ""
	}
	for path := data[32:]; len(path) >= 4; {
		n := int(binary.LittleEndian.Uint16(path[2:]))
		if n < 4 || n > len(path) {
			return ""
		}
		if path[0] == 4 && path[1] == 4 { // media, file path (UEFI 2.10, 10.3.5.4)
			return wide(path[4:n])
		}
		path = path[n:]
	}
	return ""
}

// wide reads printable ASCII in UTF-16, as firmware writes it, up to its end or a zero; empty for anything else.
func wide(data []byte) string {
	var units []uint16
	for ; len(data) >= 2 && len(units) <= maxText; data = data[2:] {
		u := binary.LittleEndian.Uint16(data)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return printable(string(utf16.Decode(units)))
}

func narrow(data []byte) string {
	if i := bytes.IndexByte(data, 0); i >= 0 {
		data = data[:i]
	}
	return printable(string(data[:min(len(data), maxText+1)]))
}

// printable is s if a person can read all of it, cut to maxText.
func printable(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
		return ""
	}
	if len(s) > maxText {
		s = s[:maxText-3] + "..."
	}
	return s
}
