package agent

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"

	"wardlink/enroll"
	"wardlink/internal/durable"
	"wardlink/telemetry"
)

var configKey = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, ed25519.SeedSize))

func signed(t testing.TB, c enroll.Configuration) []byte {
	t.Helper()
	doc, err := enroll.SignConfiguration(c, configKey)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// own is version v of icu-7's own document, which names servers; its site is main.
func own(v uint64, servers ...string) enroll.Configuration {
	return enroll.Configuration{Gateway: "icu-7", Version: v, Site: "main", Lanes: 15, Settings: enroll.Settings{Servers: servers}}
}

func ofSite(site string, v uint64, servers ...string) enroll.Configuration {
	return enroll.Configuration{ForSite: site, Version: v, Settings: enroll.Settings{Servers: servers, ReportEvery: 5000}}
}

func openTestConfig(t testing.TB, path string) *configStore {
	t.Helper()
	s, err := openConfigStore(path, configKey.Public().(ed25519.PublicKey), func() int64 { return 1_795_357_800_000 }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pass takes what was offered through its steps.
func pass(t *testing.T, s *configStore, last func(*configStore) error) {
	t.Helper()
	some, err := s.take("icu-7")
	if err != nil || !some {
		t.Fatalf("take: %t, %v", some, err)
	}
	if err := errors.Join(s.apply(), last(s)); err != nil {
		t.Fatal(err)
	}
}

func offer(t *testing.T, s *configStore, c enroll.Configuration) {
	t.Helper()
	if err := s.offer(signed(t, c), "icu-7"); err != nil {
		t.Fatal(err)
	}
}

func takeBack(s *configStore) error { s.revert(revertedNoProof); return nil }

func told(s *configStore) (out []string) {
	r, _ := s.report()
	for _, st := range r.Steps {
		out = append(out, fmt.Sprintf("%s%d %s", st.Site, st.Version, st.Step))
	}
	return out
}

func TestConfigurationTakesItsSteps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	s := openTestConfig(t, path)
	offer(t, s, own(1))
	pass(t, s, (*configStore).confirm)
	offer(t, s, own(2, "a:1"))
	if set, alone := s.settings(); len(set.Servers) != 0 || alone {
		t.Errorf("what only arrived holds: %v", set)
	}
	pass(t, s, func(s *configStore) error {
		if set, alone := s.settings(); !slices.Equal(set.Servers, []string{"a:1"}) || !alone {
			t.Errorf("on trial: %v alone=%t", set, alone)
		}
		if s.inForce().Version != 1 {
			t.Error("a trial counts as in force")
		}
		return s.confirm()
	})
	offer(t, s, own(3, "b:1"))
	pass(t, s, takeBack)
	for name, s := range map[string]*configStore{"as it is": s, "opened again": openTestConfig(t, path)} {
		if set, alone := s.settings(); !slices.Equal(set.Servers, []string{"a:1"}) || alone || s.inForce().Version != 2 {
			t.Errorf("%s: %v alone=%t, version %d", name, set, alone, s.inForce().Version)
		}
		want := []string{"1 prepared", "1 applied", "1 confirmed", "2 prepared", "2 applied", "2 confirmed", "3 prepared", "3 applied", "3 reverted"}
		if got := told(s); !slices.Equal(got, want) {
			t.Errorf("%s: steps %v", name, got)
		}
		// The server sends the newest at every connection. A version that was taken back is not tried again; the next one is.
		offer(t, s, own(3, "b:1"))
		if some, err := s.take("icu-7"); some || err != nil {
			t.Errorf("%s: the version that was taken back is tried again: %v", name, err)
		}
		if err := s.offer(signed(t, own(1)), "icu-7"); err == nil {
			t.Errorf("%s: an old version was taken", name)
		}
	}
	offer(t, s, own(4, "b:1"))
	pass(t, s, (*configStore).confirm)
	if s.inForce().Version != 4 {
		t.Errorf("version %d", s.inForce().Version)
	}
}

func TestSiteAndOwnDocumentsStandBesideEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	s := openTestConfig(t, path)
	// The site's may come first; it waits for the document that says whose site it is.
	offer(t, s, ofSite("main", 7, "site:1"))
	offer(t, s, own(1))
	pass(t, s, (*configStore).confirm)
	pass(t, s, (*configStore).confirm)
	check := func(when string, servers []string, every uint64, version uint64) {
		t.Helper()
		for _, s := range []*configStore{s, openTestConfig(t, path)} {
			set, _ := s.settings()
			r, _ := s.report()
			if !slices.Equal(set.Servers, servers) || set.ReportEvery != every || s.inForce().Version == 0 || r.Version != version {
				t.Errorf("%s: %+v, own version %d, site's %d", when, set, s.inForce().Version, r.Version)
			}
		}
	}
	check("both", []string{"site:1"}, 5000, 7)
	offer(t, s, own(2, "own:1")) // with the site's in force, its own goes on
	pass(t, s, (*configStore).confirm)
	check("own over site", []string{"own:1"}, 5000, 7)
	offer(t, s, ofSite("annexe", 9, "annexe:1"))
	if some, err := s.take("icu-7"); some || err != nil {
		t.Fatalf("a foreign site's document is taken: %v", err)
	}
	moved := own(3)
	moved.Site = "annexe"
	offer(t, s, moved)
	pass(t, s, (*configStore).confirm)
	check("moved to another site", nil, 0, 0)
	offer(t, s, ofSite("annexe", 2, "annexe:1"))
	pass(t, s, (*configStore).confirm)
	check("the new site's", []string{"annexe:1"}, 5000, 2)
}

// What agents kept before: the signed document alone.
func TestDocumentOfAFormerAgentStaysInForce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	file, _, err := durable.OpenAB(path, telemetry.MaxDocument)
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Store(signed(t, own(5))); err != nil {
		t.Fatal(err)
	}
	s := openTestConfig(t, path)
	if c := s.inForce(); c.Version != 5 || c.Site != "main" {
		t.Errorf("%+v", c)
	}
	offer(t, s, own(5))
	if some, _ := s.take("icu-7"); some {
		t.Error("the version in force is tried")
	}
}

func TestStoredConfigurationOfOthersCountsForNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	s := openTestConfig(t, path)
	offer(t, s, own(8, "a:1"))
	pass(t, s, (*configStore).confirm)
	other, err := openConfigStore(path, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)).Public().(ed25519.PublicKey), func() int64 { return 0 }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if set, _ := other.settings(); len(set.Servers) != 0 {
		t.Errorf("under another config key: %v", set)
	}
	mine := own(1)
	mine.Gateway = "icu-8"
	if err := s.offer(signed(t, mine), "icu-8"); err != nil {
		t.Fatal(err)
	}
	if set, _ := s.settings(); len(set.Servers) != 0 {
		t.Errorf("of another gateway: %v", set)
	}
}

var errCut = errors.New("the power is gone")

// The power goes at each Store of a life: before it, or after it and before anybody knew. Whatever is found then is whole, no trial goes on,
// a confirmed document stays, each step is told once, and a version that was taken back is never tried again.
func TestPowerCutAtEachStep(t *testing.T) {
	for _, confirmed := range []bool{true, false} {
		for at := 1; at <= 6; at++ { // the first document's three steps, the second's three
			for _, done := range []bool{false, true} {
				t.Run(fmt.Sprintf("confirmed %t, store %d, done %t", confirmed, at, done), func(t *testing.T) {
					powerCut(t, confirmed, at, done)
				})
			}
		}
	}
}

func powerCut(t *testing.T, confirmed bool, at int, done bool) {
	path := filepath.Join(t.TempDir(), "config")
	s := openTestConfig(t, path)
	stores, real := 0, s.store
	s.store = func(data []byte) error {
		if stores++; stores < at || stores == at && done {
			if err := real(data); err != nil {
				return err
			}
		}
		if stores >= at {
			return errCut
		}
		return nil
	}
	believed := uint64(0) // what was in force when the lights went out
	life := func() {
		for _, doc := range [][]byte{signed(t, own(1)), signed(t, own(2, "b:1"))} {
			if s.offer(doc, "icu-7") != nil {
				return
			}
			if some, err := s.take("icu-7"); err != nil || !some || s.apply() != nil {
				return
			}
			if s.next.Version == 2 && !confirmed {
				s.revert(revertedNoProof)
			} else if s.confirm() != nil {
				return
			}
			believed = s.inForce().Version
		}
	}
	life()
	if stores < at {
		t.Fatalf("only %d stores", stores)
	}
	s = openTestConfig(t, path)
	if s.state.Applied {
		t.Fatal("a trial goes on after a start")
	}
	if got := s.inForce().Version; got < believed || got > believed+1 {
		t.Errorf("version %d in force, %d before the cut", got, believed)
	}
	if set, alone := s.settings(); alone || s.inForce().Version < 2 && len(set.Servers) > 0 {
		t.Errorf("after the cut: %v", set)
	}
	// The hospital sends its newest again; whatever waits goes on.
	for v, doc := range [][]byte{signed(t, own(1)), signed(t, own(2, "b:1")), signed(t, own(3, "c:1"))} {
		_ = s.offer(doc, "icu-7") // an old one is refused
		was := slices.Contains(told(s), fmt.Sprintf("%d reverted", v+1))
		some, err := s.take("icu-7")
		if err != nil {
			t.Fatal(err)
		}
		if some && was && s.next.Version == uint64(v+1) {
			t.Errorf("version %d was taken back and is tried again", v+1)
		}
		if some {
			if err := errors.Join(s.apply(), s.confirm()); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s.inForce().Version != 3 {
		t.Errorf("version %d in force at the end", s.inForce().Version)
	}
	steps := told(s)
	slices.Sort(steps)
	if len(slices.Compact(slices.Clone(steps))) != len(steps) {
		t.Errorf("a step is told twice: %v", told(s))
	}
}

// A disk that takes nothing keeps no document on trial: it is taken back in memory, and by the next start.
func TestFullDiskTakesTheTrialBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	s := openTestConfig(t, path)
	offer(t, s, own(1))
	pass(t, s, (*configStore).confirm)
	offer(t, s, own(2, "b:1"))
	if some, err := s.take("icu-7"); err != nil || !some || s.apply() != nil {
		t.Fatal(err)
	}
	real := s.store
	s.store = func([]byte) error { return errCut }
	if s.confirm() == nil || s.inForce().Version != 1 {
		t.Error("confirmed without being stored")
	}
	s.revert(revertedNoProof)
	if set, alone := s.settings(); alone || len(set.Servers) > 0 {
		t.Errorf("%v", set)
	}
	s.store = real
	if s = openTestConfig(t, path); s.inForce().Version != 1 || s.next.Version != 0 || !slices.Contains(told(s), "2 reverted") {
		t.Errorf("version %d, steps %v", s.inForce().Version, told(s))
	}
}
