package alerts

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wardlink/internal/secret"
)

// Settings are the 'alerts:' part of server.yaml. Unknown keys are errors, and so are values, secrets and certificates that cannot be
// used: they are found at the start. A target that does not answer never keeps a server from starting.
type Settings struct {
	Targets []Target               `yaml:"targets"`
	Repeat  map[Type]time.Duration `yaml:"repeat"` // instead of a type's own interval; at least a minute
	Limits  Limits                 `yaml:"limits"`
	// BackupStamp is a file that the backup's job touches when it succeeded. Empty: backups are not watched.
	BackupStamp string `yaml:"backup_stamp"`
}

// Limits are when the watchers raise. A zero takes the default that its comment names.
type Limits struct {
	GatewaySilent     time.Duration `yaml:"gateway_silent"`      // without a session: 10m; critical after six times that
	Gap               time.Duration `yaml:"gap"`                 // age of a gap that nobody accounts for: 10m
	CertificateLate   int           `yaml:"certificate_late"`    // percent of a certificate's life without renewal: 75; critical at 90
	RefusalsPerMinute int           `yaml:"refusals_per_minute"` // of one network or gateway: 60
	DiskFreePercent   int           `yaml:"disk_free_percent"`   // 10; critical at a third of it
	DiskFreeGB        int           `yaml:"disk_free_gb"`        // 2; critical at a quarter of it
	DiskDays          int           `yaml:"disk_days"`           // full within so many days at the rate of the last hours: 3
	BackupAge         time.Duration `yaml:"backup_age"`          // of the stamp: 26h
	LogLag            time.Duration `yaml:"log_lag"`             // 1m
	RecordsLag        time.Duration `yaml:"records_lag"`         // age of the oldest batch that is not opened: 5m
	ClockJump         time.Duration `yaml:"clock_jump"`          // 1m
}

// WithDefaults fills what is zero.
func (l Limits) WithDefaults() Limits {
	span := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	count := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	span(&l.GatewaySilent, 10*time.Minute)
	span(&l.Gap, 10*time.Minute)
	count(&l.CertificateLate, 75)
	count(&l.RefusalsPerMinute, 60)
	count(&l.DiskFreePercent, 10)
	count(&l.DiskFreeGB, 2)
	count(&l.DiskDays, 3)
	span(&l.BackupAge, 26*time.Hour)
	span(&l.LogLag, time.Minute)
	span(&l.RecordsLag, 5*time.Minute)
	span(&l.ClockJump, time.Minute)
	return l
}

// Target is where messages go: one of Webhook and Syslog is set.
type Target struct {
	Name       string        `yaml:"name"`        // 1 to 32 of a-z, 0-9, hyphen
	Webhook    string        `yaml:"webhook"`     // https URL
	SecretFile string        `yaml:"secret_file"` // of a webhook: whsec_ and base64, a line each; mode 0600. The first signs, further ones too
	Syslog     string        `yaml:"syslog"`      // udp://host:514, tcp://host:601, tls://host:6514, unix:/dev/log
	Facility   string        `yaml:"facility"`    // of syslog: daemon (default), auth, authpriv, local0 to local7
	CAFile     string        `yaml:"ca_file"`     // PEM; instead of the system's certificates
	Minimum    string        `yaml:"minimum"`     // notice, warning (default) or critical
	Timeout    time.Duration `yaml:"timeout"`     // of one attempt, 1s to 1m: 15s
}

const maxTargets = 16

// Check says what is wrong with the values. It opens nothing.
func (s Settings) Check() error {
	if len(s.Targets) > maxTargets {
		return fmt.Errorf("targets: %d; at most %d", len(s.Targets), maxTargets)
	}
	seen := make(map[string]bool)
	for i, t := range s.Targets {
		if err := t.check(); err != nil {
			return fmt.Errorf("targets[%d]: %w", i, err)
		}
		if seen[t.Name] {
			return fmt.Errorf("targets[%d]: name: %s is taken by another target", i, t.Name)
		}
		seen[t.Name] = true
	}
	for t, d := range s.Repeat {
		if _, ok := KindOf(t); !ok {
			return fmt.Errorf("repeat: %.40q is no type of alert; expected one of %s", t, typeNames())
		}
		if d < time.Minute {
			return fmt.Errorf("repeat: %s: %s; expected at least 1m", t, d)
		}
	}
	if s.BackupStamp != "" && !filepath.IsAbs(s.BackupStamp) {
		return fmt.Errorf("backup_stamp: %q; expected an absolute path", s.BackupStamp)
	}
	return s.Limits.check()
}

func (l Limits) check() error {
	for name, d := range map[string]time.Duration{
		"gateway_silent": l.GatewaySilent, "gap": l.Gap, "backup_age": l.BackupAge, "log_lag": l.LogLag, "records_lag": l.RecordsLag,
		"clock_jump": l.ClockJump,
	} {
		if d != 0 && (d < time.Second || d > 365*24*time.Hour) {
			return fmt.Errorf("limits: %s: %s; expected 1s to 8760h, such as 10m", name, d)
		}
	}
	for name, v := range map[string]struct{ n, most int }{
		"certificate_late": {l.CertificateLate, 100}, "refusals_per_minute": {l.RefusalsPerMinute, 1_000_000},
		"disk_free_percent": {l.DiskFreePercent, 90}, "disk_free_gb": {l.DiskFreeGB, 1_000_000}, "disk_days": {l.DiskDays, 365},
	} {
		if v.n < 0 || v.n > v.most {
			return fmt.Errorf("limits: %s: %d; expected 1 to %d", name, v.n, v.most)
		}
	}
	return nil
}

func (t Target) check() error {
	if len(t.Name) == 0 || len(t.Name) > 32 || strings.Trim(t.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("name: %.40q; expected 1 to 32 of a-z, 0-9 and hyphens", t.Name)
	}
	if t.Minimum != "" {
		if _, err := ParseSeverity(t.Minimum); err != nil {
			return fmt.Errorf("%s: minimum: %w", t.Name, err)
		}
	}
	if t.Timeout != 0 && (t.Timeout < time.Second || t.Timeout > time.Minute) {
		return fmt.Errorf("%s: timeout: %s; expected 1s to 1m", t.Name, t.Timeout)
	}
	switch {
	case (t.Webhook == "") == (t.Syslog == ""):
		return fmt.Errorf("%s: give either webhook or syslog", t.Name)
	case t.Webhook != "":
		return t.checkWebhook()
	}
	return t.checkSyslog()
}

func (t Target) checkWebhook() error {
	u, err := url.Parse(t.Webhook)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("%s: webhook: expected https://host/path without user and fragment", t.Name) // a token in the path stays out of errors
	}
	if t.SecretFile == "" {
		return fmt.Errorf("%s: secret_file is missing: the file that holds the secret by which messages are signed", t.Name)
	}
	if t.Facility != "" {
		return fmt.Errorf("%s: facility is for syslog", t.Name)
	}
	return nil
}

func (t Target) checkSyslog() error {
	if _, _, err := splitSyslog(t.Syslog); err != nil {
		return fmt.Errorf("%s: syslog: %w", t.Name, err)
	}
	if _, err := facilityOf(t.Facility); err != nil {
		return fmt.Errorf("%s: %w", t.Name, err)
	}
	if t.SecretFile != "" {
		return fmt.Errorf("%s: secret_file is for a webhook", t.Name)
	}
	if t.CAFile != "" && !strings.HasPrefix(t.Syslog, "tls://") {
		return fmt.Errorf("%s: ca_file is for tls://", t.Name)
	}
	return nil
}

// splitSyslog gives the network (udp, tcp, tls, unix) and the address.
func splitSyslog(text string) (network, addr string, err error) {
	if path, ok := strings.CutPrefix(text, "unix:"); ok && filepath.IsAbs(path) {
		return "unix", path, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Hostname() == "" || !slices.Contains([]string{"udp", "tcp", "tls"}, u.Scheme) {
		return "", "", fmt.Errorf("%.100q; expected udp://host:514, tcp://host:601, tls://host:6514 or unix:/dev/log", text)
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"udp": "514", "tcp": "601", "tls": "6514"}[u.Scheme] // RFC 5426, RFC 6587, RFC 5425
	}
	return u.Scheme, net.JoinHostPort(u.Hostname(), port), nil
}

const (
	secretPrefix = "whsec_"
	maxSecrets   = 8
)

// readSecrets reads a webhook's secrets, one a line: 24 to 64 random bytes each, as Standard Webhooks has it.
func readSecrets(path string) ([]secret.Bytes, error) {
	how := fmt.Sprintf("make one with: (umask 077; printf 'whsec_%%s\\n' \"$(head -c 32 /dev/urandom | base64)\" > %s)", path)
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("secret_file: %w; %s", err, how)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("secret_file: %s has mode %04o: others can read it; 'chmod 600 %s', and make a new secret if they should not have", path, info.Mode().Perm(), path)
	}
	if info.Size() > 16<<10 {
		return nil, fmt.Errorf("secret_file: %s has %d bytes; expected a line for each secret", path, info.Size())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("secret_file: %w", err)
	}
	var out []secret.Bytes
	for n, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		body, ok := strings.CutPrefix(strings.TrimSpace(line), secretPrefix)
		raw, err := base64.StdEncoding.DecodeString(body)
		if !ok || err != nil || len(raw) < 24 || len(raw) > 64 {
			return nil, fmt.Errorf("secret_file: %s: line %d: expected whsec_ and the base64 of 24 to 64 random bytes; %s", path, n+1, how)
		}
		out = append(out, raw)
	}
	if len(out) > maxSecrets {
		return nil, errors.New("secret_file: " + path + ": at most 8 secrets")
	}
	return out, nil
}
