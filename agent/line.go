package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

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

// checkLine does not look names up, which are the box's own: see Config.CheckHere.
func (s SourceConfig) checkLine() error {
	if s.MLLP != "" || len(s.Allow) > 0 || s.UniqueIDs != nil || s.TLS != nil || s.Limits.PerAddress != 0 {
		return errors.New("socket: a source has either an mllp address, with allow, unique_ids, tls and limits.per_address, or a socket; make it two sources")
	}
	cfg, err := s.lines()
	if err != nil {
		return err
	}
	return cfg.Check()
}

// lines is what the source of a line socket is made of, but for what only the box and its agent can add: users and groups, and who takes
// the messages.
func (s SourceConfig) lines() (source.LineConfig, error) {
	cfg := source.LineConfig{ID: s.ID, MaxConns: s.Limits.Connections}
	mode, err := s.mode()
	if err != nil {
		return cfg, err
	}
	cfg.Socket = source.Socket{Path: s.Socket, Mode: mode, Group: -1}
	if cfg.Zone, err = s.zone(); err != nil {
		return cfg, err
	}
	if cfg.Bindings, err = s.bindings(); err != nil {
		return cfg, err
	}
	cfg.Limits, err = s.limits()
	return cfg, err
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
func (a *Agent) openLine(s SourceConfig) (source.Source, error) {
	cfg, err := s.lines()
	if err != nil {
		return nil, err
	}
	gid, users, groups, err := s.names()
	if err != nil {
		return nil, err
	}
	cfg.Socket.Group, cfg.Users, cfg.Groups, cfg.Log = gid, users, groups, a.log
	cfg.Accept = func(ctx context.Context, d source.Delivery) error { return a.intake.accept(ctx, d, true) }
	return source.NewLine(cfg)
}

// names looks up the users and groups that a socket's configuration names, on this machine. gid is that of the socket; -1: none is named.
func (c LineConfig) names() (gid int, users, groups []uint32, err error) {
	gid = -1
	if c.Group != "" {
		n, err := number("/etc/group", c.Group)
		if err != nil {
			return -1, nil, nil, fmt.Errorf("group: %w", err)
		}
		gid = int(n)
	}
	if users, err = numbers("/etc/passwd", "users", c.Users); err != nil {
		return -1, nil, nil, err
	}
	groups, err = numbers("/etc/group", "groups", c.Groups)
	return gid, users, groups, err
}

func numbers(file, key string, names []string) (out []uint32, err error) {
	for i, name := range names {
		n, err := number(file, name)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", key, i, err)
		}
		out = append(out, n)
	}
	return out, nil
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
