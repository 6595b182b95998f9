package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// program runs the whole program and gives its exit code.
func program(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(context.Background(), args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

func TestHL7Try(t *testing.T) {
	const header = "MSH|^~\\&|MON|W|||20260102030405||ORU^R01|7|P|2.6\r"
	good := header + "PID|||1\rOBX|1|NM|147842^^MDC||80|bpm|||||F\r"
	odd := header + "PID|||1\rOBX|1|NM|147842^^MDC||80|furlong|||||F\r"
	file := filepath.Join(t.TempDir(), "monitor.hl7")
	if err := os.WriteFile(file, []byte(odd), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		stdin  string
		args   []string
		code   int
		stdout string
		stderr string
	}{
		"understood":        {good, []string{"-"}, 0, "Heart rate (ECG): 80 /min", ""},
		"in part":           {odd, []string{"-"}, 2, "OBX[0]-6: unit is not known", ""},
		"a file":            {"", []string{file}, 2, "furlong", ""},
		"flags after":       {"", []string{file, "--odd", "--source-time-zone", "Asia/Tokyo"}, 2, "2026-01-01 18:04:05.000 UTC", ""},
		"not readable":      {good + "\x0bx", []string{"-"}, 1, "not taken", ""},
		"refused and odd":   {odd + "\x0bx\x1c\r", []string{"-"}, 1, "", ""},
		"empty":             {"", []string{"-"}, 1, "", "empty"},
		"no such file":      {"", []string{file + "x"}, 1, "", "no such file"},
		"a directory":       {"", []string{filepath.Dir(file)}, 1, "", "is a directory"},
		"no name":           {"", nil, 1, "", "name a file"},
		"two names":         {"", []string{file, file}, 1, "", "unexpected argument"},
		"unknown flag":      {"", []string{"--nonsense", file}, 1, "", "nonsense"},
		"unknown time zone": {good, []string{"-", "--source-time-zone", "Mars/Olympus"}, 1, "", "Europe/Berlin"},
	} {
		code, stdout, stderr := program(t, c.stdin, append([]string{"hl7", "try"}, c.args...)...)
		if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) || (c.stderr == "") != (stderr == "") {
			t.Errorf("%s: exit %d\n%s\n%s", name, code, stdout, stderr)
		}
	}
	code, stdout, _ := program(t, odd, "hl7", "try", "-", "--json")
	var report struct {
		Messages []struct {
			Problems []struct{ Where string }
		}
		InPart int `json:"understood_in_part"`
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != 2 || report.InPart != 1 || report.Messages[0].Problems[0].Where != "OBX[0]-6" {
		t.Errorf("exit %d, %v: %s", code, err, stdout)
	}
}
