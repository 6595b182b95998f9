package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/cobra"

	"wardlink/server/api/client"
)

func (t *tool) config() *cobra.Command {
	return group("config", "Set what gateways are told: servers and reports; see how far they are; go back",
		t.configSet(), t.configShow(), t.configHistory(), t.configRollback(), t.configRetry())
}

// configTarget is a gateway or a site, as an argument or --site says.
type configTarget struct{ site string }

func (o *configTarget) flag(c *cobra.Command) {
	c.Flags().StringVar(&o.site, "site", "", "for all gateways of a `SITE`, instead of one gateway")
}

// path is the target's on the API.
func (o *configTarget) path(cmd *cobra.Command, args []string) (string, error) {
	switch {
	case len(args) == 1 && o.site == "":
		return "/v1/configs/gateway/" + url.PathEscape(args[0]), nil
	case len(args) == 0 && o.site != "":
		return "/v1/configs/site/" + url.PathEscape(o.site), nil
	}
	return "", fmt.Errorf("%s wants one gateway ID, or --site SITE; see '%s --help'", cmd.CommandPath(), cmd.CommandPath())
}

// fetch asks for what is known of the target, and says where on the API it is.
func (o *configTarget) fetch(cmd *cobra.Command, args []string, t *tool) (c *client.Client, path string, known client.ConfigTarget, err error) {
	if path, err = o.path(cmd, args); err != nil {
		return nil, "", known, err
	}
	if c, err = t.client(); err != nil {
		return nil, "", known, err
	}
	return c, path, known, c.Get(cmd.Context(), path, nil, &known)
}

// configKeys are those of a settings file.
var configKeys = []string{"servers", "report_every"}

// configFile is a settings file: all that is set.
type configFile struct {
	Servers     []string `yaml:"servers"`
	ReportEvery string   `yaml:"report_every"`
}

// parseConfigFile reads a settings file strictly. Errors name the line, and for an unknown key the one that was meant.
func parseConfigFile(data []byte) (_ client.ConfigSettings, err error) {
	defer func() {
		if recover() != nil { // the YAML decoder does not survive every text, such as a tag without a value
			err = errors.New("it is YAML that cannot be read; write plain keys, lists and texts")
		}
	}()
	if len(data) > 64<<10 {
		return client.ConfigSettings{}, errors.New("it has more than 64 KB; a settings file is a few lines")
	}
	if file, err := parser.ParseBytes(data, 0); err == nil {
		for _, doc := range file.Docs {
			if m, ok := doc.Body.(*ast.MappingNode); ok {
				for _, v := range m.Values {
					if err := knownKey(v.Key.String(), v.Key.GetToken().Position.Line); err != nil {
						return client.ConfigSettings{}, err
					}
				}
			}
		}
		if len(file.Docs) > 1 {
			return client.ConfigSettings{}, errors.New("it holds more than one document; expected one")
		}
	}
	var f configFile
	if err := yaml.UnmarshalWithOptions(data, &f, yaml.Strict()); err != nil && !errors.Is(err, io.EOF) {
		return client.ConfigSettings{}, errors.New(strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return client.ConfigSettings{}, errors.New("it is empty; to unset everything use --clear")
	}
	return client.ConfigSettings(f), nil
}

func knownKey(key string, line int) error {
	if slices.Contains(configKeys, key) {
		return nil
	}
	best, distance := "", 4
	for _, known := range configKeys {
		if d := editDistance(strings.ToLower(strings.ReplaceAll(key, "-", "_")), known); d < distance {
			best, distance = known, d
		}
	}
	if best != "" {
		return fmt.Errorf("line %d: unknown key %.40q; did you mean %q?", line, key, best)
	}
	return fmt.Errorf("line %d: unknown key %.40q; expected %s", line, key, strings.Join(configKeys, " or "))
}

// editDistance is Levenshtein's: how many letters have to be changed, added or dropped.
func editDistance(a, b string) int {
	if len(a) > 64 {
		a = a[:64]
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		left := row[0]
		row[0] = i + 1
		for j := range b {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			left, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, left+cost)
		}
	}
	return row[len(b)]
}

func (t *tool) configSet() *cobra.Command {
	var target configTarget
	var servers []string
	var every, file string
	var clearAll, dry bool
	c := &cobra.Command{
		Use: "set GATEWAY | --site SITE", Short: "Set the servers that gateways try, and how often they report",
		Long: `Sets the configuration of one gateway, or of all gateways of a site. A gateway's own settings come before its site's, and both before
its file and its kit. Flags change what they name and keep the rest; a file is all of it; --clear unsets everything.

  servers        host:port, in the order in which they are tried; those of the kit stay behind them as the last resort
  report_every   how often a gateway reports of itself while nothing changes, 1s to 1h

A gateway stores the new configuration beside the one in force, sees that one of the new servers proves itself as this hospital's, and uses
it on trial, with the new servers alone. Once the hospital has acknowledged a report that was sent under it, it is confirmed; if that does not
happen within 90 seconds, or the gateway restarts meanwhile, it is taken back and not tried again until 'wardlink config retry'. Each step
is in the log. What devices send is kept through all of it.`,
		Example: `  wardlink config set icu-3-bed-7 --server wardlink.hospital.example:443 --server 10.20.0.5:8883 --dry-run
  wardlink config set --site main --file main.yaml
  wardlink config set icu-3-bed-7 --report-every 5m
  wardlink config set icu-3-bed-7 --clear`,
		RunE: func(cmd *cobra.Command, args []string) error {
			flags := cmd.Flags().Changed("server") || cmd.Flags().Changed("report-every")
			if n := count(flags, file != "", clearAll); n != 1 {
				return errors.New("say what to set: --server and --report-every, or --file FILE, or --clear; see 'wardlink config set --help'")
			}
			c, path, now, err := target.fetch(cmd, args, t)
			if err != nil {
				return err
			}
			set := client.ConfigSettings{}
			switch {
			case file != "":
				data, err := os.ReadFile(file)
				if err != nil {
					return fmt.Errorf("settings: %w", err)
				}
				if set, err = parseConfigFile(data); err != nil {
					return fmt.Errorf("settings %s: %w", file, err)
				}
			case flags:
				set = newestConfig(now).Settings
				if cmd.Flags().Changed("server") {
					set.Servers = servers
				}
				if cmd.Flags().Changed("report-every") {
					set.ReportEvery = every
				}
			}
			seen := newestConfig(now).Version
			return t.changeConfig(cmd, c, path, client.ConfigRequest{Settings: set, Expect: &seen, DryRun: dry})
		},
	}
	target.flag(c)
	c.Flags().StringArrayVar(&servers, "server", nil, "`HOST:PORT` of this hospital's server; once for each, in their order")
	c.Flags().StringVar(&every, "report-every", "", "`DURATION` between two reports, such as 60s")
	c.Flags().StringVar(&file, "file", "", "read the settings from a YAML `FILE` with the keys servers and report_every")
	c.Flags().BoolVar(&clearAll, "clear", false, "unset everything")
	c.Flags().BoolVar(&dry, "dry-run", false, "only show what would change")
	return c
}

func count(these ...bool) (n int) {
	for _, b := range these {
		if b {
			n++
		}
	}
	return n
}

func newestConfig(t client.ConfigTarget) client.ConfigVersion {
	if len(t.Versions) == 0 {
		return client.ConfigVersion{}
	}
	return t.Versions[0]
}

// changeConfig posts a change and shows what it changed.
func (t *tool) changeConfig(cmd *cobra.Command, c *client.Client, path string, in client.ConfigRequest) error {
	var out client.ConfigAnswer
	if err := c.Post(cmd.Context(), path, in, &out); err != nil {
		return err
	}
	if t.json {
		return t.printJSON(out)
	}
	if !out.New {
		fmt.Fprintf(t.out, "%s: nothing changes; version %d stays (a gateway that took it back tries again after 'wardlink config retry')\n", out.Target, out.Before.Version)
		return nil
	}
	what := "issued"
	if in.DryRun {
		what = "would be issued"
	}
	fmt.Fprintf(t.out, "%s: version %d %s, for %s\n", out.Target, out.After.Version, what, gateways(len(out.Gateways)))
	for _, line := range configDifference(out.Before.Settings, out.After.Settings) {
		fmt.Fprintln(t.out, "  "+line)
	}
	if !in.DryRun {
		fmt.Fprintln(t.out, "gateways that are connected try it now; see how far they are: wardlink config show "+showArgs(out.Target))
	}
	return nil
}

func gateways(n int) string {
	if n == 1 {
		return "1 gateway"
	}
	return fmt.Sprintf("%d gateways", n)
}

// showArgs name a target to 'wardlink config show'.
func showArgs(target string) string {
	if site, ok := strings.CutPrefix(target, "site:"); ok {
		return "--site " + site
	}
	return target
}

// configDifference shows settings as lines of a file: "-" goes, "+" comes, " " stays.
func configDifference(before, after client.ConfigSettings) (out []string) {
	line := func(key, was, is string) {
		switch {
		case was == is && is != "":
			out = append(out, "  "+key+": "+is)
		case was != is:
			if was != "" {
				out = append(out, "- "+key+": "+was)
			}
			if is != "" {
				out = append(out, "+ "+key+": "+is)
			}
		}
	}
	line("servers", strings.Join(before.Servers, ", "), strings.Join(after.Servers, ", "))
	line("report_every", before.ReportEvery, after.ReportEvery)
	if len(out) == 0 {
		out = append(out, "  nothing is set")
	}
	return out
}

func (t *tool) configShow() *cobra.Command {
	var target configTarget
	c := &cobra.Command{
		Use: "show [GATEWAY | --site SITE]", Short: "Show what is wanted of gateways and how far they are",
		Long: `Shows for each gateway which version is wanted and which is in force, of its own configuration and of its site's, and how far it is:
waiting (it has not said anything of it), prepared, applied (on trial), confirmed, or reverted.`,
		Example: `  wardlink config show
  wardlink config show icu-3-bed-7
  wardlink config show --site main --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && target.site == "" {
				c, err := t.client()
				if err != nil {
					return err
				}
				var all []client.ConfigState
				if err := c.Get(cmd.Context(), "/v1/configs", nil, &all); err != nil {
					return err
				}
				if t.json {
					return t.printJSON(all)
				}
				return t.configTable(all)
			}
			_, _, one, err := target.fetch(cmd, args, t)
			if err != nil {
				return err
			}
			if t.json {
				return t.printJSON(one)
			}
			return t.printConfig(one)
		},
	}
	target.flag(c)
	return c
}

func (t *tool) printConfig(one client.ConfigTarget) error {
	v := newestConfig(one)
	if v.Version == 0 {
		fmt.Fprintf(t.out, "%s: no configuration was issued yet; a gateway's own is when it connects first\n\n", one.Target)
	} else {
		fmt.Fprintf(t.out, "%s: version %d, of %s by %s\n", one.Target, v.Version, v.Issued.Local().Format(time.DateTime), v.By)
		for _, line := range configDifference(v.Settings, v.Settings) {
			fmt.Fprintln(t.out, "  "+line)
		}
		fmt.Fprintln(t.out)
	}
	if err := t.configTable(one.Gateways); err != nil {
		return err
	}
	if len(one.Gateways) == 1 && !strings.HasPrefix(one.Target, "site:") {
		fmt.Fprintln(t.out, "\nin all, its site's included:")
		for _, line := range configDifference(one.Gateways[0].Settings, one.Gateways[0].Settings) {
			fmt.Fprintln(t.out, "  "+line)
		}
	}
	return nil
}

func (t *tool) configTable(states []client.ConfigState) error {
	return t.table(func(w io.Writer) {
		fmt.Fprintln(w, "GATEWAY\tDOCUMENT\tWANTED\tIN FORCE\tSTATE\tSINCE\tREASON")
		row := func(gateway, document string, p client.ConfigPart) {
			since := "-"
			if !p.Since.IsZero() {
				since = p.Since.Local().Format(time.DateTime)
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", gateway, document, versionText(p.Wanted), versionText(p.InForce), p.State, since, orDash(p.Reason))
		}
		for _, s := range states {
			row(s.Gateway, "own", s.Own)
			if s.OfSite != nil {
				row(s.Gateway, "site "+s.Site, *s.OfSite)
			}
		}
	})
}

func versionText(v uint64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprint(v)
}

func (t *tool) configHistory() *cobra.Command {
	var target configTarget
	c := &cobra.Command{
		Use: "history GATEWAY | --site SITE", Short: "List the versions of a configuration, the newest first",
		Example: "  wardlink config history icu-3-bed-7\n  wardlink config history --site main",
		RunE: func(cmd *cobra.Command, args []string) error {
			_, _, one, err := target.fetch(cmd, args, t)
			if err != nil {
				return err
			}
			if t.json {
				return t.printJSON(one.Versions)
			}
			return t.table(func(w io.Writer) {
				fmt.Fprintln(w, "VERSION\tISSUED\tBY\tSERVERS\tREPORT EVERY")
				for _, v := range one.Versions {
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", v.Version, v.Issued.Local().Format(time.DateTime), v.By,
						orDash(strings.Join(v.Settings.Servers, ", ")), orDash(v.Settings.ReportEvery))
				}
			})
		},
	}
	target.flag(c)
	return c
}

func (t *tool) configRollback() *cobra.Command {
	var target configTarget
	var to uint64
	var dry bool
	c := &cobra.Command{
		Use: "rollback GATEWAY | --site SITE", Short: "Issue the settings of an earlier version again, as a new version",
		Example: `  wardlink config rollback icu-3-bed-7 --dry-run      # to the settings before the last change
  wardlink config rollback --site main --to 4`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, path, one, err := target.fetch(cmd, args, t)
			if err != nil {
				return err
			}
			back, err := rollbackTo(one, to)
			if err != nil {
				return err
			}
			seen := newestConfig(one).Version
			return t.changeConfig(cmd, c, path, client.ConfigRequest{Settings: back.Settings, Expect: &seen, Rollback: back.Version, DryRun: dry})
		},
	}
	target.flag(c)
	c.Flags().Uint64Var(&to, "to", 0, "the `VERSION` whose settings to take (default: the last one that set something else)")
	c.Flags().BoolVar(&dry, "dry-run", false, "only show what would change")
	return c
}

// rollbackTo is the version to go back to.
func rollbackTo(one client.ConfigTarget, to uint64) (client.ConfigVersion, error) {
	for _, v := range one.Versions {
		if to == v.Version && to != 0 {
			return v, nil
		}
		now := newestConfig(one).Settings
		if to == 0 && (!slices.Equal(v.Settings.Servers, now.Servers) || v.Settings.ReportEvery != now.ReportEvery) {
			return v, nil
		}
	}
	if to == 0 {
		return client.ConfigVersion{}, fmt.Errorf("%s: no earlier version set anything else; 'wardlink config history %s' lists them", one.Target, showArgs(one.Target))
	}
	return client.ConfigVersion{}, fmt.Errorf("%s: there is no version %d among the last %d; 'wardlink config history %s' lists them", one.Target, to, len(one.Versions), showArgs(one.Target))
}

func (t *tool) configRetry() *cobra.Command {
	var target configTarget
	c := &cobra.Command{
		Use: "retry GATEWAY | --site SITE", Short: "Issue the same settings as a new version, so that gateways which took them back try again",
		Example: "  wardlink config retry icu-3-bed-7\n  wardlink config retry --site main",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, path, one, err := target.fetch(cmd, args, t)
			if err != nil {
				return err
			}
			v := newestConfig(one)
			if v.Version == 0 {
				return fmt.Errorf("%s: no configuration was issued yet, so there is none to try again", one.Target)
			}
			return t.changeConfig(cmd, c, path, client.ConfigRequest{Settings: v.Settings, Expect: &v.Version, Retry: true})
		},
	}
	target.flag(c)
	return c
}
