package pgtest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"wardlink/internal/pgserver"
	"wardlink/internal/pgtest"
)

func query(t *testing.T, url, statement string, into ...any) {
	t.Helper()
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if len(into) == 0 {
		_, err = conn.Exec(ctx, statement)
	} else {
		err = conn.QueryRow(ctx, statement).Scan(into...)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestDatabasesApart(t *testing.T) {
	fill := func(url string) error {
		query(t, url, "CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1)")
		return nil
	}
	a, b := pgtest.Template(t, "t", fill), pgtest.Template(t, "t", func(string) error { return errors.New("filled twice") })
	query(t, a, "INSERT INTO t VALUES (2)")
	var n int
	if query(t, b, "SELECT COUNT(*) FROM t", &n); n != 1 {
		t.Error(n)
	}
	if query(t, pgtest.New(t), "SELECT COUNT(*) FROM pg_tables WHERE schemaname = 'public'", &n); n != 0 {
		t.Error(n)
	}
}

// What was committed outlives SIGKILL of every process of the server; a paused one answers nobody and goes on.
func TestKillStartPause(t *testing.T) {
	s := pgtest.Own(t, pgserver.Config{Settings: map[string]string{"max_connections": "20"}})
	query(t, s.SuperURL(), "CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (7)")
	for range 2 {
		if err := s.Kill(); err != nil {
			t.Fatal(err)
		}
		if _, err := pgx.Connect(t.Context(), s.SuperURL()); err == nil {
			t.Fatal("a killed server answers")
		}
		if err := s.Set(map[string]string{"max_connections": "21"}); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	var a int
	var connections string
	if query(t, s.SuperURL(), "SELECT a, current_setting('max_connections') FROM t", &a, &connections); a != 7 || connections != "21" {
		t.Error(a, connections)
	}
	if err := s.Pause(true); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := pgx.Connect(ctx, s.SuperURL()); err == nil {
		t.Error("a paused server answers")
	}
	if err := s.Pause(false); err != nil {
		t.Fatal(err)
	}
	query(t, s.SuperURL(), "SELECT 1")
	if err := errors.Join(s.Halt(), s.Start()); err != nil {
		t.Fatal(err)
	}
}

// The test process starts a server and is killed, or panics: neither server nor files stay.
func TestNothingStays(t *testing.T) {
	if os.Getenv("PGTEST_CHILD") != "" {
		s := pgtest.Server(t)
		fmt.Printf("\nserver %d %s\n", s.PID(), s.Dir())
		if os.Getenv("PGTEST_CHILD") == "panic" {
			panic("as a test may")
		}
		select {}
	}
	for _, end := range []string{"kill", "panic"} {
		t.Run(end, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestNothingStays$", "-test.v")
			cmd.Env = append(os.Environ(), "PGTEST_CHILD="+end)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var pid int
			var dir string
			for text := ""; dir == ""; {
				part := make([]byte, 4096)
				n, err := out.Read(part)
				if text += string(part[:n]); err != nil {
					t.Fatalf("%v: %s", err, text)
				}
				if _, rest, ok := strings.Cut(text, "\nserver "); ok && strings.Contains(rest, "\n") {
					words := strings.Fields(rest)
					pid, err = strconv.Atoi(words[0])
					if dir = words[1]; err != nil {
						t.Fatal(err)
					}
				}
			}
			if end == "kill" {
				_ = cmd.Process.Kill()
			}
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
			for range 1000 {
				if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) && syscall.Kill(pid, 0) != nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Errorf("server %d or its directory %s is still there", pid, dir)
		})
	}
}
