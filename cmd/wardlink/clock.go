package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"wardlink/server/api/client"
)

func (t *tool) clock() *cobra.Command {
	show := &cobra.Command{
		Use: "clock", Short: "Show the server's clock, and whether gateways without one are told the time", Args: none(""),
		Example: "  wardlink clock                     # are gateways told the time?\n  wardlink clock confirm             # the clock was looked at, and is right",
		Long: "Gateways without a clock of their own ask the server for the time. It tells them, signed, unless its own clock has moved by more\n" +
			"than 48 hours, or it was off for longer: then somebody has to look at it and say that it is right ('wardlink clock confirm').",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var s client.Clock
			if err := c.Get(cmd.Context(), "/v1/clock", nil, &s); err != nil {
				return err
			}
			return t.printClock(s)
		},
	}
	show.AddCommand(&cobra.Command{
		Use: "confirm", Short: "Say that the server's clock is right; it is in the log who did", Args: none(""),
		Example: "  wardlink clock confirm",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var s client.Clock
			if err := c.Post(cmd.Context(), "/v1/clock/confirm", struct{}{}, &s); err != nil {
				return err
			}
			return t.printClock(s)
		},
	})
	show.AddCommand(t.clockToken())
	return show
}

func (t *tool) clockToken() *cobra.Command {
	return &cobra.Command{
		Use: "token GATEWAY CHALLENGE", Short: "Make the token that sets a gateway's floor of the time back",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%s wants a gateway ID and its challenge; see '%s --help'", cmd.CommandPath(), cmd.CommandPath())
			}
			return nil
		},
		Long: "A gateway believes no time before its floor, which only moves forward: what a server whose clock was years ahead once told it stays.\n" +
			"The token sets the floor back to the server's time, on that gateway and for the challenge that it shows ('wardlink-agent clock'),\n" +
			"once. It is no secret; paste it, carry it, or read it out: 'wardlink-agent clock reset --token TOKEN'. It is in the log who made it.",
		Example: "  wardlink clock token icu-3-bed-7 ABCD-EFGH-IJKL-MNOP",
		RunE: func(cmd *cobra.Command, args []string) error {
			var out client.ClockToken
			if err := t.gatewayAct(cmd, args[0], "clock", client.ClockTokenRequest{Challenge: args[1]}, &out); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(out)
			}
			_, err := fmt.Fprintln(t.out, out.Token)
			return err
		},
	}
}

func (t *tool) printClock(s client.Clock) error {
	if t.json {
		return t.printJSON(s)
	}
	return t.table(func(w io.Writer) {
		fmt.Fprintf(w, "server's clock\t%s\n", s.Now.Format(time.RFC3339))
		fmt.Fprintf(w, "difference to here\t%s\n", time.Until(s.Now).Round(time.Second))
		if s.Vouched {
			fmt.Fprintf(w, "gateways are told\tyes\n")
		} else {
			fmt.Fprintf(w, "gateways are told\tno: %s\n", s.Doubt)
		}
	})
}
