package agent

import (
	"bufio"
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// port is a free one of this machine's own.
func port(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// reload has the running agent take what load gives, and gives what it says of that.
func (b *box) reload(load func() (Config, error)) ReloadStatus {
	b.Helper()
	before := b.agent.status().Reload.At
	b.agent.Reload(load)
	b.until("the configuration is not read again", func() bool { return b.agent.status().Reload.At.After(before) })
	return b.agent.status().Reload
}

func (b *box) reloadTo(change func(*Config)) ReloadStatus {
	b.Helper()
	next := b.cfg
	next.Sources = slices.Clone(next.Sources)
	change(&next)
	return b.reload(func() (Config, error) { return next, nil })
}

func (b *box) dial(addr string) *device {
	b.Helper()
	d := &device{box: b}
	b.until("nobody listens at "+addr, func() bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return false
		}
		d.c, d.in = c, bufio.NewReader(c)
		return true
	})
	return d
}

func (d *device) closed() bool {
	_ = d.c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := d.in.ReadByte()
	var timeout net.Error
	return err != nil && !(errors.As(err, &timeout) && timeout.Timeout())
}

// TestReload: sources come, change and go, and a connection of a source that stays as it is is the same before and after. What a source
// counted stays counted.
func TestReload(t *testing.T) {
	b := newBox(t, t.TempDir())
	first, second, third := port(t), port(t), port(t)
	b.cfg.Sources = []SourceConfig{{ID: "bed-1", MLLP: first}, {ID: "bed-2", MLLP: second}}
	b.start()
	stays, goes := b.dial(first), b.dial(second)
	for _, d := range []*device{stays, goes} {
		if !d.send(message("A1", 100), notYet) {
			t.Fatal("no acknowledgement")
		}
	}

	// bed-2 gets another time zone at the same port, bed-3 is new, and reports come more often.
	st := b.reloadTo(func(c *Config) {
		c.ReportEvery, c.State = "5s", "/elsewhere"
		c.Sources[1].TimeZone = "Europe/Berlin"
		c.Sources = append(c.Sources, SourceConfig{ID: "bed-3", MLLP: third})
	})
	if st.Error != "" || strings.Join(st.Changed, ", ") != "source bed-2 changed, source bed-3 added, report_every" || strings.Join(st.Restart, ", ") != "state" {
		t.Errorf("%+v", st)
	}
	if f := b.finding(AreaReload); f.Level != Warning || !strings.Contains(f.Found, "not in use yet: state") || !strings.Contains(f.Mend, "restart") {
		t.Errorf("%+v", f)
	}
	if b.agent.reports.interval() != 5*time.Second {
		t.Errorf("reports come every %s", b.agent.reports.interval())
	}
	b.until("the changed source's connection stays open", goes.closed)
	if !stays.send(message("A2", 100), notYet) || !b.dial(second).send(message("A3", 100), notYet) || !b.dial(third).send(message("A4", 100), notYet) {
		t.Error("no acknowledgement")
	}
	s := b.agent.status()
	if n := s.Sources["bed-2"].Received; n != 2 || s.Sources["bed-1"].Received != 2 || s.Sources["bed-3"].Received != 1 {
		t.Errorf("bed-2 has received %d messages, expected 2: %+v", n, s.Sources)
	}

	// What is wrong changes nothing, whoever finds it.
	for what, load := range map[string]func() (Config, error){
		"unreadable": func() (Config, error) { return Config{}, errors.New("[3:1] unknown field") },
		"beyond reading": func() (Config, error) {
			c := b.cfg
			c.Sources = []SourceConfig{{ID: "bed-1", MLLP: "0.0.0.0:1"}}
			return c, nil
		},
	} {
		if st := b.reload(load); st.Error == "" || len(st.Changed)+len(st.Restart) != 0 {
			t.Errorf("%s: %+v", what, st)
		}
		if f := b.finding(AreaReload); f.Level != Warning || !strings.Contains(f.Found, "not in use") {
			t.Errorf("%s: %+v", what, f)
		}
		if !stays.send(message("B"+what, 100), notYet) || len(b.agent.status().Sources) != 3 {
			t.Errorf("%s: sources %v", what, b.agent.status().Sources)
		}
	}

	// bed-2 and bed-3 go: their ports are closed. The message that a device has sent whole is acknowledged before.
	if st := b.reloadTo(func(c *Config) { c.Sources = c.Sources[:1] }); st.Error != "" || strings.Join(st.Changed, ", ") != "source bed-2 removed, source bed-3 removed, report_every" {
		t.Errorf("%+v", st)
	}
	if c, err := net.Dial("tcp", third); err == nil {
		_ = c.Close()
		t.Error("the removed source's port is open")
	}
	if len(b.agent.status().Reload.Error) > 0 || !stays.send(message("A5", 100), notYet) {
		t.Error("the source that stays does not")
	}
	// It comes back, and goes on counting.
	b.reloadTo(func(*Config) {})
	if n := b.agent.status().Sources["bed-2"].Received; n != 2 {
		t.Errorf("bed-2 has received %d messages, expected 2", n)
	}
}

// TestReloadAcknowledgesFirst: devices send without pause while their source is changed again and again; whatever was acknowledged is in the
// buffer, and no device is left without an end.
func TestReloadAcknowledgesFirst(t *testing.T) {
	b := newBox(t, t.TempDir())
	at := port(t)
	b.cfg.Sources = []SourceConfig{{ID: "bed-1", MLLP: at}}
	b.start()
	ctx, cancel := context.WithCancel(t.Context())
	acknowledged := make(chan []string)
	go func() {
		var ids []string
		defer func() { acknowledged <- ids }()
		for i := 0; ctx.Err() == nil; {
			c, err := net.Dial("tcp", at)
			if err != nil {
				continue
			}
			d := &device{b, c, bufio.NewReader(c)}
			for ctx.Err() == nil {
				id := "R" + string(rune('a'+i/676%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i%26))
				if !d.offer(message(id, 200)) {
					break
				}
				ids, i = append(ids, id), i+1
			}
			_ = c.Close()
		}
	}()
	for i := range 12 {
		zone := []string{"Europe/Berlin", "UTC"}[i%2]
		if st := b.reloadTo(func(c *Config) { c.Sources[0].TimeZone = zone }); st.Error != "" {
			t.Error(st.Error)
		}
		time.Sleep(20 * time.Millisecond)
	}
	cancel()
	ids := <-acknowledged
	if len(ids) == 0 {
		t.Fatal("nothing was acknowledged")
	}
	b.verify(ids, nil)
}

// offer sends a message and tells whether it was acknowledged; a connection that ends is no fault.
func (d *device) offer(msg []byte) bool {
	if _, err := d.c.Write(slices.Concat([]byte{0x0b}, msg, []byte{0x1c, 0x0d})); err != nil {
		return false
	}
	_ = d.c.SetReadDeadline(time.Now().Add(patience))
	got, err := d.in.ReadString(0x0d)
	for err == nil && !strings.HasSuffix(got, "\x1c\x0d") {
		var more string
		more, err = d.in.ReadString(0x0d)
		got += more
	}
	return err == nil && strings.Contains(got, "MSA|CA|")
}

// TestReloadOfBindings: a binding is mended without a restart. What its device counted under its id stays, and the former binding holds until
// the reload.
func TestReloadOfBindings(t *testing.T) {
	b := newBox(t, t.TempDir())
	at := port(t)
	bind := func(bed string) []BindingConfig {
		return []BindingConfig{{Address: "127.0.0.1", Bed: bed, ID: "icu-7"}}
	}
	b.cfg.Sources = []SourceConfig{{ID: "port", MLLP: at, Bindings: bind("ICU-8")}}
	b.start()
	d := b.dial(at)
	if !d.send(message("A1", 100), notYet) {
		t.Fatal("no acknowledgement")
	}
	if s := b.agent.status().Sources["icu-7"]; s.Received != 1 || s.Bed != "ICU-8" {
		t.Errorf("%+v", s)
	}
	if st := b.reloadTo(func(c *Config) { c.Sources[0].Bindings = bind("ICU-7") }); st.Error != "" || strings.Join(st.Changed, ", ") != "source port changed" {
		t.Fatalf("%+v", st)
	}
	b.until("the connection of the former binding stays open", d.closed)
	if !b.dial(at).send(message("A2", 100), notYet) {
		t.Fatal("no acknowledgement")
	}
	s := b.agent.status().Sources
	if s["icu-7"].Received != 2 || s["icu-7"].Bed != "ICU-7" || s["port"].Received != 0 || !s["port"].Shared {
		t.Errorf("%+v", s)
	}
}

// TestReloadTakesTheLongestSocket: what a start takes, a reload takes.
func TestReloadTakesTheLongestSocket(t *testing.T) {
	b := newBox(t, t.TempDir())
	b.start()
	path := filepath.Join(t.TempDir(), strings.Repeat("s", 200))[:99]
	c := SourceConfig{ID: "pumps", LineConfig: LineConfig{Socket: path}}
	if err := c.check(); err != nil {
		t.Fatal(err)
	}
	if st := b.reloadTo(func(cfg *Config) { cfg.Sources = append(cfg.Sources, c) }); st.Error != "" || len(st.Changed) != 1 {
		t.Errorf("%+v", st)
	}
}
