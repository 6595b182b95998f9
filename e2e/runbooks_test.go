package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"wardlink/internal/child"
)

// TestRunbooks does what docs/OPERATING.md says, line by line: each section is a script of the commands in its ```sh blocks, between
// which comments that a reader does not see (<!-- test ... -->) hold what is set up and expected.
func TestRunbooks(t *testing.T) {
	text, err := os.ReadFile("../docs/OPERATING.md")
	if err != nil {
		t.Fatal(err)
	}
	books, err := parseRunbooks(string(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, need := range []string{"Install the server", "Install and approve a gateway", "Move a gateway", "Replace a gateway's board", "A gateway is stolen",
		"Rotate the issuing CA", "Back up and restore", "Attach a monitor", "My monitor's data does not arrive"} {
		if !slices.ContainsFunc(books, func(b runbook) bool { return b.title == need }) {
			t.Errorf("docs/OPERATING.md has no runbook %q", need)
		}
	}
	for _, b := range books {
		t.Run(b.title, func(t *testing.T) {
			t.Parallel()
			newPlayer(t).play(b)
		})
	}
}

// runbook is one section of the document.
type runbook struct {
	title    string
	script   string // in testscript's language
	commands int    // that a reader is told to type
}

// parseRunbooks reads the document's sections ("## "). A section whose first comment is "not a runbook" is prose.
func parseRunbooks(text string) ([]runbook, error) {
	var books []runbook
	for _, section := range strings.Split("\n"+text, "\n## ")[1:] {
		title, body, _ := strings.Cut(section, "\n")
		if strings.Contains(body, "<!-- not a runbook -->") {
			continue
		}
		b := runbook{title: title}
		in := ""
		for _, line := range strings.Split(body, "\n") {
			switch {
			case in == "" && line == "```sh":
				in = "sh"
			case in == "" && strings.HasPrefix(line, "<!-- test"):
				if strings.HasPrefix(line, "<!-- test fails") {
					b.script = expectFailure(b.script)
				}
				if strings.HasSuffix(line, "-->") {
					continue
				}
				in = "test"
			case in == "" && strings.HasPrefix(line, "```"):
				in = "text"
			case in == "sh" && line == "```", in == "text" && line == "```", in == "test" && line == "-->":
				in = ""
			case in == "sh":
				if command := strings.TrimSpace(comment.ReplaceAllString(line, "")); command != "" {
					b.script += played(command) + "\n"
					b.commands++
				}
			case in == "test":
				b.script += line + "\n"
			}
		}
		if in != "" {
			return nil, fmt.Errorf("runbook %q: a block is not closed", title)
		}
		if b.commands == 0 {
			return nil, fmt.Errorf("runbook %q tells nobody to type anything", title)
		}
		books = append(books, b)
	}
	return books, nil
}

// expectFailure says of a script's last command that it has to fail.
func expectFailure(script string) string {
	last := strings.LastIndex(strings.TrimSuffix(script, "\n"), "\n") + 1
	return script[:last] + "! " + script[last:]
}

// comment is what a reader is told behind a command.
var comment = regexp.MustCompile(`(^|\s{2,})# .*$`)

// played is a reader's command in the script's language: the same words, at the places where the test keeps these things.
func played(command string) string {
	command = strings.TrimPrefix(command, "sudo ")
	return strings.NewReplacer(`"`, `'`, "/srv/wardlink", "$SERVER", "/etc/wardlink", "$ETC", "/media/usb/passphrase", "$PASSPHRASE", "/mnt/backup", "$WORK/backup",
		"/var/lib/wardlink-agent", "$STATE", "/media/card", "$CARD",
		"ABCD-EFGH-IJKL-MNOP", "$FINGERPRINT", "QRST-UVWX-YZ23-4567", "$CHALLENGE", "AAAA-DIQD-VH3L", "$TOKEN", "wardlink.hospital.example:8883", "$GATEWAYS", "wardlink.hospital.example:8443", "$HOSPITAL",
		"wardlink.hospital.example", "localhost").Replace(command)
}

// player plays one runbook with a hospital of its own.
type player struct {
	t     *testing.T
	h     *hospital
	boxes map[string]*box
	on    *box // the gateway on which commands are typed
}

func newPlayer(t *testing.T) *player { return &player{t: t, boxes: map[string]*box{}} }

func (p *player) play(b runbook) {
	file := filepath.Join(p.t.TempDir(), "runbook.txtar")
	if err := os.WriteFile(file, []byte(b.script), 0o600); err != nil {
		p.t.Fatal(err)
	}
	testscript.RunT(onOneGoroutine{p.t}, testscript.Params{
		Files: []string{file},
		Setup: func(env *testscript.Env) error {
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("NO_COLOR", "1")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// what a reader types
			"wardlink": p.types("wardlink"), "wardlink-server": p.types("wardlink-server"), "wardlink-agent": p.types("wardlink-agent"),
			"systemctl": p.systemctl,
			// what a reader has
			"hospital": p.hospital, "gateway": p.gateway, "remember": p.remember, "send": p.send, "until": p.until, "expanded": p.expanded, "lose": p.lose, "dies": p.dies, "take": p.take,
		},
	})
}

// onOneGoroutine lets a script's commands fail the test that they belong to.
type onOneGoroutine struct{ *testing.T }

func (t onOneGoroutine) Parallel()                          {}
func (t onOneGoroutine) Run(_ string, f func(testscript.T)) { f(t) }
func (t onOneGoroutine) Verbose() bool                      { return testing.Verbose() }

func (p *player) must(ts *testscript.TestScript, ok bool, why string, args ...any) {
	if !ok {
		ts.Fatalf(why, args...)
	}
}

// hospital makes a server and starts it; "hospital none" is only the place for one.
func (p *player) hospital(ts *testscript.TestScript, _ bool, args []string) {
	if slices.Equal(args, []string{"none"}) {
		p.h = placeHospital(p.t)
	} else {
		p.h = newHospital(p.t)
	}
	ts.Setenv("SERVER", p.h.server())
	ts.Setenv("PASSPHRASE", p.h.passphrase())
	ts.Setenv("GATEWAYS", p.h.gateways)
	ts.Setenv("HOSPITAL", p.h.hospital)
	ts.Setenv("WARDLINK_OPERATOR", p.h.operator())
}

// gateway is "gateway NAME new" (it runs, nobody knows it), "gateway NAME" (it is known and delivers) or "gateway NAME on" (what
// follows is typed on that one).
func (p *player) gateway(ts *testscript.TestScript, _ bool, args []string) {
	p.must(ts, len(args) > 0, "gateway NAME [new|on]")
	name, how := args[0], strings.Join(args[1:], " ")
	if how != "on" {
		p.boxes[name] = p.h.newBox(name, p.h.kit())
	}
	p.on = p.boxes[name]
	p.must(ts, p.on != nil, "there is no gateway %q", name)
	switch how {
	case "new":
		p.on.start()
	case "":
		p.on.deliverAs(name)
	}
	var id struct{ Fingerprint string }
	ts.Check(json.Unmarshal(p.on.must("wardlink-agent", "identity", "--json", "--config", p.on.config()), &id))
	ts.Setenv("FINGERPRINT", id.Fingerprint)
	ts.Setenv("ETC", p.on.dir)
	ts.Setenv("STATE", p.on.state())
	ts.Setenv("KIT", p.h.kit())
	ts.Setenv("TPM", "swtpm:"+p.on.tpm.Socket)
	ts.Setenv("MLLP", p.on.mllp)
}

// remember is "remember NAME": the gateway's fingerprint in a variable of its own.
func (p *player) remember(ts *testscript.TestScript, _ bool, args []string) {
	p.must(ts, len(args) == 1, "remember NAME")
	ts.Setenv(args[0], ts.Getenv("FINGERPRINT"))
}

// expanded is "expanded FILE LINE...": a file whose lines may name variables.
func (p *player) expanded(ts *testscript.TestScript, _ bool, args []string) {
	p.must(ts, len(args) >= 2, "expanded FILE LINE...")
	text := os.Expand(strings.Join(args[1:], "\n")+"\n", ts.Getenv)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// take is "take NAME PATTERN": what the pattern's group matches of the last command's output, in a variable.
func (p *player) take(ts *testscript.TestScript, _ bool, args []string) {
	p.must(ts, len(args) == 2, "take NAME PATTERN")
	found := regexp.MustCompile("(?m)" + args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	p.must(ts, len(found) == 2, "no %s in the output:\n%s", args[1], ts.ReadFile("stdout"))
	ts.Setenv(args[0], found[1])
}

// lose is "lose DIR": what a broken disk does.
func (p *player) lose(ts *testscript.TestScript, _ bool, args []string) {
	p.must(ts, len(args) == 1, "lose DIR")
	ts.Check(os.RemoveAll(args[0]))
}

// dies is the end of the gateway's board, and its card in a reader.
func (p *player) dies(ts *testscript.TestScript, _ bool, args []string) {
	p.must(ts, len(args) == 0 && p.on != nil, "dies, after a gateway")
	p.on.agent.Kill()
	p.on.tpm.Stop()
	ts.Setenv("CARD", copied(p.t, p.on.state(), "card/var/lib/wardlink-agent")+"/../../..")
}

// send delivers a message to the gateway, which has to acknowledge it.
func (p *player) send(ts *testscript.TestScript, _ bool, args []string) {
	p.must(ts, len(args) == 1 && p.on != nil, "send ID, after a gateway")
	ack := p.on.send(args[0])
	p.must(ts, strings.Contains(ack, "MSA|CA|"+args[0]), "acknowledgement %q", ack)
}

// types runs one of our programs; "! wardlink ..." wants it to fail.
func (p *player) types(name string) func(*testscript.TestScript, bool, []string) {
	return func(ts *testscript.TestScript, neg bool, args []string) {
		err := ts.Exec(program(name), p.arguments(name, args)...)
		p.must(ts, (err != nil) == neg, "%s %s: %v", name, strings.Join(args, " "), err)
	}
}

func (p *player) systemctl(ts *testscript.TestScript, neg bool, args []string) {
	p.must(ts, len(args) == 2, "systemctl start|stop|reload|restart UNIT")
	verb, unit := args[0], args[1]
	switch {
	case unit == "wardlink-server" && verb == "start":
		p.h.run()
	case unit == "wardlink-server" && verb == "stop":
		p.h.proc.Stop()
	case unit == "wardlink-server" && verb == "restart":
		p.h.proc.Stop()
		p.h.run()
	case unit == "wardlink-agent" && verb == "start":
		p.on.start()
		p.on.ready()
	case unit == "wardlink-agent" && verb == "stop":
		p.on.agent.Stop()
	case unit == "wardlink-agent" && verb == "reload":
		ts.Check(syscall.Kill(p.on.agent.PID(), syscall.SIGHUP))
	case unit == "wardlink-agent" && verb == "restart":
		p.on.agent.Stop()
		p.on.start()
		p.on.ready()
	default:
		ts.Fatalf("systemctl %s %s", verb, unit)
	}
}

// ready waits as the service manager does for a unit of type notify.
func (b *box) ready() {
	b.await("the agent", func(ctx context.Context) (bool, error) {
		_, err := b.status(ctx)
		return err == nil, nil
	})
}

// until repeats a command until its output matches.
func (p *player) until(ts *testscript.TestScript, _ bool, args []string) {
	p.must(ts, len(args) >= 2, "until PATTERN COMMAND...")
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	name, rest := args[1], p.arguments(args[1], args[2:])
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var out []byte
	err = child.Until(ctx, "output like "+args[0], nil, func(ctx context.Context) (bool, error) {
		out, _ = child.Output(ctx, program(name), rest...)
		return want.Match(out), nil
	})
	if err != nil {
		ts.Fatalf("%v; the last was:\n%s", err, out)
	}
}

// arguments are a program's, with what the place of the test makes necessary.
func (p *player) arguments(name string, args []string) []string {
	args = slices.Clone(args)
	switch {
	case name == "wardlink":
		return append([]string{"--operator", p.h.operator()}, args...)
	case name == "wardlink-agent" && p.on != nil && !slices.Contains(args, "try"):
		return append(args, "--config", p.on.config())
	case name == "wardlink-server" && len(args) > 0 && args[0] == "init":
		return append(args, "--gateways", p.h.gateways, "--hospital", p.h.hospital, "--operators", p.h.operators)
	}
	return args
}
