package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardlink/server/api/client"
)

func (t *tool) profile() *cobra.Command {
	return group("profile", "Say what classes of gateways may do: lanes and rates", t.profileList(), t.profileShow(), t.profileSet())
}

// profiles asks for all of them.
func (t *tool) profiles(cmd *cobra.Command) (all []client.Profile, err error) {
	c, err := t.client()
	if err != nil {
		return nil, err
	}
	return all, c.Get(cmd.Context(), "/v1/profiles", nil, &all)
}

func (t *tool) profileList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List profiles", Args: none(""),
		Example: "  wardlink profile list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := t.profiles(cmd)
			if err != nil {
				return err
			}
			if t.json {
				return t.printJSON(all)
			}
			return t.table(func(w io.Writer) {
				fmt.Fprintln(w, "PROFILE\tLANES\tPUBLISHES/S\tBYTES/S\tGATEWAYS")
				for _, p := range all {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", p.Name, strings.Join(p.Lanes, " "), rate(p.Publishes), rate(p.Bytes), p.Gateways)
				}
			})
		},
	}
}

func rate(n int) string {
	if n == 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

func (t *tool) profileShow() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one profile", Args: exactly("profile NAME"),
		Example: "  wardlink profile show default",
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := t.profiles(cmd)
			if err != nil {
				return err
			}
			for _, p := range all {
				if p.Name != args[0] {
					continue
				}
				if t.json {
					return t.printJSON(p)
				}
				return t.table(func(w io.Writer) {
					fmt.Fprintf(w, "profile\t%s\nlanes\t%s\npublishes a second\t%s\nbytes a second\t%s\ngateways\t%d\n",
						p.Name, strings.Join(p.Lanes, " "), rate(p.Publishes), rate(p.Bytes), p.Gateways)
					if p.At != nil {
						fmt.Fprintf(w, "set\t%s by %s\n", p.At.Local().Format(time.RFC3339), p.By)
					}
				})
			}
			return fmt.Errorf("profile %q is unknown; 'wardlink profile list' shows those that there are", args[0])
		},
	}
}

func (t *tool) profileSet() *cobra.Command {
	var in client.ProfileChange
	c := &cobra.Command{
		Use: "set NAME --lane LANE ...", Short: "Make or change a profile", Args: exactly("profile NAME"),
		Long: "Makes a profile, or changes one for all gateways that have it, within two seconds. It says all of it: a lane that is not named is\n" +
			"taken away, and what gateways bring on it is refused, named in the log, and stays on them. Lane self is in every profile.\n" +
			"One without lane alarm is refused, with the number of gateways that have it, unless --without-alarms says that it is meant.\n" +
			"Rates refuse nothing: what is over them is read later, and waits on the gateway. The profile 'default' allows everything and cannot be\n" +
			"changed. Give a gateway its profile with 'wardlink gateway profile ID NAME'.",
		Example: `  wardlink profile set no-waveforms --lane alarm --lane vitals
  wardlink profile set slow-line --lane alarm --lane vitals --lane waveform --publishes 20 --bytes 524288`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(in.Lanes) == 0 {
				return errors.New("--lane is missing: alarm, vitals, waveform, each once; or self alone, for a gateway that publishes nothing else")
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			var out client.Profile
			if err := c.Post(cmd.Context(), "/v1/profiles/"+url.PathEscape(args[0]), in, &out); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(out)
			}
			fmt.Fprintf(t.out, "profile %s allows lanes %s\n", out.Name, strings.Join(out.Lanes, ", "))
			return nil
		},
	}
	c.Flags().StringArrayVar(&in.Lanes, "lane", nil, "`LANE` that is allowed: alarm, vitals, waveform or self")
	c.Flags().BoolVar(&in.WithoutAlarms, "without-alarms", false, "that lane alarm is missing is meant: alarms stay on the gateways")
	c.Flags().IntVar(&in.Publishes, "publishes", 0, "publishes a second, 10 or more (default: no rate)")
	c.Flags().IntVar(&in.Bytes, "bytes", 0, "bytes a second, 262144 or more (default: no rate)")
	return c
}

func (t *tool) gatewayProfile() *cobra.Command {
	var in client.ProfileRequest
	c := &cobra.Command{
		Use: "profile ID NAME", Short: "Give a gateway another profile",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("wardlink gateway profile wants the gateway's ID and the profile's NAME; 'wardlink profile list' shows them")
			}
			return nil
		},
		Long: "Gives a gateway another profile, within two seconds. One without lane alarm is refused, since the gateway's alarms would stay on it, unless\n" +
			"--without-alarms says that it is meant.",
		Example: "  wardlink gateway profile icu-3-bed-7 no-waveforms",
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Profile = args[1]
			var out client.ProfileAnswer
			if err := t.gatewayAct(cmd, args[0], "profile", in, &out); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(out)
			}
			fmt.Fprintf(t.out, "%s has the profile %s; before: %s\n", out.Gateway, out.Profile, out.Was)
			return nil
		},
	}
	c.Flags().BoolVar(&in.WithoutAlarms, "without-alarms", false, "a profile without lane alarm is meant: the gateway's alarms stay on it")
	return c
}

func (t *tool) gatewayWindow() *cobra.Command {
	var from, until string
	var in client.WindowRequest
	c := &cobra.Command{
		Use: "window ID [--from TIME] [--until TIME] [--always]", Short: "Say from when until when a gateway may connect", Args: exactly("gateway ID"),
		Long: "Says from when until when a gateway may connect and have certificates: a loan, a ward's trial, a contract's end. Outside of it the gateway is\n" +
			"refused as if it were suspended, and at the end its session is cut; it keeps what its monitors send. What is not given stays as it is;\n" +
			"--always removes both limits, before those that are given. An end that has passed, and a beginning that is to\n" +
			"come, cut a gateway off at once that is enrolled, and want --yes.",
		Example: `  wardlink gateway window icu-3-bed-7 --until 2027-01-31T12:00:00+01:00
  wardlink gateway window icu-3-bed-7 --from "2026-12-01 08:00" --until "2026-12-24 18:00"    # in this machine's time zone
  wardlink gateway window icu-3-bed-7 --always`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !in.Always && from == "" && until == "" {
				return errors.New("name --from, --until or both, or --always for no limit")
			}
			for _, f := range []struct {
				flag, text string
				to         **time.Time
			}{{"from", from, &in.From}, {"until", until, &in.Until}} {
				if f.text == "" {
					continue
				}
				at, err := parseInstant(f.text)
				if err != nil {
					return fmt.Errorf("--%s: %w", f.flag, err)
				}
				*f.to = &at
			}
			var out client.WindowAnswer
			if err := t.gatewayAct(cmd, args[0], "window", in, &out); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(out)
			}
			fmt.Fprintf(t.out, "%s is valid %s\n", out.Gateway, out.Valid)
			return nil
		},
	}
	c.Flags().StringVar(&from, "from", "", "from `TIME` on: RFC 3339, or date and time of this machine's zone")
	c.Flags().StringVar(&until, "until", "", "until `TIME`")
	c.Flags().BoolVar(&in.Always, "always", false, "no limit but what is given")
	c.Flags().BoolVar(&in.Past, "yes", false, "that it cuts the gateway off at once is meant")
	return c
}

func (t *tool) gatewayExplain() *cobra.Command {
	return &cobra.Command{
		Use: "explain ID", Short: "Say what a gateway may do, and why", Args: exactly("gateway ID"),
		Long: "Judges by the rules that the CA and the gateways' port go by: state, validity, lanes; and says rates, certificate, boot, ward, session and what was\n" +
			"refused lately. It exits 0 if the gateway may connect, 1 if it may not.",
		Example: "  wardlink gateway explain icu-3-bed-7",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var out client.GatewayExplanation
			if err := c.Get(cmd.Context(), "/v1/gateways/"+url.PathEscape(args[0])+"/explain", nil, &out); err != nil {
				return err
			}
			if t.json {
				err = t.printJSON(out)
			} else {
				err = t.gatewayExplained(out)
			}
			if err == nil && !out.Allowed {
				err = errSaid
			}
			return err
		},
	}
}

func (t *tool) gatewayExplained(e client.GatewayExplanation) error {
	verdict := "may connect"
	if !e.Allowed {
		verdict = "may NOT connect"
	}
	fmt.Fprintf(t.out, "%s %s\n", e.Gateway, verdict)
	for _, c := range e.Checks {
		mark := "yes"
		if !c.Holds {
			mark = "NO "
		}
		fmt.Fprintf(t.out, "  %s  %s: %s\n", mark, printable(c.What), printable(c.Why))
	}
	return t.table(func(w io.Writer) {
		for _, f := range e.Facts {
			fmt.Fprintf(w, "  %s\t%s\n", printable(f.What), printable(f.Says))
		}
	})
}

func (t *tool) provisionCode() *cobra.Command {
	var hours float64
	c := &cobra.Command{
		Use: "code ID [--hours N]", Short: "Make a one-time code that a gateway's first enrolment wants", Args: exactly("gateway ID"),
		Long: "Makes a one-time code for a registered gateway: beside its TPM somebody must stand before it who has the code. It is printed once, here; a new one takes the\n" +
			"place of one that waits. Give it to whoever installs the gateway by another way than the gateway itself. There it goes into the file enrol-code of the agent's\n" +
			"state directory, and is removed once it was taken. Ten wrong tries end it. 'enrol_code: required' in server.yaml asks every first enrolment for one.",
		Example: `  wardlink provision code icu-3-bed-7
  wardlink provision code icu-3-bed-7 --hours 2`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !(hours >= 0.1 && hours <= 720) {
				return errors.New("--hours: expected 0.1 to 720")
			}
			var out client.CodeAnswer
			if err := t.gatewayAct(cmd, args[0], "code", client.CodeRequest{Seconds: int64(hours * 3600)}, &out); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(out)
			}
			fmt.Fprintf(t.out, "%s\n", out.Code)
			fmt.Fprintf(t.err, "for %s until %s, once; on the gateway: echo CODE > /var/lib/wardlink-agent/enrol-code\n", out.Gateway, out.Ends.Local().Format(time.RFC3339))
			return nil
		},
	}
	c.Flags().Float64Var(&hours, "hours", 72, "how long it counts")
	return c
}
