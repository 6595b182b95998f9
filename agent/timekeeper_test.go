package agent

import (
	"bytes"
	"crypto/ed25519"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wardlink/enroll"
)

// handWall is a wall clock that the test sets; it stands still.
type handWall struct{ at time.Time }

func (h *handWall) now() time.Time { return h.at }

// keeperAt opens the timekeeper as a boot does.
func keeperAt(t *testing.T, path string, boot byte, wall *handWall) *timekeeper {
	t.Helper()
	k, err := openTimekeeper(path, clock{boot: [16]byte{boot}, wall: wall.now}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func near(a, b time.Time) bool { return a.Sub(b).Abs() < time.Minute }

// TestThreeValuesOfTime: wall clock, floor and offset over three boots of a gateway that has no clock.
func TestThreeValuesOfTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "time")
	wall := &handWall{time.Unix(60, 0)}
	built, hospital := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

	k := keeperAt(t, path, 1, wall)
	if m := k.moment(); !m.Floor || !m.Time.IsZero() {
		t.Errorf("a first boot knows %+v", m)
	}
	k.raise(built, "the build")
	k.raise(built.Add(-time.Hour), "something older")
	if f := k.facts(); f.Trusted || f.Offset != nil || !f.Floor.Equal(built) || f.FloorFrom != "the build" || !f.Behind || !f.Now.Equal(built) {
		t.Errorf("%+v", f)
	}
	// The wall clock raises nothing, whatever it shows, and makes nothing trusted.
	wall.at = hospital.AddDate(10, 0, 0)
	if m := k.moment(); !m.Floor || !m.Time.Equal(built) {
		t.Errorf("a wall clock ahead makes %+v", m)
	}
	wall.at = time.Unix(120, 0)
	if err := k.learn(hospital, k.mono()-20*time.Millisecond, k.mono(), "h:1"); err != nil {
		t.Fatal(err)
	}
	f := k.facts()
	if !f.Trusted || f.Offset == nil || f.Uncertainty < 10 || f.Uncertainty > 1000 || !near(f.Now, hospital) || f.Ahead ||
		!near(time.Unix(120, 0).Add(time.Duration(*f.Offset)*time.Millisecond), hospital) {
		t.Errorf("%+v", f)
	}
	// Set by hand, ahead and back: the offset moves both ways, and what is known of the time does not move.
	for _, shown := range []time.Time{hospital.AddDate(10, 0, 0), hospital.AddDate(0, 0, -1), time.Unix(0, 0)} {
		wall.at = shown
		offset, _, known := k.offset()
		if m := k.moment(); !known || m.Floor || !near(m.Time, hospital) || !near(shown.Add(offset), hospital) {
			t.Errorf("the wall clock shows %v: offset %v, moment %+v", shown, offset, m)
		}
	}

	// A reboot: the time is not trusted, the floor is the last trusted time, the boot is another one.
	wall.at = time.Unix(5, 0)
	k = keeperAt(t, path, 2, wall)
	k.raise(built, "the build")
	if f := k.facts(); f.Trusted || !near(f.Floor, hospital) || f.FloorFrom != "the last trusted time" || f.Boot[:2] != "02" {
		t.Errorf("after a reboot: %+v", f)
	}
	// The hospital's clock was set back meanwhile: it is believed, and the floor stays.
	back := hospital.Add(-3 * time.Hour)
	if err := k.learn(back, k.mono(), k.mono(), "h:1"); err != nil {
		t.Fatal(err)
	}
	if f := k.facts(); !f.Trusted || !near(f.Now, back) || !near(f.Floor, hospital) || !f.Ahead {
		t.Errorf("after the hospital went back: %+v", f)
	}
	k = keeperAt(t, path, 3, wall)
	if f := k.facts(); !near(f.Floor, hospital) {
		t.Errorf("the floor went back to %v", f.Floor)
	}
}

func TestSignedTimeIsNotTakenLate(t *testing.T) {
	k := keeperAt(t, filepath.Join(t.TempDir(), "time"), 1, &handWall{time.Unix(60, 0)})
	now := k.mono()
	for _, sent := range []time.Duration{now - maxRoundTrip - time.Millisecond, now + time.Second} {
		if err := k.learn(time.Now(), sent, now, "h:1"); err == nil {
			t.Errorf("taken after %v", now-sent)
		}
	}
	if _, _, known := k.offset(); known {
		t.Error("the time is trusted")
	}
}

// TestLostFloorCostsNoStart: what was kept is damaged; the agent starts and says so.
func TestLostFloorCostsNoStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "time")
	for _, suffix := range []string{".a", ".b"} {
		if err := os.WriteFile(path+suffix, []byte("damaged"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log bytes.Buffer
	k, err := openTimekeeper(path, clock{}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil || !k.floor.IsZero() || !strings.Contains(log.String(), "lost") {
		t.Errorf("%v, floor %v, log %s", err, k.floor, &log)
	}
}

// TestStampsOfAnyDate: no date of the wall clock keeps a message from being stamped.
func TestStampsOfAnyDate(t *testing.T) {
	wall := &handWall{}
	c := clock{wall: wall.now}
	for at, want := range map[time.Time]int64{
		time.Unix(-1e9, 0): 0, time.Unix(0, 0): 0, time.Unix(60, 0): 60_000, time.Date(20000, 1, 1, 0, 0, 0, 0, time.UTC): maxInstant,
	} {
		wall.at = at
		if s := c.stamp(); s.Wall != want || s.Mono <= 0 {
			t.Errorf("at %v: %+v; expected %d", at, s, want)
		}
	}
}

// TestSetBackByAToken: a floor that a server ten years ahead raised is set back by the hospital's token, once, for this boot and the next.
func TestSetBackByAToken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "time")
	wall := &handWall{time.Unix(60, 0)}
	public, key, _ := ed25519.GenerateKey(nil)
	right := time.Now().UTC().Truncate(time.Millisecond)
	ahead := right.AddDate(10, 0, 0)
	k := keeperAt(t, path, 1, wall)
	if err := k.learn(ahead, k.mono(), k.mono(), "h:1"); err != nil {
		t.Fatal(err)
	}
	k = keeperAt(t, path, 2, wall) // also with what the former boot kept
	if f := k.facts(); !near(f.Floor, ahead) || f.Kept == nil || !near(*f.Kept, ahead) {
		t.Fatalf("%+v; expected a floor ten years ahead", f)
	}
	if err := k.learn(ahead, k.mono(), k.mono(), "h:1"); err != nil {
		t.Fatal(err)
	}
	former := k.challenge
	token, err := enroll.SignClockToken("icu-7", former, right, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.reset(token, public, "icu-8"); err == nil || !near(k.floorNow(), ahead) {
		t.Errorf("another gateway's token: %v", err)
	}
	if _, err := k.reset(token, public, "icu-7"); err != nil {
		t.Fatal(err)
	}
	f := k.facts()
	if f.Trusted || !f.Floor.Equal(right) || f.FloorFrom != "a token of the hospital's" || f.Challenge == former.String() {
		t.Errorf("after the token: %+v", f)
	}
	if m := k.moment(); !m.Floor || !m.Time.Equal(right) {
		t.Errorf("certificates are judged at %+v", m)
	}
	if _, err := k.reset(token, public, "icu-7"); err == nil {
		t.Error("the token counts twice")
	}
	k = keeperAt(t, path, 3, wall)
	if _, err := k.reset(token, public, "icu-7"); err == nil || !k.floorNow().Equal(right) {
		t.Errorf("the next boot: %v, floor %v", err, k.floorNow())
	}
}

// TestAFloorThatCannotBeKeptIsNotSetBack, or the next start would have the old one and another challenge.
func TestAFloorThatCannotBeKeptIsNotSetBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	public, key, _ := ed25519.GenerateKey(nil)
	k := keeperAt(t, filepath.Join(dir, "time"), 1, &handWall{time.Unix(60, 0)})
	ahead := time.Now().AddDate(10, 0, 0)
	k.raise(ahead, "a test")
	challenge := k.challenge
	token, err := enroll.SignClockToken("icu-7", challenge, time.Now(), key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := k.reset(token, public, "icu-7"); err == nil || !k.floorNow().Equal(ahead) || k.challenge != challenge {
		t.Errorf("%v, floor %v", err, k.floorNow())
	}
}

// TestStepsOfTheWallClockAreNoticed, and what passes by itself is none.
func TestStepsOfTheWallClockAreNoticed(t *testing.T) {
	start, shift := time.Now(), time.Duration(0)
	k, err := openTimekeeper(filepath.Join(t.TempDir(), "time"), clock{wall: func() time.Time { return time.Now().Add(shift) }}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	look := func(count uint64, last time.Duration) {
		t.Helper()
		k.look()
		if f := k.facts(); f.Steps != count || (time.Duration(f.LastStep)*time.Millisecond-last).Abs() > time.Second {
			t.Fatalf("%d steps, the last by %d ms; expected %d, by %v", f.Steps, f.LastStep, count, last)
		}
	}
	look(0, 0)
	look(0, 0)
	for i, step := range []time.Duration{10 * 365 * 24 * time.Hour, -10 * 365 * 24 * time.Hour, -time.Hour, 2 * time.Second, start.Sub(time.Unix(0, 0)) * -1} {
		shift += step
		look(uint64(i+1), step)
		look(uint64(i+1), step)
	}
	shift += 900 * time.Millisecond // drift that NTP takes back
	look(5, -start.Sub(time.Unix(0, 0)))
}
