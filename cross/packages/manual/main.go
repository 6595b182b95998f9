// Command manual makes man pages and bash completions of the programs from what their --help prints, so that neither can say anything
// else than the program. It is part of 'make packages'.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	programs := flag.String("programs", "", "`DIR` of the programs, built for this machine")
	out := flag.String("out", "", "`DIR` for man/ and completions/")
	sources := flag.String("sources", "", "`DIR` of the packages' sources, with what the help does not say")
	flag.Parse()
	if err := generate(*programs, *sources, *out); err != nil {
		fmt.Fprintf(os.Stderr, "manual: %v\n", err)
		os.Exit(1)
	}
}

func generate(programs, sources, out string) error {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w; expected the commit's time in seconds", err)
	}
	at := time.Unix(seconds, 0).UTC()
	for _, p := range []struct{ name, section, more string }{
		{"wardlink-agent", "8", "agent/manual.roff"}, {"wardlink-server", "8", "server/manual.roff"}, {"wardlink", "1", "server/tool.roff"},
	} {
		prog := program{name: p.name, path: filepath.Join(programs, p.name), cobra: p.name == "wardlink"}
		more, err := os.ReadFile(filepath.Join(sources, p.more))
		if err != nil {
			return err
		}
		if err := prog.read(nil); err != nil {
			return err
		}
		page := filepath.Join(out, "man", p.name+"."+p.section)
		if err := errors.Join(os.MkdirAll(filepath.Dir(page), 0o755), os.WriteFile(page, prog.page(p.section, at, more), 0o644)); err != nil {
			return err
		}
		if err := prog.complete(filepath.Join(out, "completions")); err != nil {
			return err
		}
	}
	return nil
}

// program is one of ours, with the help of each of its commands.
type program struct {
	name, path string
	cobra      bool // it tells its commands and completions by itself
	helps      []help
}

type help struct {
	words []string // of the command; none: the program's
	text  string
}

// maxCommands keeps a help that names itself from being read for ever.
const maxCommands = 200

var (
	flagCommand  = regexp.MustCompile(`(?m)^  wardlink-\w+ +([a-z0-9]+(?: [a-z]+)?)(?: |$)`)
	cobraCommand = regexp.MustCompile(`(?m)^  ([a-z][a-z-]*) {2,}\S`)
	flagName     = regexp.MustCompile(`(?m)^  -([a-z][a-z-]*)`)
)

// read asks a command, and those below it, for their help.
func (p *program) read(words []string) error {
	text, err := p.run(append(slices.Clone(words), "--help")...)
	if err != nil {
		return err
	}
	p.helps = append(p.helps, help{words, text})
	if len(p.helps) > maxCommands {
		return fmt.Errorf("%s has more than %d commands", p.name, maxCommands)
	}
	for _, sub := range p.below(words, text) {
		if err := p.read(sub); err != nil {
			return err
		}
	}
	return nil
}

// below are the commands that a help names.
func (p *program) below(words []string, text string) (out [][]string) {
	if !p.cobra {
		if len(words) == 0 {
			_, usage, _ := strings.Cut(text, "\nUsage:\n")
			usage, _, _ = strings.Cut(usage, "\n\n")
			for _, m := range flagCommand.FindAllStringSubmatch(usage, -1) {
				out = append(out, strings.Fields(m[1]))
			}
		}
		return out
	}
	_, list, found := strings.Cut(text, "\nAvailable Commands:\n")
	if !found {
		return nil
	}
	list, _, _ = strings.Cut(list, "\n\n")
	for _, m := range cobraCommand.FindAllStringSubmatch(list, -1) {
		if m[1] != "help" && m[1] != "completion" {
			out = append(out, append(slices.Clone(words), m[1]))
		}
	}
	return out
}

func (p *program) run(args ...string) (string, error) {
	cmd := exec.Command(p.path, args...)
	cmd.Env = []string{"HOME=~", "NO_COLOR=1", "PATH=/usr/bin:/bin"} // the same text on every machine
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out // the flag package prints help to standard error
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", p.name, strings.Join(args, " "), err, out.Bytes())
	}
	return out.String(), nil
}

// page is the man page: the program's help, its commands' help, and what the help does not say.
func (p *program) page(section string, at time.Time, more []byte) []byte {
	var b bytes.Buffer
	summary, _, _ := strings.Cut(p.helps[0].text, "\n")
	summary = strings.TrimRight(strings.TrimPrefix(summary, p.name+" "), ".")
	fmt.Fprintf(&b, ".TH %s %s %s wardlink\n.SH NAME\n%s \\- %s\n", roff(strings.ToUpper(p.name)), section, at.Format(time.DateOnly), roff(p.name), roff(summary))
	for _, h := range p.helps {
		if len(h.words) == 0 {
			b.WriteString(".SH DESCRIPTION\n")
		} else {
			if len(h.words) == 1 && b.Len() > 0 && !bytes.Contains(b.Bytes(), []byte(".SH COMMANDS")) {
				b.WriteString(".SH COMMANDS\n")
			}
			fmt.Fprintf(&b, ".SS %s\n", roff(p.name+" "+strings.Join(h.words, " ")))
		}
		b.WriteString(".nf\n")
		for line := range strings.Lines(strings.TrimRight(h.text, "\n")) {
			b.WriteString(roff(strings.TrimRight(line, "\n")) + "\n")
		}
		b.WriteString(".fi\n")
	}
	b.Write(more)
	return b.Bytes()
}

// roff makes a line of text safe for a man page.
func roff(line string) string {
	line = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\t", "        ").Replace(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		line = `\&` + line
	}
	return line
}

// complete writes the completions: all that cobra has, or for bash alone, which is what a gateway has.
func (p *program) complete(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if !p.cobra {
		return os.WriteFile(filepath.Join(dir, p.name+".bash"), []byte(p.bash()), 0o644)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		text, err := p.run("completion", shell)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, p.name+"."+shell), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// bash completes commands, their second words, and flags; what is none of these are files.
func (p *program) bash() string {
	var first []string
	second, flags := map[string][]string{}, ""
	for _, h := range p.helps[1:] {
		if !slices.Contains(first, h.words[0]) {
			first = append(first, h.words[0])
		}
		if len(h.words) == 2 {
			second[h.words[0]] = append(second[h.words[0]], h.words[1])
		}
		var names []string
		for _, m := range flagName.FindAllStringSubmatch(h.text, -1) {
			names = append(names, "--"+m[1])
		}
		flags += fmt.Sprintf("\t*\\ %s\\ *) words=%q ;;\n", strings.Join(h.words, `\ `), strings.Join(names, " "))
	}
	function := "_" + strings.ReplaceAll(p.name, "-", "_")
	var b strings.Builder
	fmt.Fprintf(&b, "%s() {\n\tlocal words=\"\"\n\tCOMPREPLY=()\n\tcase \"$COMP_CWORD ${COMP_WORDS[1]} ${COMP_WORDS[2]} \" in\n\t1\\ *) words=%q ;;\n", function, strings.Join(first, " "))
	for _, word := range first {
		if len(second[word]) > 0 {
			fmt.Fprintf(&b, "\t2\\ %s\\ *) words=%q ;;\n", word, strings.Join(second[word], " "))
		}
	}
	fmt.Fprintf(&b, "%s\tesac\n\tmapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\")\n}\ncomplete -o default -F %s %s\n", flags, function, p.name)
	return b.String()
}
