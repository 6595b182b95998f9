package e2e

import (
	"context"
	"io"
	"maps"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wardlink/agent"
	"wardlink/server/api/client"
)

// detour is another way to the hospital: it passes on the first most connections and swallows those after, as a firewall does, or closes
// them.
type detour struct {
	addr   string
	passed atomic.Int64
}

func newDetour(t *testing.T, to string, most int64, swallow bool) *detour {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	r := &detour{addr: ln.Addr().String()}
	go func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { in.Close() })
			if r.passed.Add(1) > most {
				if !swallow { // then the next address in line is tried at once: there must be none
					in.Close()
				}
				continue
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				go func() {
					_, _ = io.Copy(way[0], way[1])
					way[0].Close()
					way[1].Close()
				}()
			}
		}
	}()
	return r
}

// awaitConfig waits until the hospital has heard of a state of the gateway's own configuration.
func (w *ward) awaitConfig(want string, inForce uint64) {
	w.Helper()
	var got client.ConfigState
	defer func() {
		if w.Failed() {
			w.Logf("seen: %+v; expected %s with version %d in force", got, want, inForce)
		}
	}()
	w.await("a configuration that is "+want, func(context.Context) (bool, error) {
		var all []client.ConfigState
		w.ask(&all, "config", "show")
		if len(all) == 1 {
			got = all[0]
		}
		return got.Own.State == want && got.Own.InForce == inForce, nil
	})
}

// TestConfigurationIsConfirmedOrTakenBack: addresses that lead nowhere, and addresses that lead somewhere and then not, are taken back within
// the period, the connection that stood carries on, and no reading is lost; good ones are confirmed, and are the way that is used then. A start in
// the middle of a trial takes it back. Each step is in the log once.
func TestConfigurationIsConfirmedOrTakenBack(t *testing.T) {
	t.Parallel()
	const period = 4 * time.Second
	w := wardOf(t, initHospital(t))
	b := w.box
	trial := func(cfg *agent.Config) { cfg.Trial = period }
	stop := b.bootAs(trial)
	w.register()
	w.awaitConfig("confirmed", 1)

	set := func(servers ...string) time.Time {
		args := []string{"--operator", w.operator(), "config", "set", "icu-7"}
		for _, s := range servers {
			args = append(args, "--server", s)
		}
		w.must("wardlink", args...)
		return time.Now()
	}
	within := func(since time.Time) {
		t.Helper()
		if took := time.Since(since); took > period+5*time.Second { // 5 s for the report, its opening, and asking
			t.Errorf("taken back after %s; the period is %s", took, period)
		}
	}
	nowhere := freeAddr(t)
	dry := string(w.must("wardlink", "--operator", w.operator(), "config", "set", "icu-7", "--server", nowhere, "--dry-run"))
	if !strings.Contains(dry, "version 2 would be issued") || !strings.Contains(dry, "+ servers: "+nowhere) {
		t.Errorf("dry run:\n%s", dry)
	}
	since := set(nowhere) // version 2
	b.accepts("C1")
	w.awaitConfig("reverted", 1)
	within(since)
	half := newDetour(t, w.gateways, 1, false) // it lets the gateway see that the hospital is there, and no further
	since = set(half.addr)                     // version 3
	b.accepts("C2")
	w.awaitConfig("reverted", 1)
	within(since)
	b.awaitDelivered()

	good := newDetour(t, w.gateways, 1<<40, true)
	set(good.addr) // version 4
	w.awaitConfig("confirmed", 4)
	w.await("the session by the new way", func(ctx context.Context) (bool, error) {
		s, err := b.status(ctx)
		return err == nil && s.Uplink.Connected && s.Uplink.Server == good.addr, nil
	})
	b.accepts("C3")
	b.awaitDelivered()

	late := newDetour(t, w.gateways, 1, true)
	set(late.addr) // version 5
	w.await("the trial", func(context.Context) (bool, error) { return late.passed.Load() >= 2, nil })
	stop()
	b.bootAs(trial)
	w.awaitConfig("reverted", 4)
	w.awaitObservations(3)
	w.must("wardlink", "--operator", w.operator(), "config", "rollback", "icu-7", "--to", "4") // version 6
	w.awaitConfig("confirmed", 6)

	want := map[string]int{"config.issued": 6, "config.prepared": 6, "config.applied": 5, "config.confirmed": 3, "config.reverted": 3}
	got := map[string]int{}
	defer func() {
		if t.Failed() {
			t.Logf("in the log: %v, expected %v", got, want)
		}
	}()
	w.await("the log", func(context.Context) (bool, error) {
		for step := range want {
			got[step] = 0
			for _, it := range w.audit("--type", step) {
				if it.Target == "icu-7" && (step == "config.issued" || it.Actor == "spiffe://ward.example/gateway/icu-7") {
					got[step]++
				}
			}
		}
		return maps.Equal(got, want), nil
	})
	w.must("wardlink", "audit", "verify", "--dir", w.server())
}
