package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardlink/enroll/verify"
	"wardlink/server/api/client"
)

func (t *tool) gateway() *cobra.Command {
	return group("gateway", "Register, list, explain, approve, move, replace, suspend, revoke, readmit and decommission gateways",
		t.gatewayImport(), t.gatewayList(), t.gatewayShow(), t.gatewayApprove(), t.gatewayMove(), t.gatewayReplace(),
		t.gatewayProfile(), t.gatewayWindow(), t.gatewayExplain(), t.gatewaySuspend(), t.gatewayResume(), t.gatewayReadmit(), t.gatewayRevoke(), t.gatewayDecommission(), t.gatewayRecord())
}

func (t *tool) gatewayImport() *cobra.Command {
	return &cobra.Command{
		Use: "import FILE.csv", Short: "Enter gateways from a manifest", Args: exactly("FILE.csv"),
		Long: "Enters gateways from a CSV manifest with the columns id, ek_sha256, site, ward, profile.\n" +
			"'wardlink-agent identity' prints a gateway's ek_sha256. Rows that are there already are unchanged; of those that are\n" +
			"revoked, suspended or decommissioned the result says so.",
		Example: "  wardlink gateway import gateways.csv",
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("manifest: %w", err)
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			var results []client.ImportResult
			if err := c.PostText(cmd.Context(), "/v1/gateways/import", "text/csv", data, &results); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if t.json {
				err = t.printJSON(results)
			} else {
				err = t.table(func(w io.Writer) {
					fmt.Fprintln(w, "GATEWAY\tRESULT\tREASON")
					for _, r := range results {
						fmt.Fprintf(w, "%s\t%s\t%s\n", r.ID, r.Result, r.Reason)
					}
				})
			}
			if err != nil {
				return err
			}
			for _, r := range results {
				if r.Result == "refused" {
					return errors.New("some rows were refused; mend them and import the file again")
				}
			}
			return nil
		},
	}
}

func (t *tool) gatewayList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List registered and waiting gateways", Args: none(""),
		Example: `  wardlink gateway list
  wardlink gateway list --json | jq -r '.waiting[].fingerprint'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var list client.GatewayList
			if err := c.Get(cmd.Context(), "/v1/gateways", nil, &list); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(list)
			}
			return t.table(func(w io.Writer) {
				fmt.Fprintln(w, "GATEWAY\tSTATE\tSITE\tWARD\tPROFILE\tAGENT\tEK\tNOTE")
				for _, g := range list.Gateways {
					note := gatewayNote(g)
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", g.ID, g.State, orDash(g.Site), orDash(g.Ward), g.Profile, orDash(g.Agent), shortEK(g.EK), note)
				}
				for _, q := range list.Waiting {
					chain := "EK certificate NOT verified"
					if q.Chain {
						chain = "EK certificate verified"
					}
					claim := ""
					if q.Serial != "" {
						claim = fmt.Sprintf(", says its serial is %s (unproven)", q.Serial)
					}
					if q.SerialOf != "" {
						claim += ", WHICH IS THAT OF " + q.SerialOf
					}
					fmt.Fprintf(w, "%s\twaiting\t-\t-\t-\t-\t-\t%s %s, %s, seen %s from %s%s\n", q.Fingerprint, verify.MakerName(q.Manufacturer), q.Model, chain,
						q.LastSeen.Local().Format(time.DateTime), q.Peer, claim)
				}
				if len(list.Waiting) > 0 {
					fmt.Fprintln(w, "\nApprove one with: wardlink gateway approve FINGERPRINT --id NAME --ward WARD")
				}
			})
		},
	}
}

func shortEK(eks []string) string {
	var short []string
	for _, e := range eks {
		short = append(short, e[:min(16, len(e))])
	}
	return strings.Join(short, " ")
}

func (t *tool) gatewayShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show one gateway", Args: exactly("gateway ID"),
		Example: "  wardlink gateway show icu-3-bed-7",
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var g client.Gateway
			if err := c.Get(cmd.Context(), "/v1/gateways/"+url.PathEscape(args[0]), nil, &g); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(g)
			}
			return t.table(func(w io.Writer) {
				fmt.Fprintf(w, "id\t%s\nstate\t%s\nsite\t%s\nward\t%s\nprofile\t%s\n", g.ID, g.State, g.Site, g.Ward, g.Profile)
				for _, ek := range g.EK {
					fmt.Fprintf(w, "EK SHA-256\t%s\n", ek)
				}
				showLife(w, g)
				if r := g.Revoked; r != nil {
					showRevocation(w, *r)
				}
			})
		},
	}
}

func showRevocation(w io.Writer, r client.Revocation) {
	fmt.Fprintf(w, "revoked\t%s\nby\t%s\nreason\t%s\n", r.At.Local().Format(time.RFC3339), r.By, r.Reason)
	for _, serial := range r.Serials {
		fmt.Fprintf(w, "certificate\t%s was valid, and is of no more use\n", serial)
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (t *tool) gatewayRevoke() *cobra.Command {
	var in client.RevokeRequest
	c := &cobra.Command{
		Use: "revoke ID --reason TEXT", Short: "Cut a gateway off, now: session, certificate and renewal", Args: exactly("gateway ID"),
		Long: "Cuts a gateway off: its session ends within two seconds, its certificates are of no more use here, and it gets no new one.\n" +
			"What it buffers stays on the gateway, sealed. The reason stands in the audit log and is shown by the gateway's own status:\n" +
			"name no patient in it. It works when the journal cannot be written; the event follows. Revoking again changes nothing.\n" +
			"'gateway resume' takes a mistake back; 'gateway suspend' is for a time.",
		Example: `  wardlink gateway revoke icu-3-bed-7 --reason "stolen from the ward on Monday"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(in.Reason) == "" {
				return errors.New("--reason is missing: it stands in the audit log, and the gateway shows it")
			}
			var out client.RevokeAnswer
			if err := t.gatewayAct(cmd, args[0], "revoke", in, &out); err != nil {
				return err
			}
			t.unjournaled(out.Journaled, out.Gateway, "revoked")
			if t.json {
				return t.printJSON(out)
			}
			if out.Already {
				fmt.Fprintf(t.out, "%s was revoked already\n", out.Gateway)
			} else {
				fmt.Fprintf(t.out, "%s is revoked: its session is cut, and it gets no certificate any more\n", out.Gateway)
			}
			return t.table(func(w io.Writer) { showRevocation(w, out.Revocation) })
		},
	}
	c.Flags().StringVar(&in.Reason, "reason", "", "why, one line of `TEXT` (required)")
	return c
}

func (t *tool) gatewayApprove() *cobra.Command {
	var a client.Approval
	var batch batchOptions
	c := &cobra.Command{
		Use: "approve {FINGERPRINT --id NAME | --batch FILE.csv}", Short: "Admit a waiting gateway, or many at once",
		Args: func(cmd *cobra.Command, args []string) error {
			if batch.file != "" && len(args) > 0 {
				return fmt.Errorf("--batch admits the gateways of a file, and %q is one more; see '%s --help'", args[0], cmd.CommandPath())
			}
			if batch.file != "" {
				return nil
			}
			return exactly("FINGERPRINT, such as ABCD-EFGH-IJKL-MNOP, or --batch FILE.csv")(cmd, args)
		},
		Long: "Admits a TPM from the waiting list as a gateway. Compare the fingerprint with the one that the box itself shows: on its\n" +
			"console, in 'wardlink-agent doctor', 'wardlink-agent identity' and 'wardlink-agent status'.\n\n" + batchHelp,
		Example: `  wardlink gateway approve ABCD-EFGH-IJKL-MNOP --id icu-3-bed-7 --site main --ward icu-3
  wardlink gateway approve --batch gateways.csv
  wardlink gateway approve --batch gateways.csv --wait 10m                       # while the boxes are switched on
  wardlink gateway approve --batch gateways.csv --trust-serial 192.168.7.0/24    # the bench on which they stand
  wardlink gateway approve --batch gateways.failed.csv                           # the failed rows, mended`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case batch.file != "" && (a.ID != "" || a.Site != "" || a.Ward != ""):
				return errors.New("--id, --site and --ward are columns of the batch file; leave them out with --batch")
			case batch.file != "" && (batch.wait < 0 || batch.wait > 24*time.Hour):
				return errors.New("--wait: expected up to 24h, such as 10m")
			case batch.file != "":
				return t.approveBatch(cmd.Context(), batch)
			case batch.wait != 0 || batch.report != "" || len(batch.trust) > 0:
				return errors.New("--wait, --report and --trust-serial go with --batch FILE.csv")
			}
			if a.ID == "" {
				return errors.New("--id is missing: the gateway's name, for ever")
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			a.Fingerprint = args[0]
			if err := c.Post(cmd.Context(), "/v1/gateways/approve", a, nil); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(a)
			}
			fmt.Fprintf(t.out, "%s is gateway %s; it enrols by itself within seconds\n", a.Fingerprint, a.ID)
			return nil
		},
	}
	c.Flags().StringVar(&a.ID, "id", "", "the gateway's `NAME` for ever (required)")
	c.Flags().StringVar(&a.Site, "site", "", "its `SITE`")
	c.Flags().StringVar(&a.Ward, "ward", "", "its `WARD`")
	c.Flags().StringVar(&a.Profile, "profile", "default", "what it may publish")
	c.Flags().StringVar(&batch.file, "batch", "", "admit the gateways of this CSV `FILE`")
	c.Flags().DurationVar(&batch.wait, "wait", 0, "with --batch: how long to wait for gateways that are not in the list yet")
	c.Flags().StringArrayVar(&batch.trust, "trust-serial", nil, "with --batch: `NETWORK` from which a box's own word for its serial number counts, such as 192.168.7.0/24")
	c.Flags().StringVar(&batch.report, "report", "", "with --batch: where the report goes (default: beside the batch file)")
	return c
}
