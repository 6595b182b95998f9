package agent

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"wardlink/enroll"
	"wardlink/internal/durable"
	"wardlink/telemetry"
)

// configStore keeps the configurations that the config key signed for this gateway and for its site: those in force, and at most one on its
// way to be. A document goes through prepared (stored beside the one in force), applied (in use, on trial), then confirmed (in force) or
// reverted (gone; its version is not tried again). Which step is when, runConfig decides.
//
// Crash contract: each step is one Store of an A/B pair, so a start finds the state before or after it. A document that was prepared goes
// on. One that was applied had its attempt: opening the store reverts it before anything is dialled, so no document can keep a gateway from
// the hospital for longer than one trial, whatever it makes the gateway do. If a step cannot be stored it has not happened, except that a
// document is taken back all the same: the disk then still says applied, and the next start reverts.
type configStore struct {
	key   ed25519.PublicKey
	log   *slog.Logger
	store func([]byte) error // of the A/B pair
	wall  func() int64       // Unix milliseconds, for the steps

	mu      sync.Mutex
	state   configState
	own     enroll.Configuration // in force, of this gateway; Version 0: none
	site    enroll.Configuration // in force, of a site; counts where own names that site
	next    enroll.Configuration // what state.Next says
	offered [2][]byte            // came, and wait for the trial before them to end: own, site
	serial  int                  // grows with each step
	changed chan struct{}        // one place: something was offered
}

// configState is what is kept on disk. Agents before it kept a signed document alone, whose key 1 is a byte string.
type configState struct {
	Format   uint8        `cbor:"1,keyasint"`
	Own      []byte       `cbor:"2,keyasint,omitempty"`
	Site     []byte       `cbor:"3,keyasint,omitempty"`
	Next     []byte       `cbor:"4,keyasint,omitempty"`
	Applied  bool         `cbor:"5,keyasint,omitempty"`
	Reverted []configStep `cbor:"6,keyasint,omitempty"` // of each target the last that was taken back
	Steps    []configStep `cbor:"7,keyasint,omitempty"` // the last ones, as reports tell them
}

type configStep struct {
	Site    string `cbor:"1,keyasint,omitempty"`
	Version uint64 `cbor:"2,keyasint"`
	Step    uint8  `cbor:"3,keyasint"`
	At      int64  `cbor:"4,keyasint,omitempty"`
	Reason  string `cbor:"5,keyasint,omitempty"`
}

// configFormat is 2: 1 would be a document alone.
const configFormat = 2

const (
	maxConfigState = 4 * telemetry.MaxDocument // three documents and the steps
	maxReverted    = 8                         // sites that a gateway was moved between
)

var (
	configStateEnc = mustMode(cbor.CoreDetEncOptions().EncMode())
	configStateDec = mustMode(cbor.DecOptions{
		MaxNestedLevels: 4, MaxArrayElements: 32, MaxMapPairs: 32, IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
	}.DecMode())
)

func mustMode[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

// Why a document was reverted. These travel in reports and stand in the hospital's log: constant texts.
const (
	revertedByStart  = "the agent was started again before it was confirmed"
	revertedNoServer = "none of its servers answered as this hospital's"
	revertedNoProof  = "no report reached the hospital under it in time"
	revertedDisk     = "it could not be stored"
)

func openConfigStore(path string, key ed25519.PublicKey, wall func() int64, log *slog.Logger) (*configStore, error) {
	file, data, aside, lost, err := durable.OpenABOrAside(path, maxConfigState)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if lost != nil {
		// Its version is forgotten with it, so until the server sends the newest, an older one that the config key signed would do.
		log.Error("the stored configuration is lost; the server sends it at the next connection", "set_aside", aside, "error", lost)
	}
	s := &configStore{key: key, log: log, store: file.Store, wall: wall, changed: make(chan struct{}, 1)}
	s.load(data)
	if s.next.Version > 0 && s.state.Applied {
		s.revert(revertedByStart)
	}
	return s, nil
}

// load reads what was stored. A document that the kit's config key did not sign counts for nothing: the kit was changed.
func (s *configStore) load(data []byte) {
	s.state = configState{Format: configFormat}
	if data == nil {
		return
	}
	if err := configStateDec.Unmarshal(data, &s.state); err != nil || s.state.Format != configFormat {
		s.state = configState{Format: configFormat, Own: data}
	}
	for _, d := range []struct {
		doc  *[]byte
		into *enroll.Configuration
	}{{&s.state.Own, &s.own}, {&s.state.Site, &s.site}, {&s.state.Next, &s.next}} {
		if len(*d.doc) == 0 {
			continue
		}
		c, err := enroll.OpenConfiguration(*d.doc, s.key)
		if err != nil {
			s.log.Error("a stored configuration is not used", "error", err)
			*d.doc = nil
			continue
		}
		*d.into = c
	}
	s.serial = len(s.state.Steps)
}

// offer takes a document that the hospital sent. What is not signed, not for this gateway or older than what is known is an error; what is
// known already is none, since the server sends it at every connection.
func (s *configStore) offer(doc []byte, gateway string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.belong(gateway)
	c, err := enroll.OpenConfiguration(doc, s.key)
	if err != nil {
		return err
	}
	if s.known(doc, c) {
		return nil
	}
	site := c.ForSite // whether it is this gateway's, its own document may say that has just come
	if _, err := enroll.VerifyConfiguration(doc, s.key, gateway, site, s.newest(site)); err != nil {
		return err
	}
	s.offered[target(c)] = bytes.Clone(doc)
	s.wake()
	return nil
}

func (s *configStore) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// belong forgets what another gateway left in this directory.
func (s *configStore) belong(gateway string) {
	if s.own.Version > 0 && s.own.Gateway != gateway || s.next.Gateway != "" && s.next.Gateway != gateway {
		s.log.Warn("the stored configuration is that of another gateway and is forgotten", "other", s.own.Gateway+s.next.Gateway)
		s.state, s.own, s.site, s.next = configState{Format: configFormat}, enroll.Configuration{}, enroll.Configuration{}, enroll.Configuration{}
	}
}

func target(c enroll.Configuration) int {
	if c.ForSite != "" {
		return 1
	}
	return 0
}

// known tells whether the document is one in force, on trial, or taken back.
func (s *configStore) known(doc []byte, c enroll.Configuration) bool {
	for _, have := range [][]byte{s.state.Own, s.state.Site, s.state.Next, s.offered[target(c)]} {
		if len(have) > 0 && bytes.Equal(have, doc) {
			return true
		}
	}
	return slices.ContainsFunc(s.state.Reverted, func(r configStep) bool { return r.Site == c.ForSite && r.Version == c.Version })
}

// newest is the version that a document must exceed.
func (s *configStore) newest(site string) (v uint64) {
	for _, c := range []enroll.Configuration{s.own, s.site, s.next} {
		if c.ForSite == site {
			v = max(v, c.Version)
		}
	}
	for _, r := range s.state.Reverted {
		if r.Site == site {
			v = max(v, r.Version)
		}
	}
	return v
}

// take prepares the document that is next in line; false when there is none. One that a former run prepared goes on.
func (s *configStore) take(gateway string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.belong(gateway)
	if s.next.Version > 0 {
		return true, nil
	}
	for i, doc := range s.offered {
		if doc == nil {
			continue
		}
		c, err := enroll.OpenConfiguration(doc, s.key)
		if err == nil {
			c, err = enroll.VerifyConfiguration(doc, s.key, gateway, s.own.Site, s.newest(c.ForSite))
		}
		if err != nil {
			s.offered[i] = nil
			s.log.Warn("configuration refused", "error", err)
			continue
		}
		state := s.state
		state.Next, state.Applied = doc, false
		if err := s.step(state, c, telemetry.ConfigPrepared, ""); err != nil {
			return false, err
		}
		s.next, s.offered[i] = c, nil
		return true, nil
	}
	return false, nil
}

// apply puts the prepared document to use, on trial.
func (s *configStore) apply() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.state
	state.Applied = true
	return s.step(state, s.next, telemetry.ConfigApplied, "")
}

// confirm puts the document on trial in force.
func (s *configStore) confirm() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next.Version == 0 || !s.state.Applied {
		return errors.New("configuration: none is on trial")
	}
	state, own, site := s.state, s.own, s.site
	if s.next.ForSite != "" {
		state.Site, site = state.Next, s.next
	} else {
		state.Own, own = state.Next, s.next
	}
	state.Next, state.Applied = nil, false
	if err := s.step(state, s.next, telemetry.ConfigConfirmed, ""); err != nil {
		return err
	}
	s.own, s.site, s.next = own, site, enroll.Configuration{}
	return nil
}

// revert takes the document back that was prepared or applied. It has happened whatever the disk does.
func (s *configStore) revert(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state, c := s.state, s.next
	state.Next, state.Applied = nil, false
	state.Reverted = append(slices.DeleteFunc(slices.Clone(state.Reverted), func(r configStep) bool { return r.Site == c.ForSite }),
		configStep{Site: c.ForSite, Version: c.Version, Step: uint8(telemetry.ConfigReverted)})
	if n := len(state.Reverted); n > maxReverted {
		state.Reverted = state.Reverted[n-maxReverted:]
	}
	if err := s.step(state, c, telemetry.ConfigReverted, reason); err != nil {
		s.log.Error("that a configuration was taken back is not stored; the next start takes it back again", "error", err)
		s.state = noted(state, c, telemetry.ConfigReverted, reason, s.wall())
		s.serial++
	}
	s.next = enroll.Configuration{}
}

// step makes state durable, with the step that led to it, and then takes it over.
func (s *configStore) step(state configState, c enroll.Configuration, step telemetry.ConfigState, reason string) error {
	state = noted(state, c, step, reason, s.wall())
	data, err := configStateEnc.Marshal(state)
	if err == nil {
		err = s.store(data)
	}
	if err != nil {
		return fmt.Errorf("configuration: version %d is not %s: %w", c.Version, step, err)
	}
	s.state = state
	s.serial++
	level := slog.LevelInfo
	if step == telemetry.ConfigReverted {
		level = slog.LevelWarn
	}
	s.log.Log(context.Background(), level, "configuration "+step.String(), "version", c.Version, "site", c.ForSite, "ward", c.Ward, "profile", c.Profile, "reason", reason)
	return nil
}

func noted(state configState, c enroll.Configuration, step telemetry.ConfigState, reason string, at int64) configState {
	one := configStep{Site: c.ForSite, Version: c.Version, Step: uint8(step), At: at, Reason: reason}
	state.Steps = append(slices.Clone(state.Steps), one)
	if n := len(state.Steps); n > telemetry.MaxConfigSteps {
		state.Steps = state.Steps[n-telemetry.MaxConfigSteps:]
	}
	return state
}

// inForce is this gateway's own configuration that is in force, a trial not counted; its Version is 0 when there is none.
func (s *configStore) inForce() enroll.Configuration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own
}

// settings are what holds now: the gateway's own over its site's. alone says that they are on trial and change the servers, which are then
// the only ones to try: with those of the kit behind them anything would be confirmed.
func (s *configStore) settings() (set enroll.Settings, alone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set = s.would(false)
	if s.next.Version == 0 || !s.state.Applied {
		return set, false
	}
	trial := s.would(true)
	return trial, !slices.Equal(trial.Servers, set.Servers)
}

// nextServers are those with the document that is prepared, and whether they are others than those in force.
func (s *configStore) nextServers() (servers []string, others bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, then := s.would(false), s.would(true)
	return then.Servers, !slices.Equal(now.Servers, then.Servers)
}

// would is what holds with, or without, the next document. Under mu.
func (s *configStore) would(next bool) enroll.Settings {
	own, site := s.own, s.site
	switch {
	case !next:
	case s.next.ForSite != "":
		site = s.next
	case s.next.Version > 0:
		own = s.next
	}
	if site.ForSite != own.Site {
		return own.Settings
	}
	return enroll.Overlay(site.Settings, own.Settings)
}

// report is what a report of the agent says of configurations.
func (s *configStore) report() (r telemetry.ConfigReport, serial int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.site.Version > 0 && s.site.ForSite == s.own.Site {
		r.Site, r.Version = s.site.ForSite, s.site.Version
	}
	for _, st := range s.state.Steps {
		r.Steps = append(r.Steps, telemetry.ConfigStep{
			Site: st.Site, Version: st.Version, Step: telemetry.ConfigState(st.Step), At: clampInstant(st.At), Reason: st.Reason,
		})
	}
	return r, s.serial
}

// logKey is the log's key that the gateway's own configuration names, "" where none does.
func (s *configStore) logKey() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own.Log
}
