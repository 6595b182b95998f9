//go:build packages

package packages

import (
	"bytes"
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// host runs a tool of this machine.
func host(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// maxExposure is what 'systemd-analyze security' may say of a unit; 10 is worst.
const maxExposure = 2.0

func TestUnitsAreSandboxedAndKnownToSystemd(t *testing.T) {
	r := newRoot(t)
	for _, name := range []string{"wardlink-agent", "wardlink-server"} {
		r.install(packageFile(t, "WARDLINK_PACKAGES", name, "deb"))
		file := r.path("/usr/lib/systemd/system", name+".service")
		out := host(t, "systemd-analyze", "security", "--offline=true", "--no-pager", file)
		found := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`).FindStringSubmatch(out)
		if found == nil {
			t.Fatalf("no exposure in:\n%s", out)
		}
		exposure, err := strconv.ParseFloat(found[1], 64)
		if err != nil || exposure > maxExposure {
			t.Errorf("%s: exposure %s; expected at most %.1f\n%s", name, found[1], maxExposure, out)
		}
		t.Logf("%s: exposure %s", name, found[1])
		u := r.unit(name)
		for key, want := range map[string]string{"LimitCORE": "0", "MemorySwapMax": "0", "Restart": "always", "WatchdogSec": "60"} {
			if got := u.one(key); got != want {
				t.Errorf("%s: %s=%s; expected %s", name, key, got, want)
			}
		}
		// Unknown keys and missing programs are said. What the units want of systemd itself is this machine's.
		host(t, "cp", "-rn", "/usr/lib/systemd/system/.", r.path("/usr/lib/systemd/system"))
		text, err := exec.Command("systemd-analyze", "verify", "--man=no", "--root="+r.dir, name+".service").CombinedOutput()
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, name) {
				t.Errorf("systemd-analyze verify, %v: %s", err, line)
			}
		}
	}
}

func TestManualsHaveNoWarnings(t *testing.T) {
	r := newRoot(t)
	for name, section := range map[string]string{"wardlink-agent": "8", "wardlink-server": "8"} {
		r.install(packageFile(t, "WARDLINK_PACKAGES", name, "deb"))
		pages := []string{r.path("/usr/share/man/man" + section + "/" + name + "." + section + ".gz")}
		if name == "wardlink-server" {
			pages = append(pages, r.path("/usr/share/man/man1/wardlink.1.gz"))
		}
		for _, page := range pages {
			var warnings bytes.Buffer
			cmd := exec.Command("man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", page)
			cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANROFFSEQ=", "MANWIDTH=100")
			cmd.Stderr = &warnings
			if out, err := cmd.Output(); err != nil || warnings.Len() > 0 || len(out) < 2000 {
				t.Errorf("%s: %v, %d bytes: %s", page, err, len(out), warnings.Bytes())
			}
		}
	}
	// A completion that offers each command, and each flag of one.
	for line, want := range map[string]string{"wardlink-agent ": "run status doctor", "wardlink-agent buffer ": "check", "wardlink-server init --": "--trust-domain"} {
		program := strings.Fields(line)[0]
		words := strings.Split(line, " ")
		got := r.must("bash", "-c", ". /usr/share/bash-completion/completions/"+program+
			"; COMP_WORDS=("+strings.Join(words[:len(words)-1], " ")+" '"+words[len(words)-1]+"'); COMP_CWORD="+strconv.Itoa(len(words)-1)+
			"; _"+strings.ReplaceAll(program, "-", "_")+"; echo ${COMPREPLY[*]}")
		if !strings.Contains(got, want) {
			t.Errorf("%q completes to %q; expected %q in it", line, got, want)
		}
	}
}

// TestFilesAreAsDistributionsWantThem is what lintian and rpmlint would look for first.
func TestFilesAreAsDistributionsWantThem(t *testing.T) {
	for _, name := range []string{"wardlink-agent", "wardlink-server"} {
		dir := t.TempDir()
		host(t, "dpkg-deb", "-R", packageFile(t, "WARDLINK_PACKAGES", name, "deb"), dir)
		programs := 0
		if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			rel := strings.TrimPrefix(path, dir)
			if d.Type() != fs.ModeSymlink && info.Mode().Perm()&0o022 != 0 || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0 {
				t.Errorf("%s: %s has mode %s", name, rel, info.Mode())
			}
			if d.IsDir() || strings.HasPrefix(rel, "/DEBIAN/") {
				return nil
			}
			f, err := elf.Open(path)
			if (err == nil) != (strings.HasPrefix(rel, "/usr/bin/") || strings.HasPrefix(rel, "/usr/lib/wardlink/")) {
				t.Errorf("%s: %s is a program at an unexpected place, or is none: %v", name, rel, err)
			}
			if err == nil {
				programs++
				for _, p := range f.Progs {
					if p.Type == elf.PT_INTERP {
						t.Errorf("%s: %s is not static", name, rel)
					}
				}
				return f.Close()
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if programs != 2 {
			t.Errorf("%s has %d programs; expected 2", name, programs)
		}
		for _, script := range []string{"preinst", "postinst", "prerm", "postrm"} {
			host(t, "sh", "-n", filepath.Join(dir, "DEBIAN", script))
		}
		if out := host(t, "dpkg-deb", "-f", packageFile(t, "WARDLINK_PACKAGES", name, "deb"), "Recommends"); strings.TrimSpace(out) != "" {
			t.Errorf("%s recommends %s: apt would want the Internet", name, out)
		}
	}
}

// TestRPMInstallsAndLeavesState by rpm itself, in a root that has what its scripts call.
func TestRPMInstallsAndLeavesState(t *testing.T) {
	for name, state := range map[string]string{"wardlink-agent": "/var/lib/wardlink-agent", "wardlink-server": "/var/lib/wardlink-server"} {
		r := newRoot(t)
		first, next := packageFile(t, "WARDLINK_PACKAGES", name, "rpm"), packageFile(t, "WARDLINK_PACKAGES_NEXT", name, "rpm")
		deb := host(t, "dpkg-deb", "--fsys-tarfile", packageFile(t, "WARDLINK_PACKAGES", name, "deb"))
		for _, file := range strings.Fields(host(t, "rpm", "-qlp", first)) {
			if file != "/usr/share/zsh/site-functions/_wardlink" && !strings.Contains(deb, "."+file) {
				t.Errorf("%s: the rpm has %s and the deb does not", name, file)
			}
		}
		host(t, "rpm", "--root", r.dir, "-i", "--nodeps", first) // Debian's root has these programs under other packages' names
		if got := r.must(name, "version"); !strings.HasPrefix(got, name+" 1.0.0\n") {
			t.Errorf("%s", got)
		}
		if got := r.mode(state); got != "700 "+name+":"+name {
			t.Errorf("%s has %s", state, got)
		}
		if name == "wardlink-agent" {
			if got := r.mode("/etc/wardlink/agent.yaml"); got != "640 root:wardlink-agent" {
				t.Errorf("agent.yaml has %s", got)
			}
			if err := os.WriteFile(r.path("/etc/wardlink/agent.yaml"), []byte("an operator's\n"), 0o640); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(r.path(state, "kept"), []byte("kept\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		host(t, "rpm", "--root", r.dir, "-U", "--nodeps", next)
		if got := r.must(name, "version"); !strings.HasPrefix(got, name+" 1.1.0\n") {
			t.Errorf("after the upgrade: %s", got)
		}
		if name == "wardlink-agent" {
			if text, err := os.ReadFile(r.path("/etc/wardlink/agent.yaml")); err != nil || string(text) != "an operator's\n" {
				t.Errorf("the upgrade changed agent.yaml: %q, %v", text, err)
			}
		}
		host(t, "rpm", "--root", r.dir, "-e", "--nodeps", name)
		if !r.exists(state+"/kept") || r.exists("/usr/bin/"+name) {
			t.Errorf("%s: the removal took the state, or left the program", name)
		}
	}
}

// TestSameSourcesSameBytes: cross/packages/test made the same release twice, from two folders.
func TestSameSourcesSameBytes(t *testing.T) {
	sums := func(variable string) []string {
		dir := os.Getenv(variable)
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(files) != 4 {
			t.Fatalf("%s: %q, %v; expected deb and rpm of two packages", variable, files, err)
		}
		var out []string
		for _, f := range files {
			out = append(out, strings.Fields(host(t, "sha256sum", f))[0]+" "+filepath.Base(f))
		}
		return out
	}
	first, again := sums("WARDLINK_PACKAGES"), sums("WARDLINK_PACKAGES_AGAIN")
	if !slices.Equal(first, again) {
		t.Errorf("two runs differ:\n%s\n%s", strings.Join(first, "\n"), strings.Join(again, "\n"))
	}
	if slices.Equal(first, sums("WARDLINK_PACKAGES_NEXT")) {
		t.Error("another release has the same bytes: this compares nothing")
	}
}
