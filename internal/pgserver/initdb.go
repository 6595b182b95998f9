package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// initialise gives data the files of a new server. initdb takes seconds, and each test process wants a server: so what it made is kept in
// the user's cache, by version, and copied.
func initialise(bin, data string) error {
	cache, err := os.UserCacheDir()
	if err != nil {
		return initdb(bin, data)
	}
	version, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return fmt.Errorf("postgres --version: %w", err)
	}
	name := strings.NewReplacer(" ", "_", "/", "_", "(", "", ")", "").Replace(strings.TrimSpace(string(version)))
	kept := filepath.Join(cache, "wardlink-tests", name+"-1")
	if _, err := os.Stat(kept); err != nil {
		if err := keep(bin, kept); err != nil {
			return err
		}
	}
	if err := os.CopyFS(data, os.DirFS(kept)); err != nil {
		return err
	}
	return os.Chmod(data, 0o700)
}

// keep makes the files that later servers copy. They get their name when they are whole; another process may have been faster.
func keep(bin, kept string) error {
	if err := os.MkdirAll(filepath.Dir(kept), 0o700); err != nil {
		return err
	}
	making, err := os.MkdirTemp(os.TempDir(), "pginit")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(making) }()
	if err := own(making); err != nil {
		return err
	}
	data := filepath.Join(making, "data")
	if err := initdb(bin, data); err != nil {
		return err
	}
	// Another file system may lie between the two.
	beside, err := os.MkdirTemp(filepath.Dir(kept), "making")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(beside) }()
	if err := os.CopyFS(filepath.Join(beside, "data"), os.DirFS(data)); err != nil {
		return err
	}
	err = os.Rename(filepath.Join(beside, "data"), kept)
	if errors.Is(err, os.ErrExist) || errors.Is(err, syscall.ENOTEMPTY) {
		return nil
	}
	return err
}

func initdb(bin, data string) error {
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	if err := own(data); err != nil {
		return err
	}
	args := as(filepath.Join(bin, "initdb"), "-D", data, "-U", Superuser, "-A", "trust", "--no-sync", "--locale=C", "--encoding=UTF8", "-k")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
