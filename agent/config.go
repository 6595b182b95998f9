// Package agent wires a gateway together: sources -> batches -> seal -> buffer -> uplink, with the TPM identity beside it. The data
// path never waits for the TPM, the network or the server: sealing and buffering begin with the first message.
package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"wardlink/agent/egress"
	"wardlink/enroll/tpm"
	"wardlink/internal/durable"
	"wardlink/internal/spiffe"
	"wardlink/internal/strictyaml"
)

// Config is an agent's configuration file. Unknown keys are errors.
type Config struct {
	Kit     string         `yaml:"kit"`     // path of the kit; default: kit.json in /etc/wardlink or on the boot partition
	State   string         `yaml:"state"`   // directory of identity and buffer; default /var/lib/wardlink-agent
	TPM     string         `yaml:"tpm"`     // "/dev/tpmrm0" (default) or "swtpm:PATH"
	Buffer  BufferConfig   `yaml:"buffer"`  //
	Sources []SourceConfig `yaml:"sources"` // at least one
	Proxy   ProxyConfig    `yaml:"proxy"`   // none unless its url is set
	Log     string         `yaml:"log"`     // "text" (default) or "json"
	Metrics MetricsConfig  `yaml:"metrics"` // none unless its socket is set

	// ReportEvery is how often the agent reports of itself while nothing changes; default 60s, 1s to 1h. A report has about 0.5 KB.
	ReportEvery string `yaml:"report_every"`

	// EventLog is the firmware's event log, which the hospital gets with each quote; default what the kernel shows, where it shows one.
	EventLog string `yaml:"event_log"`

	// Console is the file that tells whoever stands before the box its fingerprint, in the form of /etc/issue; default
	// /run/wardlink-agent/issue. Nothing is written where its directory does not exist.
	Console string `yaml:"console"`

	// From says where the configuration was read: a path, or BuiltIn.
	From string `yaml:"-"`

	root string // of the file system, for tests; "" is /

	// Wall is the wall clock; nil, which is all that a file can say, is the system's. Tests boot in 1970 with it.
	Wall func() time.Time `yaml:"-"`

	// Trial is how long a configuration of the hospital's may take from prepared to confirmed; 0, which is all that a file can say, is 90 s.
	Trial time.Duration `yaml:"-"`
}

// BufferConfig bounds the buffer.
type BufferConfig struct {
	Cap string `yaml:"cap"` // bytes on disk, such as 512MB or 8GB; default 1GB, at least 64MB
}

// MetricsConfig is a socket at which others than the agent's own user read its metrics, and nothing else.
type MetricsConfig struct {
	Socket string `yaml:"socket"` // path, such as /run/wardlink-agent/metrics.sock; its directory exists
	Group  string `yaml:"group"`  // that may read, a name or a number; default the agent's own
}

// ProxyConfig is the HTTP proxy through which this gateway gets out.
type ProxyConfig struct {
	URL         string `yaml:"url"`         // http://host:port
	Credentials string `yaml:"credentials"` // a file of mode 0600 with one line user:password; "": the proxy asks for none
}

// SourceConfig is one bedside device, or one port that several share.
type SourceConfig struct {
	ID       string   `yaml:"id"`        // names the source in every observation's key: never reuse or rename one
	MLLP     string   `yaml:"mllp"`      // listen address, such as 127.0.0.1:2575
	Allow    []string `yaml:"allow"`     // peers' networks in CIDR form; required unless MLLP is a loopback address
	TimeZone string   `yaml:"time_zone"` // zone of device times that carry none; default UTC

	// UniqueIDs says that the device never gives one control id (MSH-10) to two messages; default true. With false, or where a message
	// has no control id, identical bytes are a new message once the former one's acknowledgement was written.
	UniqueIDs *bool `yaml:"unique_ids"`

	Bindings []BindingConfig `yaml:"bindings"` // of devices to beds; none: readings say no bed
	Limits   LimitsConfig    `yaml:"limits"`   // of what its devices bring
	TLS      *TLSConfig      `yaml:"tls"`      // none: devices do not speak TLS

	LineConfig `yaml:",inline"`
}

// maxSocket is the longest path of a Unix socket: sun_path has 108 bytes, with the NUL at its end (unix(7)).
const maxSocket = 107

// minBuffer is the least useful cap: each of the four lanes holds a segment being written and one being drained.
const minBuffer = 64 << 20

// BuiltIn is Config.From of a gateway that found no configuration file.
const BuiltIn = "built-in defaults"

// defaults are the configuration of a gateway that is given none: one port for the monitors of its ward's private networks.
const defaults = `sources: [{id: bedside, mllp: "0.0.0.0:2575", allow: [10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, "fd00::/8"]}]`

// LoadConfig reads and checks the file. Path "" is agent.yaml in the first of ConfigDirs that has one, and where none has, the
// built-in defaults: a source "bedside" on port 2575 for private networks (RFC 1918, RFC 4193). Its errors name file, line or key, and the mend.
func LoadConfig(path string) (Config, error) { return loadConfig("", path) }

func loadConfig(root, path string) (Config, error) {
	paths := []string{path}
	if path == "" {
		paths = paths[:0]
		for _, dir := range ConfigDirs() {
			paths = append(paths, filepath.Join(root, dir, "agent.yaml"))
		}
	}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if errors.Is(err, fs.ErrNotExist) && path == "" {
			continue
		}
		if err != nil {
			return Config{}, fmt.Errorf("config: %w; write one ('wardlink-agent help' shows all keys) or name it with --config", err)
		}
		c, err := ParseConfig(data)
		if err != nil {
			return Config{}, fmt.Errorf("config %s: %w", p, err)
		}
		c.From, c.root = p, root
		return c, nil
	}
	c, err := ParseConfig([]byte(defaults))
	c.From, c.root = BuiltIn, root
	return c, err
}

// checkDefaults refuses the built-in defaults on a gateway that is enrolled and did not begin with them: its configuration is lost, and
// sources of other names would give every observation another key.
func (c Config) checkDefaults() error {
	if c.From != BuiltIn || !c.enrolled() {
		return nil
	}
	if _, err := os.Stat(c.defaultsMark()); err == nil {
		return nil
	}
	return fmt.Errorf("config: none at %s, but this gateway was enrolled with one: bring it back, or name it with --config; to go on with the built-in defaults, make an empty file %s",
		strings.Join(ConfigDirs(), ", "), c.defaultsMark())
}

// defaultsMark is the file that says that this gateway began with the built-in defaults.
func (c Config) defaultsMark() string { return filepath.Join(c.State, "defaults") }

// markDefaults leaves it.
func (c Config) markDefaults() error {
	if c.From != BuiltIn {
		return nil
	}
	return durable.WriteFile(c.defaultsMark(), nil, 0o644)
}

// ParseConfig reads the YAML text, fills defaults and checks every value.
func ParseConfig(data []byte) (Config, error) {
	c := Config{State: "/var/lib/wardlink-agent", TPM: "/dev/tpmrm0", Log: "text", Console: "/run/wardlink-agent/issue"}
	c.Buffer.Cap = "1GB"
	if err := strictyaml.Decode(data, &c); err != nil {
		return Config{}, err
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return Config{}, errors.New("the file is empty; 'wardlink-agent help' shows all keys")
	}
	if c.Log != "text" && c.Log != "json" {
		return Config{}, fmt.Errorf("log: %q; expected text or json", c.Log)
	}
	if _, err := c.BufferCap(); err != nil {
		return Config{}, err
	}
	if !strings.HasPrefix(c.TPM, "/") && !strings.HasPrefix(c.TPM, "swtpm:/") {
		return Config{}, fmt.Errorf("tpm: %q; expected a device such as /dev/tpmrm0, or swtpm:/path/to.sock", c.TPM)
	}
	if c.EventLog != "" && !strings.HasPrefix(c.EventLog, "/") {
		return Config{}, fmt.Errorf("event_log: %q; expected a path such as %s", c.EventLog, tpm.EventLog)
	}
	if n := len(c.Socket()); n > maxSocket {
		return Config{}, fmt.Errorf("state: %q is too long: the status socket in it would have a path of %d bytes, and a Unix socket's has at most %d", c.State, n, maxSocket)
	}
	if err := c.Metrics.check(); err != nil {
		return Config{}, fmt.Errorf("metrics.%w", err)
	}
	if _, err := c.proxy(); err != nil {
		return Config{}, err
	}
	if _, err := c.reportEvery(); err != nil {
		return Config{}, err
	}
	if len(c.Sources) == 0 {
		return Config{}, errors.New("sources: none; add one such as {id: bed-7, mllp: 127.0.0.1:2575}")
	}
	ports := map[string]int{}
	for i, s := range c.Sources {
		if err := s.check(); err != nil {
			return Config{}, fmt.Errorf("sources[%d]: %w", i, err)
		}
		if j, dup := ports[s.Socket]; dup && s.Socket != "" {
			return Config{}, fmt.Errorf("sources[%d].socket: %q is sources[%d]'s already; devices may share one source, two sources cannot share a socket", i, s.Socket, j)
		}
		ports[s.Socket] = i
		if j, dup := ports[s.MLLP]; dup && s.MLLP != "" && !strings.HasSuffix(s.MLLP, ":0") {
			return Config{}, fmt.Errorf("sources[%d].mllp: %q is sources[%d]'s already; devices may share one source, two sources cannot share a port", i, s.MLLP, j)
		}
		ports[s.MLLP] = i
	}
	return c, c.checkIDs()
}

// CheckHere says what of a configuration that ParseConfig took keeps an agent from starting on this machine: users and groups that it does not
// have, or the lack of the file with which a gateway was enrolled.
func (c Config) CheckHere() error {
	if err := c.checkDefaults(); err != nil {
		return err
	}
	for i, s := range c.Sources {
		if _, _, _, err := s.names(); err != nil {
			return fmt.Errorf("config %s: sources[%d]: %w", c.From, i, err)
		}
	}
	return nil
}

// BufferCap is the buffer's cap in bytes.
func (c Config) BufferCap() (int64, error) {
	n, ok := parseSize(c.Buffer.Cap)
	if !ok {
		return 0, fmt.Errorf("buffer.cap: %q; expected a size such as 512MB or 8GB", c.Buffer.Cap)
	}
	if n < minBuffer {
		return 0, fmt.Errorf("buffer.cap: %q is too small; expected at least 64MB", c.Buffer.Cap)
	}
	return n, nil
}

// parseSize reads a number of bytes above 0, in binary units under their everyday names.
func parseSize(s string) (n int64, ok bool) {
	text := strings.ToUpper(strings.TrimSpace(s))
	unit := int64(1)
	for _, u := range []struct {
		suffix string
		bytes  int64
	}{{"KB", 1 << 10}, {"MB", 1 << 20}, {"GB", 1 << 30}, {"TB", 1 << 40}} {
		if rest, found := strings.CutSuffix(text, u.suffix); found {
			text, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n <= 0 || n > (1<<62)/unit {
		return 0, false
	}
	return n * unit, true
}

// Way is how this gateway gets to its servers.
func (c Config) Way() (*egress.Way, error) {
	p, err := c.proxy()
	if err != nil {
		return nil, err
	}
	return egress.New(p), nil
}

func (c Config) proxy() (*egress.Proxy, error) {
	if c.Proxy == (ProxyConfig{}) {
		return nil, nil
	}
	p, err := egress.ParseProxy(c.Proxy.URL, c.Proxy.Credentials)
	if err != nil {
		return nil, fmt.Errorf("proxy.%w", err)
	}
	return p, nil
}

// reportEvery is ReportEvery as a duration.
func (c Config) reportEvery() (time.Duration, error) {
	if c.ReportEvery == "" {
		return reportEvery, nil
	}
	d, err := time.ParseDuration(c.ReportEvery)
	if err != nil || d < time.Second || d > time.Hour {
		return 0, fmt.Errorf("report_every: %q; expected 1s to 1h, such as 60s", c.ReportEvery)
	}
	return d, nil
}

func (c Config) trialPeriod() time.Duration {
	if c.Trial > 0 {
		return c.Trial
	}
	return trialPeriod
}

// Socket is where the running agent answers status questions.
func (c Config) Socket() string { return filepath.Join(c.State, "agent.sock") }

// check finds what the source would refuse when it is made, short of what only the box knows.
func (s SourceConfig) check() error {
	if err := spiffe.ValidName(s.ID); err != nil {
		return fmt.Errorf("id: %w", err)
	}
	if s.isLine() {
		return s.checkLine()
	}
	if s.LineConfig.any() {
		return errors.New("mode, group, users and groups are of a socket; set socket: /run/wardlink-agent/vitals.sock, or take them out")
	}
	cfg, err := s.device()
	if err != nil {
		return err
	}
	return cfg.Check()
}

func (s SourceConfig) uniqueIDs() bool { return s.UniqueIDs == nil || *s.UniqueIDs }

func (s SourceConfig) zone() (*time.Location, error) {
	if s.TimeZone == "" {
		return time.UTC, nil
	}
	loc, err := time.LoadLocation(s.TimeZone)
	if err != nil {
		return nil, fmt.Errorf("time_zone: %q is not in this box's time zone database; expected a name such as Europe/Berlin "+
			"(is the package tzdata installed?)", s.TimeZone)
	}
	return loc, nil
}

func (s SourceConfig) prefixes() ([]netip.Prefix, error) {
	var out []netip.Prefix
	for i, text := range s.Allow {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("allow[%d]: %q; expected a network such as 10.20.0.0/16 or 10.20.0.7/32", i, text)
		}
		out = append(out, p)
	}
	return out, nil
}
