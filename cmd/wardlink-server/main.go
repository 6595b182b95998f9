// Command wardlink-server is the hospital's side.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"os/user"
	"slices"
	"strings"
	"syscall"

	"wardlink/internal/build"
	"wardlink/internal/nearest"
	"wardlink/server"
	"wardlink/server/keys"
	"wardlink/server/registry"
)

const usage = `wardlink-server is the hospital's side: it enrols gateways, takes in what they send, and gives it to the hospital.

Usage:
  wardlink-server init     --dir DIR [--trust-domain D] [--name HOST]...   make a new server's directory
  wardlink-server run      --dir DIR                                       serve until SIGTERM
  wardlink-server operator --dir DIR --name NAME                           make an operator's file
  wardlink-server node add --dir DIR --name NODE --out NODEDIR             make an ingest node; 'node list', 'node remove' beside it
  wardlink-server init     --dir DIR --confirm-recovery                    prove that the recovery file opens, and note it
  wardlink-server recovery check --dir DIR                                 prove the same, and note nothing
  wardlink-server backup   --dir DIR --out FILE                            back data and log up, also while the server runs
  wardlink-server restore  --dir NEW --from FILE --verify                  make a server of a backup and its passphrase
  wardlink-server restored --dir DIR                                       begin the next log, once directory and PostgreSQL were put back
  wardlink-server resend   --dir DIR                                       ask gateways for what the database lacks
  wardlink-server certificates --dir DIR [--json]                          what ends when, and who renews it
  wardlink-server rotate issuing --dir DIR                                 make the next issuing CA, with the recovery passphrase
  wardlink-server size     --gateways N [--waveforms 4x250] [--json]       reckon the disk that a hospital takes
  wardlink-server version  [--modules] [--json]

Exit codes: 0 done, 1 failed, 2 wrong usage. 'wardlink-server COMMAND --help' lists a command's flags.

Two commands for a first look:

  wardlink-server init --dir ./hospital --name localhost
  wardlink-server run  --dir ./hospital
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

type streams struct {
	in       io.Reader
	out, err io.Writer
}

// run is the program: exit code 0 done, 1 failed, 2 wrong usage.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	commands := map[string]func(context.Context, []string, streams) error{
		"init": initServer, "run": runServer, "operator": operator, "recovery": recovery, "backup": makeBackup, "restore": restore, "restored": restored, "resend": resend, "certificates": certificates, "rotate": rotate, "node": nodeCommand, "size": size, "version": version,
	}
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	switch {
	case args[0] == "help" && len(args) > 1:
		args = append(slices.Clone(args[1:]), "--help")
	case slices.Contains([]string{"help", "-h", "-help", "--help"}, args[0]):
		fmt.Fprint(stdout, usage)
		return 0
	case args[0] == "--version":
		args = append([]string{"version"}, args[1:]...)
	}
	cmd, ok := commands[args[0]]
	if !ok {
		fmt.Fprintf(stderr, "wardlink-server: unknown command %q%s ('wardlink-server help' lists all)\n", args[0], nearest.Hint(args[0], slices.Collect(maps.Keys(commands))))
		return 2
	}
	err := cmd(ctx, args[1:], streams{stdin, stdout, stderr})
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintf(stderr, "wardlink-server: %v\n", err)
		return 2
	default:
		fmt.Fprintf(stderr, "wardlink-server: %v\n", err)
		return 1
	}
}

// usageError is a mistake in the command line.
type usageError struct{ error }

func flags(name string, s streams) (*flag.FlagSet, *string) {
	fs := flag.NewFlagSet("wardlink-server "+name, flag.ContinueOnError)
	fs.SetOutput(s.err)
	return fs, fs.String("dir", "", "the server's `DIR`")
}

// help says what a command does and how it is called, and then its flags.
func help(fs *flag.FlagSet) {
	fmt.Fprintf(fs.Output(), "Usage: %s\n\n", strings.TrimSpace(helps[fs.Name()]))
	fs.PrintDefaults()
}

func parse(fs *flag.FlagSet, args []string, dir *string) error {
	out := fs.Output()
	fs.SetOutput(io.Discard) // a mistake is said once, at the end, and not buried below all flags
	err := fs.Parse(args)
	fs.SetOutput(out)
	if errors.Is(err, flag.ErrHelp) {
		help(fs)
		return err
	}
	if err != nil {
		return usageError{fmt.Errorf("%w; see '%s --help'", err, fs.Name())}
	}
	if fs.NArg() > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", fs.Arg(0))}
	}
	if dir != nil && *dir == "" {
		return usageError{errors.New("--dir is missing; name the server's directory")}
	}
	if dir != nil {
		return checkOwner(*dir, os.Geteuid(), fs.Name())
	}
	return nil
}

// checkOwner refuses a directory of another user, root's commands included: what they would write in it, the server could not read.
func checkOwner(dir string, uid int, command string) error {
	info, err := os.Stat(dir)
	if err != nil { // init and restore make it, the others say what is missing
		return nil
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(stat.Uid) == uid {
		return nil
	}
	owner := fmt.Sprint(stat.Uid)
	if u, err := user.LookupId(owner); err == nil {
		owner = u.Username
	} else {
		owner = "'#" + owner + "'" // quoted: to a shell it would begin a comment
	}
	return fmt.Errorf("%s belongs to the user %s, who could not read what others write there; run it as that user: sudo -u %s %s --dir %s", dir, owner, owner, command, dir)
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func initServer(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("init", s)
	o := server.InitOptions{Config: server.DefaultConfig()}
	var names, trust, authorities list
	fs.StringVar(&o.Config.TrustDomain, "trust-domain", "wardlink.internal", "`DOMAIN` of every identity; cannot be changed later")
	fs.Var(&names, "name", "`HOST` name or address by which this server is reached; may be given again (default: this machine's name, localhost)")
	fs.Var(&trust, "ek-trust", "PEM `FILE` of a TPM vendor's root or intermediate; may be given again")
	fs.StringVar(&o.Config.Gateways, "gateways", o.Config.Gateways, "listen `ADDRESS` for gateways")
	fs.StringVar(&o.Config.Hospital, "hospital", o.Config.Hospital, "listen `ADDRESS` for FHIR")
	fs.StringVar(&o.Config.Operators, "operators", o.Config.Operators, "listen `ADDRESS` for the operators' API")
	fs.StringVar(&o.Operator, "operator", "operator", "`NAME` of the first operator")
	services := fs.String("services", "", "`LIST` of the services that run on this directory, such as ca,records,log,api; needs --database (default: all)")
	fs.Var(&authorities, "ca", "`ADDRESS` host:port of a process with the service ca, where --services has api and not ca; may be given again")
	fs.StringVar(&o.Config.Database, "database", "", "PostgreSQL database, `URL` postgres://user@host/name without a password (default: SQLite in DIR)")
	dbPassFile := fs.String("database-password-file", "", "read the password of the database's login from `FILE`; DIR gets a copy that its owner alone can read")
	passFile := fs.String("passphrase-file", "", "read the recovery passphrase from `FILE` (default: one is made and shown once)")
	confirm := fs.Bool("confirm-recovery", false, "make nothing: prove with the passphrase that the recovery file of DIR opens, and note it")
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	if *confirm {
		return confirmRecovery(ctx, *dir, *passFile, *asJSON, s)
	}
	o.Dir, o.Config.Names, o.Config.CA, o.EKTrust = *dir, names, authorities, trust
	if len(names) == 0 {
		o.Config.Names = []string{"localhost", "127.0.0.1"}
		if host, err := os.Hostname(); err == nil && host != "localhost" {
			o.Config.Names = append([]string{strings.ToLower(host)}, o.Config.Names...)
		}
	}
	made := *passFile == ""
	if made {
		o.Passphrase = keys.NewPassphrase()
	} else {
		text, err := os.ReadFile(*passFile)
		if err != nil {
			return fmt.Errorf("passphrase: %w", err)
		}
		o.Passphrase = strings.TrimSpace(string(text))
	}
	if *services != "" {
		var err error
		if o.Config.Services, err = server.ParseServices(*services); err != nil {
			return usageError{err}
		}
	}
	if *dbPassFile != "" {
		text, err := os.ReadFile(*dbPassFile)
		if err != nil {
			return fmt.Errorf("database's password: %w", err)
		}
		o.Password = strings.TrimSpace(string(text))
	}
	if err := server.Init(ctx, o); err != nil {
		return err
	}
	if *asJSON {
		out := map[string]string{"dir": o.Dir, "trust_domain": o.Config.TrustDomain, "operator_file": server.OperatorFile(o.Dir)}
		if made {
			out["recovery_passphrase"] = o.Passphrase
		}
		return json.NewEncoder(s.out).Encode(out)
	}
	fmt.Fprintf(s.out, "%s is a new server of %s.\n\n", o.Dir, o.Config.TrustDomain)
	if made {
		fmt.Fprintf(s.out, "Recovery passphrase, shown this once; write it down and keep it apart from recovery.json:\n\n    %s\n\n", o.Passphrase)
	}
	fmt.Fprintf(s.out, "Next:\n  wardlink-server init --dir %s --confirm-recovery\n  wardlink-server run --dir %s\n  wardlink --operator %s provision kit --out kit.json\n", o.Dir, o.Dir, server.OperatorFile(o.Dir))
	return nil
}

func runServer(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("run", s)
	list := fs.String("services", "", "`LIST` of the services that this process runs (default: those of DIR/server.yaml, else all)")
	gateways := fs.String("gateways", "", "listen `ADDRESS` for gateways, of a second process on this directory (default: that of DIR/server.yaml)")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	cfg, err := server.LoadConfig(*dir)
	if err != nil {
		return err
	}
	services := cfg.Services
	if *list != "" {
		if services, err = server.ParseServices(*list); err != nil {
			return usageError{err}
		}
	}
	// A core dump would hold keys and opened batches.
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("core dumps cannot be switched off: %w", err)
	}
	var h slog.Handler = slog.NewTextHandler(s.err, nil)
	if cfg.Log == "json" {
		h = slog.NewJSONHandler(s.err, nil)
	}
	if services.Node() {
		if *gateways != "" {
			return usageError{errors.New("--gateways: an ingest node's address is in its server.yaml")}
		}
		node, err := server.NewNode(*dir, slog.New(h))
		if err != nil {
			return err
		}
		return node.Run(ctx)
	}
	srv, err := server.NewAt(*dir, *gateways, slog.New(h), services...)
	if err != nil {
		return err
	}
	return srv.Run(ctx)
}

func operator(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("operator", s)
	name, asJSON := fs.String("name", "", "`NAME` of the operator"), fs.Bool("json", false, "print JSON")
	role := fs.String("role", "", "the operator's `ROLE`: admin, operator, auditor or viewer (default: the one that it has, or operator)")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	if *name == "" {
		return usageError{errors.New("--name is missing: the operator's name, such as jane-doe")}
	}
	path, err := server.NewOperator(ctx, *dir, *name, registry.Role(*role))
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(s.out).Encode(map[string]string{"operator_file": path})
	}
	fmt.Fprintf(s.out, "%s\n", path)
	return nil
}

// only is the one command below another, such as 'recovery check', or asks for its help.
func only(name, below string, args []string) ([]string, error) {
	switch {
	case len(args) == 0:
		return nil, usageError{fmt.Errorf("'%s' alone does nothing; it has the command '%s %s'", name, name, below)}
	case args[0] == below:
		return args[1:], nil
	case slices.Contains([]string{"help", "-h", "-help", "--help"}, args[0]):
		return []string{"--help"}, nil
	}
	return nil, usageError{fmt.Errorf("%s has no command %q; it has %s", name, args[0], below)}
}

func recovery(_ context.Context, args []string, s streams) error {
	args, err := only("recovery", "check", args)
	if err != nil {
		return err
	}
	fs, dir := flags("recovery check", s)
	passFile := fs.String("passphrase-file", "", "read the passphrase from `FILE` (default: standard input)")
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	passphrase, err := readPassphrase(*passFile, s)
	if err != nil {
		return err
	}
	if err := keys.CheckRecovery(*dir, passphrase); err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(s.out).Encode(map[string]bool{"opens": true})
	}
	fmt.Fprintln(s.out, "the recovery file opens, and its records key opens what gateways seal, its config key is the one that kits trust")
	return nil
}

// readPassphrase reads the recovery passphrase from a file, or from standard input.
func readPassphrase(file string, s streams) (string, error) {
	in := s.in
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("passphrase: %w", err)
		}
		defer f.Close()
		in = f
	} else {
		fmt.Fprint(s.err, "recovery passphrase: ")
	}
	text, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("passphrase: %w", err)
	}
	if strings.TrimSpace(text) == "" {
		return "", errors.New("no passphrase was given; type it, or name a file with --passphrase-file")
	}
	return strings.TrimSpace(text), nil
}

func version(_ context.Context, args []string, s streams) error {
	fs := flag.NewFlagSet("wardlink-server version", flag.ContinueOnError)
	fs.SetOutput(s.err)
	modules, asJSON := fs.Bool("modules", false, "list the linked modules"), fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, nil); err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(s.out).Encode(build.About("wardlink-server", *modules))
	}
	build.Print(s.out, "wardlink-server", *modules)
	return nil
}
