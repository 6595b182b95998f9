package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardlink/server/api/client"
)

// operators are the people; who makes one needs the CA's key, so that is a command of the server.
func (t *tool) operators() *cobra.Command {
	return group("operator", "Say what operators may do (wardlink-server operator makes one)", t.identityList("operator"), t.identityShow("operator"), t.operatorRole(),
		t.identityOwner("operator"), t.identityState("operator", "suspend"), t.identityState("operator", "resume"), t.identityState("operator", "revoke"), t.identityRotate("operator"))
}

func (t *tool) operatorRole() *cobra.Command {
	return &cobra.Command{
		Use: "role NAME ROLE", Short: "Give an operator another role: admin, operator, auditor or viewer",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("wardlink operator role wants NAME and ROLE: admin, operator, auditor or viewer")
			}
			return nil
		},
		Example: "  wardlink operator role jane-doe auditor",
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.change(cmd, "operator", args[0], client.ChangeRequest{Role: &args[1]}, func(i client.Identity) string { return "has the role " + i.Role })
		},
	}
}

// unusedFlag reads a time such as 90d or 12h.
func unusedFlag(text string) (time.Duration, error) {
	if n, ok := strings.CutSuffix(text, "d"); ok {
		if days, err := strconv.Atoi(n); err == nil && days >= 0 && days <= 10_000 {
			return time.Duration(days) * 24 * time.Hour, nil
		}
	} else if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return d, nil
	}
	return 0, fmt.Errorf("--unused %q: expected a time such as 90d or 12h", text)
}

// idle says whether an identity was not used since an instant. One that is younger is not idle yet.
func idle(i client.Identity, since time.Time) bool {
	return i.Used.Before(since) && i.Created.Before(since)
}

func (t *tool) identityList(kind string) *cobra.Command {
	var unused string
	c := &cobra.Command{
		Use: "list [--unused 90d]", Short: "List each " + kindName(kind) + ": owner, scope, last use, expiry", Args: none(""),
		Long:    "Lists them, the revoked ones too. --unused shows those that did nothing for so long and are not revoked: renewing itself is no use.",
		Example: "  wardlink " + kind + " list\n  wardlink " + kind + " list --unused 90d",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			list, err := c.Identities(cmd.Context(), kind)
			if err != nil {
				return err
			}
			if unused != "" {
				d, err := unusedFlag(unused)
				if err != nil {
					return err
				}
				since := time.Now().Add(-d)
				list = slices.DeleteFunc(list, func(i client.Identity) bool { return i.State == "revoked" || !idle(i, since) })
			}
			return t.identityTable(list)
		},
	}
	c.Flags().StringVar(&unused, "unused", "", "only those that were not used for `TIME`, such as 90d")
	return c
}

func (t *tool) identities() *cobra.Command {
	return &cobra.Command{
		Use: "identities", Short: "List every identity: gateways, nodes, services, accounts, keys", Args: none(""),
		Long: `Lists every identity that there is, in one table: service accounts, gateways, ingest nodes, the server's own certificates and keys, and,
marked as operators, people. NEXT is when the next certificate is due; - where there is none to come.`,
		Example: "  wardlink identities\n  wardlink identities --json | jq '.[] | select(.kind == \"access\")'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			list, err := c.Identities(cmd.Context(), "")
			if err != nil {
				return err
			}
			return t.identityTable(list)
		},
	}
}

func (t *tool) identityTable(list []client.Identity) error {
	if t.json {
		return t.printJSON(list)
	}
	return t.table(func(w io.Writer) {
		fmt.Fprintln(w, "KIND\tNAME\tSTATE\tOWNER\tSCOPE\tLAST USE\tEXPIRES\tNEXT\tRENEWED BY")
		for _, i := range list {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", i.Kind, printable(i.Name), i.State, orDash(printable(i.Owner)), orDash(shortened(printable(i.Scope))),
				shownUse(i.Used), shownTime(i.Expires, "-"), shownTime(i.Next, "-"), orDash(i.Renewal))
		}
	})
}

// shortened keeps a column narrow; 'show' has it whole.
func shortened(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
}

func shownUse(u client.Use) string {
	if u.Untracked {
		return "-"
	}
	return shownTime(u.Time, "never")
}

func shownTime(at time.Time, none string) string {
	if at.IsZero() {
		return none
	}
	return at.Local().Format("2006-01-02 15:04")
}

func (t *tool) identityShow(kind string) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one " + kindName(kind), Args: exactly(kindName(kind) + " NAME"), Example: "  wardlink " + kind + " show NAME",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			i, err := c.Identity(cmd.Context(), kind, args[0])
			if err != nil {
				return err
			}
			if t.json {
				return t.printJSON(i)
			}
			return t.table(func(w io.Writer) {
				fmt.Fprintf(w, "name\t%s\nstate\t%s\nowner\t%s\ncontact\t%s\n", i.Name, i.State, orDash(printable(i.Owner)), orDash(printable(i.Contact)))
				if i.Reason != "" {
					fmt.Fprintf(w, "because\t%s (%s, %s)\n", printable(i.Reason), i.By, shownTime(i.Changed, "-"))
				}
				fmt.Fprintf(w, "may\t%s\n", printable(i.Scope))
				for _, route := range i.May {
					fmt.Fprintf(w, "\t%s\n", route)
				}
				if i.Holds != nil {
					for _, p := range i.Holds.Patients {
						fmt.Fprintf(w, "\tPatient/%s\n", p)
					}
				}
				fmt.Fprintf(w, "made\t%s by %s\nlast use\t%s %s\n", shownTime(i.Created, "-"), orDash(i.Creator), shownUse(i.Used), i.UsedFor)
				fmt.Fprintf(w, "certificates\t%d count now, the newest until %s; renewed by %s\n", i.Valid, shownTime(i.Expires, "-"), i.Renewal)
			})
		},
	}
}

func (t *tool) identityOwner(kind string) *cobra.Command {
	var owner, contact string
	c := &cobra.Command{
		Use: "owner NAME --owner TEAM [--contact ADDRESS]", Short: "Say who answers for one", Args: exactly(kindName(kind) + " NAME"),
		Example: "  wardlink " + kind + ` owner NAME --owner "Clinical IT" --contact it@hospital.example`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var in client.ChangeRequest
			if cmd.Flags().Changed("owner") {
				in.Owner = &owner
			}
			if cmd.Flags().Changed("contact") {
				in.Contact = &contact
			}
			if in == (client.ChangeRequest{}) {
				return errors.New("name --owner, --contact or both")
			}
			return t.change(cmd, kind, args[0], in, func(i client.Identity) string {
				return fmt.Sprintf("is %s's (%s)", orDash(printable(i.Owner)), orDash(printable(i.Contact)))
			})
		},
	}
	c.Flags().StringVar(&owner, "owner", "", "the `TEAM` or person that answers for it")
	c.Flags().StringVar(&contact, "contact", "", "how to reach it: `ADDRESS` or telephone")
	return c
}

// identityState is suspend, resume or revoke.
func (t *tool) identityState(kind, act string) *cobra.Command {
	states := map[string]string{"suspend": "suspended", "resume": "active", "revoke": "revoked"}
	shorts := map[string]string{"suspend": "Cut one off for a time, at once", "resume": "Let it go on", "revoke": "Cut one off for ever, at once"}
	longs := map[string]string{
		"suspend": "From the next request on it is refused, in every process of the server, also on connections that stand. 'resume' lets it go on.",
		"resume":  "Takes back a suspension. A certificate that has ended meanwhile does not count again.",
		"revoke":  "From the next request on it is refused, in every process of the server, also on connections that stand. It is for ever, and its name is never used again.",
	}
	var reason string
	c := &cobra.Command{
		Use: act + " NAME --reason TEXT", Short: shorts[act], Args: exactly(kindName(kind) + " NAME"), Long: longs[act],
		Example: "  wardlink " + kind + " " + act + ` NAME --reason "found on a lost laptop"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var out client.StateAnswer
			if err := c.IdentityAct(cmd.Context(), kind, args[0], "state", client.StateRequest{State: states[act], Reason: reason}, &out); err != nil {
				return err
			}
			t.unjournaled(out.Journaled, args[0], states[act])
			if t.json {
				return t.printJSON(out)
			}
			if out.Already {
				fmt.Fprintf(t.out, "%s was %s already; nothing is changed\n", args[0], out.Identity.State)
				return nil
			}
			fmt.Fprintf(t.out, "%s is %s\n", args[0], out.Identity.State)
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; it stands in the log, and who is cut off reads it (required)")
	return c
}

func (t *tool) identityRotate(kind string) *cobra.Command {
	var reason string
	var overlap time.Duration
	c := &cobra.Command{
		Use: "rotate NAME --reason TEXT [--overlap 1h]", Short: "Have its certificates end soon, so that it takes new ones", Args: exactly(kindName(kind) + " NAME"),
		Long: `All certificates that it has count until the overlap is over, and no longer. Where 'wardlink access keep' runs it has another one within a
minute or so; the operators' tool renews when it is next used. Without an overlap it is cut off until somebody makes it another certificate.`,
		Example: "  wardlink " + kind + ` rotate NAME --reason "the machine was rebuilt" --overlap 1h`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var out client.RotateAnswer
			if err := c.IdentityAct(cmd.Context(), kind, args[0], "rotate", client.RotateRequest{Reason: reason, Overlap: int64(overlap / time.Second)}, &out); err != nil {
				return err
			}
			t.unjournaled(out.Journaled, args[0], "rotated")
			if t.json {
				return t.printJSON(out)
			}
			fmt.Fprintf(t.out, "%d certificates of %s end at %s\n", out.Certificates, args[0], out.Ends.Local().Format(time.DateTime))
			return nil
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why; it stands in the log (required)")
	c.Flags().DurationVar(&overlap, "overlap", time.Hour, "`TIME` until they end, at most 24h")
	return c
}

// kindName is what a kind of identity is called.
func kindName(kind string) string {
	if kind == "access" {
		return "service account"
	}
	return kind
}
