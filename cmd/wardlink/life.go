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

// gatewayAct posts an act on one gateway.
func (t *tool) gatewayAct(cmd *cobra.Command, id, act string, in, out any) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	return c.Post(cmd.Context(), "/v1/gateways/"+url.PathEscape(id)+"/"+act, in, out)
}

// unjournaled warns of an act whose event waits.
func (t *tool) unjournaled(journaled bool, id, what string) {
	if !journaled {
		fmt.Fprintf(t.err, "wardlink: %s is %s, but the server cannot write its journal: the event follows once it can; see to its disk\n", id, what)
	}
}

func (t *tool) gatewayMove() *cobra.Command {
	var ward, from string
	c := &cobra.Command{
		Use: "move ID --ward WARD", Short: "Say in which ward a gateway stands, and from when", Args: exactly("gateway ID"),
		Long: "Says in which ward a gateway stands from now on, or from an instant in the past or the future: at most 31 days back and\n" +
			"366 ahead. What the gateway had taken in before keeps its ward, in FHIR too, also what is still on its way. The move holds\n" +
			"until further notice: moves that were entered to begin later are dropped, and named. Its keys and its id stay.",
		Example: `  wardlink gateway move icu-3-bed-7 --ward icu-4
  wardlink gateway move icu-3-bed-7 --ward icu-4 --from 2026-05-04T07:30:00+02:00
  wardlink gateway move icu-3-bed-7 --ward icu-4 --from "2026-05-04 07:30"       # in this machine's time zone`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(ward) == "" {
				return errors.New("--ward is missing: where the gateway stands")
			}
			in := client.MoveRequest{Ward: ward}
			if from != "" {
				var err error
				if in.From, err = parseInstant(from); err != nil {
					return fmt.Errorf("--from: %w", err)
				}
			}
			var out client.MoveAnswer
			if err := t.gatewayAct(cmd, args[0], "move", in, &out); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(out)
			}
			if out.Already {
				fmt.Fprintf(t.out, "%s stands in %s already; nothing is changed\n", out.Gateway, out.Ward.Ward)
				return nil
			}
			fmt.Fprintf(t.out, "%s stands in %s from %s on; what it took in before stays with %s\n", out.Gateway, out.Ward.Ward, shownSince(out.Since), orDash(out.Before))
			for _, r := range out.Replaced {
				fmt.Fprintf(t.out, "dropped: %s from %s on\n", r.Ward, shownSince(r.Since))
			}
			return nil
		},
	}
	c.Flags().StringVar(&ward, "ward", "", "the `WARD` (required)")
	c.Flags().StringVar(&from, "from", "", "from `TIME` on instead of now: RFC 3339, or date and time of this machine's zone")
	return c
}

// parseInstant reads what an operator gives as an instant.
func parseInstant(s string) (time.Time, error) {
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		return at, nil
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if at, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("%.40q is no instant; expected one such as 2026-05-04T07:30:00+02:00 or \"2026-05-04 07:30\"", s)
}

func shownSince(since *time.Time) string {
	if since == nil {
		return "the beginning"
	}
	return since.Local().Format(time.DateTime)
}

func (t *tool) gatewayReplace() *cobra.Command {
	var in client.ReplaceRequest
	c := &cobra.Command{
		Use: "replace ID --tpm FINGERPRINT --reason TEXT", Short: "Give a gateway a new board", Args: exactly("gateway ID"),
		Long: "Gives a gateway a new board under its old id. The new TPM is named by the fingerprint under which it waits ('wardlink gateway\n" +
			"list'), or by the whole SHA-256 of its endorsement key, such as from a manifest; a TPM with several keys is named once for each.\n" +
			"The old board's session ends within two seconds, and its TPM is never admitted again, under whatever id. What it sealed is still\n" +
			"verified. What waits on its disk may still come: put the disk into the new board. Ward, site and profile stay.",
		Example: `  wardlink gateway replace icu-3-bed-7 --tpm ABCD-EFGH-IJKL-MNOP --reason "mainboard broken, ticket 4711"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(in.TPMs) == 0:
				return errors.New("--tpm is missing: the new board's fingerprint, or the SHA-256 of its endorsement key; 'wardlink gateway list' shows what waits")
			case strings.TrimSpace(in.Reason) == "":
				return errors.New("--reason is missing: it stands in the audit log, and the old board shows it")
			}
			var out client.ReplaceAnswer
			if err := t.gatewayAct(cmd, args[0], "replace", in, &out); err != nil {
				return err
			}
			t.unjournaled(out.Journaled, out.Gateway, "replaced")
			if t.json {
				return t.printJSON(out)
			}
			fmt.Fprintf(t.out, "%s has a new board: it enrols by itself within seconds; the old one is cut off\n", out.Gateway)
			if out.State != "active" {
				fmt.Fprintf(t.out, "%s is still %s: run 'wardlink gateway resume %s' when the new board may work\n", out.Gateway, out.State, out.Gateway)
			}
			return t.table(func(w io.Writer) {
				for _, ek := range out.New {
					fmt.Fprintf(w, "new\t%s\n", ek)
				}
				for _, ek := range out.Old {
					fmt.Fprintf(w, "old\t%s\tnever admitted again\n", ek)
				}
				for _, serial := range out.Serials {
					fmt.Fprintf(w, "certificate\t%s was valid, and is of no more use\n", serial)
				}
			})
		},
	}
	c.Flags().StringArrayVar(&in.TPMs, "tpm", nil, "the new board: `FINGERPRINT` or endorsement key's SHA-256 (required, may be repeated)")
	c.Flags().StringVar(&in.Reason, "reason", "", "why, one line of `TEXT` (required)")
	return c
}

func (t *tool) gatewaySuspend() *cobra.Command {
	var in client.RevokeRequest
	c := &cobra.Command{
		Use: "suspend ID --reason TEXT", Short: "Cut a gateway off for a time", Args: exactly("gateway ID"),
		Long: "Cuts a gateway off until it is resumed: its session ends within two seconds, and it gets no certificate. It goes on keeping what\n" +
			"its devices send, sealed, shows the reason, and hands everything over once resumed, by itself. Name no patient in the reason.\n" +
			"It works when the journal cannot be written; the event follows.",
		Example: `  wardlink gateway suspend icu-3-bed-7 --reason "sends another ward's patients, being looked at"
  wardlink gateway resume icu-3-bed-7`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(in.Reason) == "" {
				return errors.New("--reason is missing: it stands in the audit log, and the gateway shows it")
			}
			var out client.SuspendAnswer
			if err := t.gatewayAct(cmd, args[0], "suspend", in, &out); err != nil {
				return err
			}
			t.unjournaled(out.Journaled, out.Gateway, "suspended")
			if t.json {
				return t.printJSON(out)
			}
			if out.Already {
				fmt.Fprintf(t.out, "%s was suspended already, at %s by %s: %s\n", out.Gateway, out.At.Local().Format(time.DateTime), shortActor(out.By), out.Reason)
				return nil
			}
			fmt.Fprintf(t.out, "%s is suspended: its session is cut; it keeps what it takes in until 'wardlink gateway resume %s'\n", out.Gateway, out.Gateway)
			return nil
		},
	}
	c.Flags().StringVar(&in.Reason, "reason", "", "why, one line of `TEXT` (required)")
	return c
}

func (t *tool) gatewayResume() *cobra.Command {
	var in client.ResumeRequest
	c := &cobra.Command{
		Use: "resume ID", Short: "Let a suspended gateway go on, or take a mistaken revocation back", Args: exactly("gateway ID"),
		Long: "Lets a gateway that is suspended go on: it comes back by itself within minutes, and hands over what it kept. A revocation is taken\n" +
			"back likewise, if it was a mistake, for a --reason that stands in the log. Nothing resumes a gateway that is decommissioned.",
		Example: `  wardlink gateway resume icu-3-bed-7
  wardlink gateway resume icu-3-bed-8 --reason "found in the storeroom, seals unbroken"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var out client.ResumeAnswer
			if err := t.gatewayAct(cmd, args[0], "resume", in, &out); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(out)
			}
			if out.Was == "active" {
				fmt.Fprintf(t.out, "%s is active; nothing is changed\n", out.Gateway)
				return nil
			}
			fmt.Fprintf(t.out, "%s was %s and is active; it comes back by itself\n", out.Gateway, out.Was)
			return nil
		},
	}
	c.Flags().StringVar(&in.Reason, "reason", "", "why, one line of `TEXT` (required for a revoked gateway)")
	return c
}

// gatewayNote is what the list says of a gateway beside its columns.
func gatewayNote(g client.Gateway) string {
	var notes []string
	if r := g.Revoked; r != nil {
		notes = append(notes, fmt.Sprintf("revoked %s by %s: %s", r.At.Local().Format(time.DateTime), shortActor(r.By), r.Reason))
	} else if h := g.Hold; h != nil {
		notes = append(notes, fmt.Sprintf("%s %s by %s: %s", g.State, h.At.Local().Format(time.DateTime), shortActor(h.By), h.Reason))
	}
	if g.Outside {
		notes = append(notes, "outside of its validity, and may not connect: wardlink gateway window "+g.ID)
	}
	if q := g.Quarantine; q != nil {
		notes = append(notes, fmt.Sprintf("in quarantine since %s: %s", q.Since.Local().Format(time.DateTime), q.Mismatch.String()))
	}
	if e := g.End; e != nil && g.State != "decommissioned" {
		notes = append(notes, fmt.Sprintf("hands over what waits, then is decommissioned; since %s by %s: %s", e.At.Local().Format(time.DateTime), shortActor(e.By), e.Reason))
	}
	if n := g.Next; n != nil {
		notes = append(notes, fmt.Sprintf("moves to %s at %s", n.Ward, shownSince(n.Since)))
	}
	return strings.Join(notes, "; ")
}

// showLife is where a gateway stood, which boards it had, and what holds it.
func showLife(w io.Writer, g client.Gateway) {
	for _, ek := range g.Retired {
		fmt.Fprintf(w, "former EK\t%s, never admitted again\n", ek)
	}
	if len(g.Wards) > 1 {
		for _, ward := range g.Wards {
			by := ""
			if ward.By != "" {
				by = ", said by " + shortActor(ward.By)
			}
			fmt.Fprintf(w, "ward\t%s from %s on%s\n", orDash(ward.Ward), shownSince(ward.Since), by)
		}
	}
	if q := g.Quarantine; q != nil {
		fmt.Fprintf(w, "quarantined\tsince %s: %s; 'wardlink boot show %s' says more\n", q.Since.Local().Format(time.RFC3339), q.Mismatch.String(), g.ID)
	}
	if e := g.End; e != nil {
		showEnd(w, g.State, *e)
	} else if h := g.Hold; h != nil && g.Revoked == nil {
		fmt.Fprintf(w, "%s\t%s\nby\t%s\nreason\t%s\n", g.State, h.At.Local().Format(time.RFC3339), h.By, h.Reason)
	}
}
