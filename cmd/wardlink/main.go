// Command wardlink is the operator's tool.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"wardlink/internal/build"
	"wardlink/server/api/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// tool is what every command shares.
type tool struct {
	operator string // path of the operator's file
	json     bool
	out      io.Writer
	err      io.Writer
}

// run is the program: exit code 0 done, 1 failed or doubted, 2 a trace found a station stopped.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	t := &tool{out: stdout, err: stderr}
	root := &cobra.Command{
		Use:   "wardlink",
		Short: "Operate wardlink: gateways, access, audit, and the demonstration",
		Long: `Operate wardlink: gateways, access, audit, and the demonstration.

Exit codes: 0 done, 1 failed, used wrongly, or in doubt; 2 only of 'trace': a station has stopped.
The environment variable WARDLINK_OPERATOR stands for --operator. NO_COLOR is respected.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Example: `  wardlink demo                                    # see it work, on this machine alone
  wardlink provision kit --out kit.json            # what makes a fresh gateway one of ours
  wardlink gateway import gateways.csv
  wardlink trace --source icu-bed-12               # where does this monitor's data stop?
  wardlink salvage /media/card                     # bring in what a dead gateway could not deliver
  wardlink audit verify --dir /srv/wardlink        # offline, with the public key only`,
	}
	root.PersistentFlags().StringVar(&t.operator, "operator", client.DefaultCredentials(), "the operator's `FILE`, which 'wardlink-server init' made")
	root.PersistentFlags().BoolVar(&t.json, "json", false, "print JSON")
	root.AddCommand(t.provision(), t.gateway(), t.profile(), t.inventory(), t.boot(), t.config(), t.access(), t.operators(), t.identities(), t.records(), t.audit(), t.alerts(), t.trace(), t.account(), t.salvage(), t.status(), t.clock(), t.demo(), t.version())
	if len(args) > 0 && args[0] == "--version" {
		args = append([]string{"version"}, args[1:]...)
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = true
	if err := root.ExecuteContext(ctx); err != nil {
		if errors.Is(err, errStopped) {
			return 2
		}
		if !errors.Is(err, errSaid) {
			fmt.Fprintf(stderr, "wardlink: %v\n", err)
		}
		return 1
	}
	return 0
}

// errSaid ends a command whose output has said already what is wrong.
var errSaid = errors.New("said")

// group is a command that only holds others. A mistyped subcommand is an error: a nightly job with a typo must not succeed.
func group(use, short string, sub ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, FParseErrWhitelist: cobra.FParseErrWhitelist{UnknownFlags: true},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			var names []string
			for _, s := range sub {
				names = append(names, s.Name())
			}
			return fmt.Errorf("%s has no command %q; it has %s", cmd.CommandPath(), args[0], strings.Join(names, ", "))
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	c.AddCommand(sub...)
	return c
}

// exactly wants one argument and says what it is.
func exactly(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("%s wants one %s; see '%s --help'", cmd.CommandPath(), what, cmd.CommandPath())
		}
		return nil
	}
}

// none wants no argument. flag is the one by which what was given may have been meant; "": none.
func none(flag string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		meant := ""
		if flag != "" {
			meant = fmt.Sprintf(" (did you mean %s %s?)", flag, args[0])
		}
		return fmt.Errorf("%s takes no argument, and %q is one%s; see '%s --help'", cmd.CommandPath(), args[0], meant, cmd.CommandPath())
	}
}

// atMost wants one argument or none, and says what it is.
func atMost(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 1 {
			return fmt.Errorf("%s wants one %s or none, and %q is another; see '%s --help'", cmd.CommandPath(), what, args[1], cmd.CommandPath())
		}
		return nil
	}
}

func (t *tool) client() (*client.Client, error) {
	if err := private(t.operator); err != nil {
		return nil, err
	}
	return client.Open(t.operator)
}

// private refuses an operator's file that others than its owner may read: who has its key is that operator.
func private(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return nil // who opens it says what is missing
	}
	if mode := info.Mode(); mode.IsRegular() && mode.Perm()&0o077 != 0 {
		return fmt.Errorf("operator's file %s has mode %#o, so others than its owner may read the key in it: chmod 600 %s, and have a new one made if others had access ('wardlink-server operator')",
			path, mode.Perm(), path)
	}
	return nil
}

func (t *tool) printJSON(v any) error { return writeIndented(t.out, v) }

func writeIndented(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func (t *tool) version() *cobra.Command {
	var modules bool
	c := &cobra.Command{
		Use: "version", Short: "Show the build, its FIPS mode and its modules", Args: none(""),
		Example: `  wardlink version
  wardlink version --modules --json`,
		RunE: func(*cobra.Command, []string) error {
			if t.json {
				return t.printJSON(build.About("wardlink", modules))
			}
			build.Print(t.out, "wardlink", modules)
			return nil
		},
	}
	c.Flags().BoolVar(&modules, "modules", false, "list the linked modules")
	return c
}

func (t *tool) status() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show the server's state in figures", Args: none(""),
		Long: `Shows whether the server is ready, how far each part of it is, and its disk. It exits 0 whenever the server answers.
'wardlink alerts' says what is wrong and what mends it, 'wardlink trace' where a monitor's data stops.`,
		Example: `  wardlink status
  wardlink status --json | jq -e .ready`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var s client.Status
			if err := c.Get(cmd.Context(), "/v1/status", nil, &s); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(s)
			}
			return t.table(func(w io.Writer) {
				fmt.Fprintf(w, "version\t%s\nready\t%t\ngateways\t%d registered, %d waiting, %d connected\n", s.Version, s.Ready, s.Gateways, s.Waiting, s.Sessions)
				if s.NotReady != "" {
					fmt.Fprintf(w, "not ready\t%s\n", s.NotReady)
				}
				if s.Clock != "" {
					fmt.Fprintf(w, "clock\t%s\n", s.Clock)
				}
				if s.CA != "" {
					fmt.Fprintf(w, "CA\tcannot issue certificates: %s\n", s.CA)
				}
				if s.Grace > 0 {
					fmt.Fprintf(w, "grace\t%d connected with certificates that have ended, until the CA can issue\n", s.Grace)
				}
				fmt.Fprintf(w, "journal\t%d entries; records passed %d, log passed %d\n", s.JournalSeq, s.RecordsSeq, s.LogSeq)
				fmt.Fprintf(w, "log\t%d leaves\nbatches\t%d stored, %d pending, %d dead\n", s.LogSize, s.Stored, s.Pending, s.Dead)
				fmt.Fprintf(w, "disk\tdatabase %s, journal %s; %s of %s free\n", size(s.Storage.Database), size(s.Storage.Journal), size(s.Storage.DiskFree), size(s.Storage.Disk))
				if s.RecoveryUnproven {
					fmt.Fprintln(w, "recovery\tnobody has proven that the recovery file opens; on the server: wardlink-server init --dir DIR --confirm-recovery")
				}
				if s.Disposal == "suspended" {
					fmt.Fprintln(w, "disposal\tsuspended: the clock moved; see wardlink records retention")
				}
			})
		},
	}
}
