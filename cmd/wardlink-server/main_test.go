package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func program(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

// TestEveryCommandExplainsItself: help says how a command is called, with examples that name it.
func TestEveryCommandExplainsItself(t *testing.T) {
	commands := regexp.MustCompile(`(?m)^  wardlink-server ([a-z]+(?: [a-z]+)?) `).FindAllStringSubmatch(usage, -1)
	if len(commands) < 10 {
		t.Fatalf("%d commands in the usage", len(commands))
	}
	for _, m := range commands {
		code, _, said := program(t, "", append(strings.Fields(m[1]), "--help")...)
		if code != 0 || !strings.HasPrefix(said, "Usage: wardlink-server "+m[1]) || !strings.Contains(said, "\n  wardlink-server "+m[1]) {
			t.Errorf("%s --help: exit %d\n%s", m[1], code, said)
		}
	}
	for args, want := range map[string]string{
		"runn":             "wardlink-server: unknown command \"runn\"; did you mean run? ('wardlink-server help' lists all)\n",
		"run --dri x":      "wardlink-server: flag provided but not defined: -dri; see 'wardlink-server run --help'\n",
		"size --gatweys 1": "wardlink-server: flag provided but not defined: -gatweys; see 'wardlink-server size --help'\n",
	} {
		if code, _, said := program(t, "", strings.Fields(args)...); code != 2 || said != want {
			t.Errorf("%s: exit %d\n%s", args, code, said)
		}
	}
	if code, _, said := program(t, "", "help", "backup"); code != 0 || !strings.HasPrefix(said, "Usage: wardlink-server backup") {
		t.Errorf("help backup: exit %d\n%s", code, said)
	}
	if code, said, _ := program(t, "", "--version"); code != 0 || !strings.HasPrefix(said, "wardlink-server") {
		t.Errorf("--version: exit %d\n%s", code, said)
	}
	for name, text := range helps {
		if strings.Contains(text, `\\`) {
			t.Errorf("%s --help: an example goes on after two backslashes, which a shell takes for one of the argument's", name)
		}
	}
	for _, above := range []string{"rotate", "recovery"} {
		if code, _, said := program(t, "", above, "--help"); code != 0 || !strings.HasPrefix(said, "Usage: wardlink-server "+above+" ") {
			t.Errorf("%s --help: exit %d\n%s", above, code, said)
		}
		for _, args := range [][]string{{above}, {above, "nothing"}} {
			if code, _, said := program(t, "", args...); code != 2 || !strings.Contains(said, "it has ") {
				t.Errorf("%v: exit %d\n%s", args, code, said)
			}
		}
	}
}

// TestADirectoryIsItsUsers: a command of root's would leave files in the server's directory that the server cannot read.
func TestADirectoryIsItsUsers(t *testing.T) {
	dir := t.TempDir()
	if err := checkOwner(dir, os.Geteuid(), "wardlink-server backup"); err != nil {
		t.Error(err)
	}
	if err := checkOwner(filepath.Join(dir, "absent"), os.Geteuid(), "wardlink-server init"); err != nil {
		t.Error(err)
	}
	err := checkOwner(dir, os.Geteuid()+1, "wardlink-server backup")
	if err == nil || !strings.Contains(err.Error(), "sudo -u ") || !strings.Contains(err.Error(), "wardlink-server backup --dir "+dir) {
		t.Errorf("another user's directory: %v", err)
	}
}

// TestBackupSaysWhatItDid: what is in it and how large it is, and on a stream that is no terminal whole lines for each stage.
func TestBackupSaysWhatItDid(t *testing.T) {
	dir := t.TempDir()
	server := filepath.Join(dir, "s")
	if code, _, said := program(t, "", "init", "--dir", server, "--name", "localhost"); code != 0 {
		t.Fatal(said)
	}
	code, out, progress := program(t, "", "backup", "--dir", server, "--out", dir)
	if code != 0 || strings.Contains(out, " 0 files") || !regexp.MustCompile(`[0-9]+ files, [0-9.]+ MB, .* in [0-9.]+ MB`).MatchString(out) {
		t.Errorf("exit %d\n%s%s", code, out, progress)
	}
	for line := range strings.Lines(progress) {
		if !strings.HasPrefix(line, "backup: ") || !strings.HasSuffix(line, " so far\n") {
			t.Errorf("progress: %q", line)
		}
	}
	if !strings.Contains(progress, "database") {
		t.Errorf("no progress: %q", progress)
	}
}
