package alerts

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"wardlink/server/sqldb"
	"wardlink/server/sqldb/sqldbtest"
)

// TestMain is also the child of the crash test: a process that delivers what it raises.
func TestMain(m *testing.M) {
	if dir := os.Getenv("WARDLINK_TEST_ALERTS"); dir != "" {
		if err := child(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(dir string) error {
	db, err := sqldb.Open(dir, schema()...)
	if err != nil {
		return err
	}
	outbox, err := sqldb.NewOutbox(db, &sqldbtest.Journal{}, nil)
	if err != nil {
		return err
	}
	a, err := New(Config{
		DB: db, Outbox: outbox, NextID: (&sqldbtest.Journal{}).NextID, Server: "ward.example", Log: slog.New(slog.DiscardHandler),
		Settings: Settings{Targets: []Target{{
			Name: "pager", Webhook: os.Getenv("WARDLINK_TEST_URL"), SecretFile: os.Getenv("WARDLINK_TEST_SECRET"), CAFile: os.Getenv("WARDLINK_TEST_CA"),
		}}},
	})
	if err != nil {
		return err
	}
	if os.Getenv("WARDLINK_TEST_RAISE") != "" {
		for i := range 3 {
			a.Raise(BatchDead, Condition{Subject: fmt.Sprintf("gw-%d", i)})
		}
	}
	return a.Run(context.Background())
}

// The receiver kills the sender when it has the message and before it answers: the next life sends it again with the same id and body,
// and then the ones behind it, each once.
func TestKilledBetweenSendingAndKnowing(t *testing.T) {
	var proc *exec.Cmd
	started, killed := make(chan struct{}), make(chan struct{})
	r := newReceiver(t, func(n int, w http.ResponseWriter, _ *http.Request) {
		if n == 2 {
			<-started
			if err := proc.Process.Signal(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			close(killed)
		}
	})
	db, path := sqldbtest.New(t, schema()...)
	secret := secretFile(t, secretText)
	start := func(raise string) *exec.Cmd {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), "WARDLINK_TEST_ALERTS="+path, "WARDLINK_TEST_URL="+r.URL, "WARDLINK_TEST_CA="+r.ca,
			"WARDLINK_TEST_SECRET="+secret, "WARDLINK_TEST_RAISE="+raise)
		c.Stderr = os.Stderr
		c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	proc = start("yes")
	close(started)
	select {
	case <-killed:
	case <-time.After(30 * time.Second):
		t.Fatal("nothing was sent")
	}
	_ = proc.Wait()
	if n := len(r.got()); n != 2 {
		t.Fatalf("%d messages before the kill", n)
	}
	again := start("")
	defer func() { _ = again.Process.Kill(); _ = again.Wait() }()
	waiting := func() (n int) {
		if err := db.QueryRow(context.Background(), "SELECT COUNT(*) FROM alert_spool WHERE state = 0").Scan(&n); err != nil {
			t.Error(err)
		}
		return n
	}
	await(t, "the spool is empty", func() bool { return waiting() == 0 })
	seen := make(map[string]int)
	var order []string
	for _, g := range r.got() {
		if !verifies(t, g, secretText) {
			t.Errorf("%s: signature", g.id)
		}
		if seen[g.Data.Subject]++; seen[g.Data.Subject] == 1 {
			order = append(order, g.Data.Subject)
		}
	}
	all := r.got()
	if all[1].id != all[2].id && all[1].id != all[3].id { // the first may come again too: its receipt may not have been written
		t.Errorf("the message under way did not come again: %q %q %q", all[1].id, all[2].id, all[3].id)
	}
	if fmt.Sprint(order) != "[gw-0 gw-1 gw-2]" || seen["gw-2"] != 1 || seen["gw-1"] != 2 || seen["gw-0"] > 2 {
		t.Errorf("%v, in the order %v", seen, order)
	}
}
