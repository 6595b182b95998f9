package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardlink/server/api/client"
)

func (t *tool) alerts() *cobra.Command {
	c := group("alerts", "See what is wrong, take it on, silence it, try the targets",
		t.alertsList(), t.alertsAck(), t.alertsSilence(), t.alertsSilences(), t.alertsUnsilence(), t.alertsTest())
	c.Long = "Without a subcommand: lists open alerts, what mends them, and whether their targets take messages."
	c.Example = `  wardlink alerts
  wardlink alerts --all --json
  wardlink alerts ack gateway-silent/icu-3-bed-7 --note "moved to bed 9, back at noon"
  wardlink alerts silence --type gateway-silent --subject 'icu-3-*' --for 2h --reason "network maintenance"
  wardlink alerts test`
	c.FParseErrWhitelist = cobra.FParseErrWhitelist{}
	var all bool
	c.Flags().BoolVar(&all, "all", false, "resolved ones too")
	c.RunE = func(cmd *cobra.Command, _ []string) error { return t.listAlerts(cmd, all) }
	return c
}

func (t *tool) alertsList() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use: "list", Short: "List open alerts, what mends them, and the targets", Args: none(""),
		Example: `  wardlink alerts list
  wardlink alerts list --json | jq '.alerts'`,
		RunE: func(cmd *cobra.Command, _ []string) error { return t.listAlerts(cmd, all) },
	}
	c.Flags().BoolVar(&all, "all", false, "resolved ones too")
	return c
}

func (t *tool) listAlerts(cmd *cobra.Command, all bool) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	query := url.Values{}
	if all {
		query.Set("all", "true")
	}
	var list client.Alerts
	if err := c.Get(cmd.Context(), "/v1/alerts", query, &list); err != nil {
		return err
	}
	if t.json {
		return t.printJSON(list)
	}
	return t.showAlerts(list, time.Now())
}

func (t *tool) showAlerts(list client.Alerts, now time.Time) error {
	if list.Problem != "" {
		fmt.Fprintf(t.err, "wardlink: %s\n", list.Problem)
	}
	if len(list.Alerts) == 0 {
		fmt.Fprintln(t.out, "Nothing is wrong: no alert is open.")
	} else if err := t.alertTable(list.Alerts, now); err != nil {
		return err
	}
	if len(list.Targets) > 0 {
		fmt.Fprintln(t.out)
		if err := t.table(func(w io.Writer) {
			fmt.Fprintln(w, "TARGET\tTO\tFROM\tWAITING\tSTATE")
			for _, g := range list.Targets {
				fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", g.Name, g.To, g.Minimum, g.Waiting, targetState(g, now))
			}
		}); err != nil {
			return err
		}
	}
	for _, n := range list.Notes {
		fmt.Fprintf(t.out, "\n%s", n)
	}
	if len(list.Notes) > 0 {
		fmt.Fprintln(t.out)
	}
	return nil
}

// alertTable prints the alerts, and below it once for each type what it means and what mends it.
func (t *tool) alertTable(list []client.Alert, now time.Time) error {
	var text strings.Builder
	plain := tool{out: &text}
	if err := plain.table(func(w io.Writer) {
		fmt.Fprintln(w, "ALERT\tSEVERITY\tTYPE\tSUBJECT\tAGE\tCOUNT\tSTATE")
		for _, a := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", a.ID, a.Severity, a.Type, a.Subject, span(now.Sub(a.Opened)), a.Count, alertState(a, now))
		}
	}); err != nil {
		return err
	}
	fmt.Fprint(t.out, t.paintSeverity(text.String()))
	for i, a := range list {
		if a.State == "resolved" || slices.ContainsFunc(list[:i], func(b client.Alert) bool { return b.Type == a.Type && b.State != "resolved" }) {
			continue
		}
		fmt.Fprintf(t.out, "\n%s: %s\n  %s\n", a.Type, a.Meaning, a.Mend)
		for _, b := range list[i:] {
			if b.Type == a.Type && b.State != "resolved" && len(b.Detail) > 0 {
				fmt.Fprintf(t.out, "  %s: %s\n", b.Subject, details(b.Detail))
			}
		}
	}
	return nil
}

func alertState(a client.Alert, now time.Time) string {
	switch {
	case a.State == "resolved" && a.Resolved != nil:
		return "resolved " + span(now.Sub(*a.Resolved)) + " ago"
	case a.State == "acknowledged":
		text := "acknowledged by " + shortName(a.By)
		if a.Note != "" {
			text += ": " + a.Note
		}
		return text
	case a.State == "silenced":
		return "silenced by " + a.Silence
	case a.Told == nil:
		return "open, nobody told"
	}
	return a.State
}

// shortName is the last part of a SPIFFE id: the operator's name.
func shortName(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }

func details(d map[string]string) string {
	var out []string
	for k, v := range d {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func targetState(g client.AlertTarget, now time.Time) string {
	switch {
	case g.Failing != nil:
		return "failing for " + span(now.Sub(*g.Failing)) + ": " + g.Error
	case g.LastOK != nil:
		return "ok, last " + span(now.Sub(*g.LastOK)) + " ago"
	}
	return "not used yet"
}

// span is a time as a person says it: two parts at most.
func span(d time.Duration) string {
	d = max(0, d)
	if d >= time.Hour {
		d = d.Round(time.Minute)
	}
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%dh", int(d.Hours())/24, int(d.Hours())%24)
}

// paintSeverity colours the severities of a finished table where the output is a terminal that wants it.
func (t *tool) paintSeverity(text string) string {
	if !wantsColour(t.out) {
		return text
	}
	lines := strings.SplitAfter(text, "\n")
	for i, line := range lines {
		for word, colour := range map[string]string{" critical ": "31;1", " warning ": "33"} {
			if strings.Contains(line, word) {
				lines[i] = strings.Replace(line, word, " \x1b["+colour+"m"+strings.TrimSpace(word)+"\x1b[0m ", 1)
				break
			}
		}
	}
	return strings.Join(lines, "")
}

func (t *tool) alertsAck() *cobra.Command {
	var in client.AlertAcknowledgement
	c := &cobra.Command{
		Use: "ack ID|TYPE/SUBJECT", Short: "Take an alert on: it is not repeated any more", Args: exactly("alert, by its ID or as TYPE/SUBJECT"),
		Long:    "Acknowledges an open alert. It stays in the list until what is wrong has ended, and is repeated only if its severity rises.",
		Example: "  wardlink alerts ack K7QXM2ZP4A --note \"on my way\"",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			in.Alert = args[0]
			var a client.Alert
			if err := c.Post(cmd.Context(), "/v1/alerts/ack", in, &a); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(a)
			}
			fmt.Fprintf(t.out, "%s %s is acknowledged by %s\n", a.Type, a.Subject, shortName(a.By))
			return nil
		},
	}
	c.Flags().StringVar(&in.Note, "note", "", "what others should know")
	return c
}

func (t *tool) alertsSilence() *cobra.Command {
	var in client.SilenceRequest
	var length time.Duration
	c := &cobra.Command{
		Use: "silence", Short: "Keep messages of some alerts back for a while", Args: none("--type"),
		Long: "Alerts that match are kept from their targets until the silence ends; they are still listed and logged.\n" +
			"In patterns * stands for anything and ? for one character.",
		Example: "  wardlink alerts silence --type gateway-silent --subject 'icu-3-*' --for 2h --reason \"network maintenance\"",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if in.Reason == "" {
				return errors.New("--reason is missing: whoever misses an alert will want to know")
			}
			if in.Type == "" && in.Subject == "" {
				return errors.New("--type or --subject is missing; --type '*' silences everything")
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			in.For = length.String()
			var s client.Silence
			if err := c.Post(cmd.Context(), "/v1/alerts/silences", in, &s); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(s)
			}
			fmt.Fprintf(t.out, "%s silences %s %s until %s; end it with: wardlink alerts unsilence %s\n",
				s.ID, s.Type, s.Subject, s.Until.Local().Format(time.DateTime), s.ID)
			return nil
		},
	}
	c.Flags().StringVar(&in.Type, "type", "", "`PATTERN` of types")
	c.Flags().StringVar(&in.Subject, "subject", "", "`PATTERN` of subjects")
	c.Flags().DurationVar(&length, "for", time.Hour, "how long, at most 2160h")
	c.Flags().StringVar(&in.Reason, "reason", "", "why (required)")
	return c
}

func (t *tool) alertsSilences() *cobra.Command {
	return &cobra.Command{
		Use: "silences", Short: "List the silences that hold", Args: none(""),
		Example: "  wardlink alerts silences",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var list []client.Silence
			if err := c.Get(cmd.Context(), "/v1/alerts/silences", nil, &list); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(list)
			}
			if len(list) == 0 {
				fmt.Fprintln(t.out, "No silence holds.")
				return nil
			}
			return t.table(func(w io.Writer) {
				fmt.Fprintln(w, "SILENCE\tTYPE\tSUBJECT\tENDS IN\tBY\tREASON")
				for _, s := range list {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", s.ID, s.Type, s.Subject, span(time.Until(s.Until)), shortName(s.By), s.Reason)
				}
			})
		},
	}
}

func (t *tool) alertsUnsilence() *cobra.Command {
	return &cobra.Command{
		Use: "unsilence ID", Short: "End a silence early", Args: exactly("silence ID; 'wardlink alerts silences' lists them"),
		Example: "  wardlink alerts unsilence WFTE2M45F6",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var s client.Silence
			if err := c.Post(cmd.Context(), "/v1/alerts/unsilence", client.SilenceEnd{ID: args[0]}, &s); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(s)
			}
			fmt.Fprintf(t.out, "%s has ended\n", s.ID)
			return nil
		},
	}
}

func (t *tool) alertsTest() *cobra.Command {
	var in client.AlertTest
	c := &cobra.Command{
		Use: "test", Short: "Send a test message to each target and show what it answers", Args: none("--target"),
		Example: "  wardlink alerts test --target pager",
		Long:    "Exits 0 when every target took the message, 1 otherwise.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var list []client.AlertTestResult
			if err := c.Post(cmd.Context(), "/v1/alerts/test", in, &list); err != nil {
				return err
			}
			if t.json {
				err = t.printJSON(list)
			} else if len(list) > 0 {
				err = t.table(func(w io.Writer) {
					fmt.Fprintln(w, "TARGET\tTO\tRESULT\tTIME\tANSWER")
					for _, r := range list {
						result := "ok"
						if !r.OK {
							result = "FAILED"
						}
						fmt.Fprintf(w, "%s\t%s\t%s\t%dms\t%s\n", r.Target, r.To, result, r.Milliseconds, r.Answer)
					}
				})
			}
			switch {
			case err != nil:
				return err
			case len(list) == 0:
				return errors.New("no targets are configured: add 'alerts: targets:' to server.yaml and start the server again")
			case slices.ContainsFunc(list, func(r client.AlertTestResult) bool { return !r.OK }):
				return errSaid
			}
			return nil
		},
	}
	c.Flags().StringVar(&in.Target, "target", "", "only the target with this `NAME`")
	return c
}
