package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"wardlink/agent/source"
)

// LineConfig is what a source with a line socket has in the configuration, in place of an mllp address.
type LineConfig struct {
	Socket string   `yaml:"socket"` // path, such as /run/wardlink-agent/vitals.sock; its directory exists
	Mode   string   `yaml:"mode"`   // of the socket, in octal; default 0660
	Group  string   `yaml:"group"`  // that the socket is given to, a name or a number; default the agent's own
	Users  []string `yaml:"users"`  // who may send, names or numbers; with groups empty too, whoever can open the socket
	Groups []string `yaml:"groups"` // by their primary group
}

func (c LineConfig) any() bool {
	return c.Socket != "" || c.Mode != "" || c.Group != "" || len(c.Users) > 0 || len(c.Groups) > 0
}

func (s SourceConfig) isLine() bool { return s.Socket != "" }

// checkLine does not look names up: a user may be made after the configuration was written.
func (s SourceConfig) checkLine() error {
	if s.MLLP != "" || len(s.Allow) > 0 || s.UniqueIDs != nil || s.TLS != nil || s.Limits.PerAddress != 0 {
		return errors.New("socket: a source has either an mllp address, with allow, unique_ids, tls and limits.per_address, or a socket; make it two sources")
	}
	for i, b := range s.Bindings {
		if b.Device == "" || b.ID != "" {
			return fmt.Errorf("bindings[%d]: expected a device and its bed, such as {device: pump-3, bed: ICU-7}; on a socket a binding has nothing else to go by", i)
		}
	}
	if _, err := s.bindings(nil); err != nil {
		return err
	}
	if _, err := s.limits(); err != nil {
		return err
	}
	if _, err := s.zone(); err != nil {
		return err
	}
	mode, err := s.mode()
	if err != nil {
		return err
	}
	if err := (source.Socket{Path: s.Socket, Mode: mode, Group: -1}).Check(); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	return nil
}

func (c LineConfig) mode() (fs.FileMode, error) {
	if c.Mode == "" {
		return 0o660, nil
	}
	n, err := strconv.ParseUint(c.Mode, 8, 9)
	if err != nil || n&0o600 != 0o600 {
		return 0, fmt.Errorf("mode: %q; expected octal digits in quotes with which the agent itself can read and write, such as \"0660\"", c.Mode)
	}
	return fs.FileMode(n), nil
}

// openLine makes the source of a line socket.
func (a *Agent) openLine(s SourceConfig, zone *time.Location) (source.Source, error) {
	mode, err := s.mode()
	if err != nil {
		return nil, err
	}
	limits, err := s.limits()
	if err != nil {
		return nil, err
	}
	bindings, err := s.bindings(nil)
	if err != nil {
		return nil, err
	}
	cfg := source.LineConfig{
		Limits: limits, Bindings: bindings,
		ID: s.ID, Socket: source.Socket{Path: s.Socket, Mode: mode, Group: -1}, Zone: zone, Log: a.log,
		Accept:   func(ctx context.Context, d source.Delivery) error { return a.intake.accept(ctx, d, true) },
		MaxConns: s.Limits.Connections,
	}
	if s.Group != "" {
		gid, err := number("/etc/group", s.Group)
		if err != nil {
			return nil, fmt.Errorf("group: %w", err)
		}
		cfg.Socket.Group = int(gid)
	}
	for i, list := range [][]string{s.Users, s.Groups} {
		file, key, to := "/etc/passwd", "users", &cfg.Users
		if i == 1 {
			file, key, to = "/etc/group", "groups", &cfg.Groups
		}
		for k, name := range list {
			n, err := number(file, name)
			if err != nil {
				return nil, fmt.Errorf("%s[%d]: %w", key, k, err)
			}
			*to = append(*to, n)
		}
	}
	return source.NewLine(cfg)
}

// number is a user's or a group's, by its name in a file such as /etc/passwd. The library's way of asking would be a tenth of the agent's
// room for sources, and asks no more without cgo.
func number(file, name string) (uint32, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return uint32(n), nil
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for entry := range strings.Lines(string(data)) {
		if f := strings.Split(entry, ":"); len(f) > 2 && f[0] == name {
			n, err := strconv.ParseUint(f[2], 10, 32)
			return uint32(n), err
		}
	}
	return 0, fmt.Errorf("%q is not in %s; make it, or give its number", name, file)
}
