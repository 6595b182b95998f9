// Package pgtest gives tests PostgreSQL databases: one server per test process, started when the first test wants it, and a database per
// test; or a server of a test's own, to be killed. A test that cannot have one fails: it never skips. See pgserver for how they end.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"wardlink/internal/pgserver"
)

var shared struct {
	sync.Mutex
	server    *pgserver.Server
	err       error
	databases int
	templates map[string]string // by key
}

// Server is the one server of this test process. Tests must leave its settings and its life alone: Own is for those that don't.
func Server(t testing.TB) *pgserver.Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	return server(t)
}

func server(t testing.TB) *pgserver.Server {
	t.Helper()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = pgserver.New(pgserver.Config{})
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

// Own starts a server for this test alone.
func Own(t testing.TB, c pgserver.Config) *pgserver.Server {
	t.Helper()
	s, err := pgserver.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// New makes an empty database on the shared server and gives its URL, for the superuser. It goes with the test.
func New(t testing.TB) string {
	t.Helper()
	return from(t, "template0")
}

// Template makes a database as fill left one before: fill runs once for each key in a test process.
func Template(t testing.TB, key string, fill func(url string) error) string {
	t.Helper()
	return from(t, filled(t, key, fill))
}

func filled(t testing.TB, key string, fill func(url string) error) string {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if template, ok := shared.templates[key]; ok {
		return template
	}
	s := server(t)
	template := fmt.Sprintf("template_%d", len(shared.templates)+2) // the server has template0 and template1
	err := s.Exec(context.Background(), "postgres", "CREATE DATABASE "+template+" TEMPLATE template0")
	if err == nil {
		err = fill(s.URL(template, pgserver.Superuser))
	}
	if err != nil {
		t.Fatal(err)
	}
	if shared.templates == nil {
		shared.templates = make(map[string]string)
	}
	shared.templates[key] = template
	return template
}

func from(t testing.TB, template string) string {
	t.Helper()
	s, name := fresh(t)
	Create(t, s, name, template)
	return s.URL(name, pgserver.Superuser)
}

// fresh is the shared server, and a name that no database of it has.
func fresh(t testing.TB) (*pgserver.Server, string) {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	shared.databases++
	return server(t), fmt.Sprintf("test_%d", shared.databases)
}

// Create makes a database on a server; it goes with the test, unless the server is gone before.
func Create(t testing.TB, s *pgserver.Server, name, template string) {
	t.Helper()
	ctx := context.Background()
	if err := s.Exec(ctx, "postgres", "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.PID() == 0 {
			return
		}
		if err := s.Exec(ctx, "postgres", "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)"); err != nil {
			t.Error(errors.Join(errors.New("a test's database stays"), err))
		}
	})
}
