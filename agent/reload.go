package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"strings"
	"time"

	"wardlink/internal/sdnotify"
)

// ReloadStatus is what became of the last word to read the configuration again.
type ReloadStatus struct {
	At      time.Time `json:"at"`                      // zero: there was none
	Error   string    `json:"error,omitempty"`         // why nothing was changed, or not all; "" when the file is in use
	Changed []string  `json:"changed,omitempty"`       // what was: "report_every", and "source ID added", "changed" or "removed"
	Restart []string  `json:"needs_restart,omitempty"` // keys that the file has otherwise than the running agent, which takes them at its next start
}

// Reload has the running agent read its configuration again, soon. What load gives is checked as a whole first: an error changes nothing,
// and is in log and status. It does not block.
func (a *Agent) Reload(load func() (Config, error)) {
	select {
	case a.reloads <- load:
	default: // one waits already, and will see the same file
	}
}

// runReloads takes reloads until ctx ends, one at a time.
func (a *Agent) runReloads(ctx, sources context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case load := <-a.reloads:
			sdnotify.Reloading()
			st := a.reload(sources, load)
			a.mu.Lock()
			a.reloaded = st
			a.mu.Unlock()
			sdnotify.Ready()
			switch {
			case st.Error != "":
				a.log.Error("the configuration was read again and is not in use", "config", a.cfg.From, "error", st.Error, "changed", st.Changed)
			case len(st.Restart) > 0:
				a.log.Warn("the configuration was read again; part of it needs a restart", "config", a.cfg.From, "changed", st.Changed, "needs_restart", st.Restart)
			default:
				a.log.Info("the configuration was read again", "config", a.cfg.From, "changed", st.Changed)
			}
		}
	}
}

func (a *Agent) reload(sources context.Context, load func() (Config, error)) (st ReloadStatus) {
	st.At = time.Now()
	if sources.Err() != nil {
		st.Error = "this gateway takes nothing more from its devices: it stops, or was decommissioned"
		return st
	}
	next, err := load()
	if err == nil {
		err = next.CheckHere()
	}
	if err != nil {
		st.Error = err.Error()
		return st
	}
	if st.Changed, err = a.reloadSources(next.Sources); err != nil {
		st.Error = err.Error()
	}
	if st.Error != "" && len(st.Changed) == 0 {
		return st
	}
	st.Restart = a.cfg.needRestart(next)
	if every, err := next.reportEvery(); err == nil && a.reports.every.Swap(int64(every)) != int64(every) { // the file was checked
		st.Changed = append(st.Changed, "report_every")
	}
	return st
}

// needRestart names the keys whose values a running agent cannot change, and next does.
func (c Config) needRestart(next Config) (keys []string) {
	for key, same := range map[string]bool{
		"kit": c.Kit == next.Kit, "state": c.State == next.State, "tpm": c.TPM == next.TPM, "buffer": c.Buffer == next.Buffer, "proxy": c.Proxy == next.Proxy,
		"log": c.Log == next.Log, "event_log": c.EventLog == next.EventLog, "console": c.Console == next.Console, "metrics": c.Metrics == next.Metrics,
	} {
		if !same {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

// reloadSources makes the sources those of the configuration, or changes nothing when one of them cannot be. One whose configuration is the
// same is not touched, nor are its connections. One that is gone or otherwise now is ended first, in good order, since the next may want
// its port. Should one not open all the same, its former self takes its place again.
func (a *Agent) reloadSources(want []SourceConfig) (changed []string, err error) {
	have := map[string]*feed{}
	for _, s := range a.feeds.all() {
		have[s.cfg.ID] = s
	}
	for i, c := range want {
		if was := have[c.ID]; was == nil || !reflect.DeepEqual(c, was.cfg) {
			if err := a.trySource(c); err != nil {
				return nil, fmt.Errorf("sources[%d]: %w; nothing is changed", i, err)
			}
		}
	}
	var list, begin []*feed
	ended := map[string]*feed{}
	for id, s := range have {
		i := slices.IndexFunc(want, func(c SourceConfig) bool { return c.ID == id })
		if i < 0 || !reflect.DeepEqual(want[i], s.cfg) {
			ended[id] = s
		}
	}
	for _, id := range slices.Sorted(maps.Keys(ended)) {
		a.feeds.end(ended[id])
	}
	for _, c := range want {
		was := have[c.ID]
		if was != nil && ended[c.ID] == nil {
			list = append(list, was)
			continue
		}
		s, openErr := a.openFeed(c)
		if openErr != nil {
			err = errors.Join(err, fmt.Errorf("source %s: %w", c.ID, openErr))
			if was == nil {
				continue
			}
			if s, openErr = a.openFeed(was.cfg); openErr != nil { // it was open a moment ago
				err = errors.Join(err, fmt.Errorf("source %s as it was: %w", c.ID, openErr))
				continue
			}
		} else if was != nil {
			changed = append(changed, "source "+c.ID+" changed")
		} else {
			changed = append(changed, "source "+c.ID+" added")
		}
		list, begin = append(list, s), append(begin, s)
	}
	for _, id := range slices.Sorted(maps.Keys(ended)) {
		if !slices.ContainsFunc(want, func(c SourceConfig) bool { return c.ID == id }) {
			changed = append(changed, "source "+id+" removed")
		}
	}
	a.feeds.mu.Lock()
	defer a.feeds.mu.Unlock()
	a.feeds.list = list
	for _, s := range begin {
		a.feeds.begin(s)
	}
	return changed, err
}

func (a *Agent) openFeed(c SourceConfig) (*feed, error) {
	s, err := a.openSource(c)
	if err != nil {
		return nil, err
	}
	return &feed{Source: s, cfg: c}, nil
}

// trySource says what is wrong with a source's configuration beyond what the file alone shows: it is opened at another port or path, and
// closed before anybody is served.
func (a *Agent) trySource(c SourceConfig) error {
	if c.isLine() {
		other := "~"
		if strings.HasSuffix(c.Socket, other) {
			other = "+"
		}
		c.Socket = c.Socket[:len(c.Socket)-1] + other // no longer than it is: it may have all the bytes that a path can have
	} else if host, _, err := net.SplitHostPort(c.MLLP); err == nil {
		c.MLLP = net.JoinHostPort(host, "0")
	}
	s, err := a.openSource(c)
	if err != nil {
		return err
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	return s.Run(over)
}
