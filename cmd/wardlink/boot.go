package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardlink/server/api/client"
	"wardlink/server/boot"
)

// boot is about how gateways boot. Its flag --json is the tool's.
func (t *tool) boot() *cobra.Command {
	return group("boot", "Say how gateways may boot, and see how they did", t.bootPolicy(), t.bootShow(), t.bootAllow(), t.bootWithdraw(),
		t.bootLock("lock", "End a gateway's learning now", "is held to what was learned of it"),
		t.bootLock("relearn", "Forget what was learned of a gateway, before its firmware is updated", "is learned anew from its next attestation on"))
}

func (t *tool) bootPolicy() *cobra.Command {
	var in client.BootPolicy
	c := &cobra.Command{
		Use: "policy {off|learn|allow|inherit}", Short: "Say what gateways' boots are held to", Args: exactly("of off, learn, allow and inherit"),
		Long: "Each renewal of a gateway's certificate brings a quote of its TPM: what firmware and boot loader were measured. The policy says what\n" +
			"that is held to, from each gateway's next attestation on:\n" +
			"  off     nothing; it is kept, and shown by 'boot show'\n" +
			"  learn   the gateway's own first boots: once --after attestations in a row were the same, they are locked\n" +
			"  allow   the releases that 'boot allow' named\n" +
			"  inherit takes a gateway's own policy away (with --gateway)\n" +
			"A gateway that boots something else is put into quarantine: it stays connected, what it publishes is kept and marked, is never final\n" +
			"in FHIR, and an alert names what differs. 'gateway readmit' ends that.",
		Example: `  wardlink boot policy learn
  wardlink boot policy learn --after 2 --pcrs 0,2,4,7
  wardlink boot policy off --gateway icu-3-bed-7`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if in.Mode = args[0]; in.Mode == "inherit" {
				if in.Mode = ""; in.Gateway == "" {
					return errors.New("--gateway is missing: whose policy is to be taken away")
				}
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			var out client.BootPolicy
			if err := c.Post(cmd.Context(), "/v1/boot/policy", in, &out); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(out)
			}
			fmt.Fprintf(t.out, "%s: %s; it holds from each attestation on, which comes with the renewal of a certificate\n", policyOwner(out), policyText(out))
			return nil
		},
	}
	c.Flags().StringVar(&in.Gateway, "gateway", "", "for this `ID` alone")
	c.Flags().StringVar(&in.PCRs, "pcrs", "", "the `PCRS` that count (default 0-7)")
	c.Flags().IntVar(&in.After, "after", 0, "with learn: `N` attestations in a row with the same values, then lock (default 3)")
	return c
}

func policyOwner(p client.BootPolicy) string {
	if p.Gateway == "" {
		return "every gateway without a policy of its own"
	}
	return p.Gateway
}

func policyText(p client.BootPolicy) string {
	switch p.Mode {
	case "":
		return "as every other gateway"
	case "off":
		return "off"
	case "learn":
		return fmt.Sprintf("learn PCRs %s, lock after %d", p.PCRs, p.After)
	}
	return fmt.Sprintf("%s PCRs %s", p.Mode, p.PCRs)
}

func (t *tool) bootShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [ID]", Short: "Show policies, releases and quarantines, or how one gateway booted", Args: atMost("gateway ID"),
		Example: `  wardlink boot show
  wardlink boot show icu-3-bed-7`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				var b client.GatewayBoot
				if err := c.Get(cmd.Context(), "/v1/gateways/"+url.PathEscape(args[0])+"/boot", nil, &b); err != nil {
					return err
				}
				if t.json {
					return t.printJSON(b)
				}
				return t.table(func(w io.Writer) { showBoot(w, b) })
			}
			var all client.BootOverview
			if err := c.Get(cmd.Context(), "/v1/boot", nil, &all); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(all)
			}
			return t.table(func(w io.Writer) {
				if len(all.Policies) == 0 {
					fmt.Fprintln(w, "policy\tevery gateway\toff")
				}
				for _, p := range all.Policies {
					fmt.Fprintf(w, "policy\t%s\t%s\tby %s\n", policyOwner(p), policyText(p), shortActor(p.By))
				}
				for _, r := range all.Releases {
					from := "values of a file"
					if r.Source != "" {
						from = "taken of " + r.Source
					}
					fmt.Fprintf(w, "release\t%s\t%s, %s\tby %s\n", r.Name, from, r.At.Local().Format(time.DateTime), shortActor(r.By))
				}
				for _, q := range all.Quarantined {
					fmt.Fprintf(w, "quarantined\t%s\tsince %s\t%s\n", q.Gateway, q.Since.Local().Format(time.DateTime), q.Mismatch.String())
				}
			})
		},
	}
}

func showBoot(w io.Writer, b client.GatewayBoot) {
	policy := policyText(b.Policy)
	if b.Policy.Gateway != "" {
		policy += " (its own)"
	}
	fmt.Fprintf(w, "gateway\t%s\npolicy\t%s\n", b.Gateway, policy)
	if q := b.Quarantine; q != nil {
		fmt.Fprintf(w, "quarantined\tsince %s: %s\n", q.Since.Local().Format(time.DateTime), q.Mismatch.String())
		for name, d := range map[string]*boot.Digest{"expected": q.Expected, "got": q.Got} {
			if d != nil {
				fmt.Fprintf(w, "%s\t%s\n", name, d)
			}
		}
	}
	if base := b.Baseline; base != nil {
		learned := fmt.Sprintf("%d attestations in a row, not locked", base.Seen)
		if base.Locked != nil {
			learned = "locked " + base.Locked.Local().Format(time.DateTime)
		}
		fmt.Fprintf(w, "learned\t%s\n", learned)
	}
	if b.Measured == nil {
		fmt.Fprintln(w, "attested\tno quote yet; one comes with each renewal of an agent that makes them")
		return
	}
	state := b.State
	if b.Matched != "" {
		state += " " + b.Matched
	}
	fmt.Fprintf(w, "attested\t%s, %s\n", b.At.Local().Format(time.DateTime), state)
	if b.Measured.Note != "" {
		fmt.Fprintf(w, "note\t%s\n", b.Measured.Note)
	}
	extended := false
	for _, pcr := range slices.Sorted(maps.Keys(b.Measured.PCRs)) {
		v := b.Measured.PCRs[pcr]
		extended = extended || pcr < 8 && v != (boot.Digest{})
		fmt.Fprintf(w, "PCR %d\t%s\n", pcr, v)
	}
	if len(b.Measured.PCRs) > 0 && !extended {
		fmt.Fprintln(w, "note\tthis machine's firmware measures nothing: PCRs 0 to 7 are empty, and tell one boot from no other")
	}
	for _, e := range b.Measured.Events {
		fmt.Fprintf(w, "PCR %d\t%s\t%s\n", e.PCR, e, e.Digest)
	}
}

func (t *tool) bootAllow() *cobra.Command {
	var in client.BootAllow
	var file string
	c := &cobra.Command{
		Use: "allow RELEASE {--from ID | --file FILE}", Short: "Allow the PCR values of a release", Args: exactly("name for the release"),
		Long: "Allows what a gateway booted when it attested last, or values from a file, under the name of a release: for a policy of allow.\n" +
			"The file is JSON as 'wardlink boot show ID --json' has it under \"measured\": {\"pcrs\": {\"0\": \"64 hex digits\", ...}, \"events\": [...]};\n" +
			"events are needed by nobody, and let a later mismatch name what differs.",
		Example: `  wardlink boot allow debian-12-9 --from bench-1
  wardlink boot allow debian-12-9 --file values.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (in.From == "") == (file == "") {
				return errors.New("expected --from ID or --file FILE: whose values")
			}
			in.Name = args[0]
			if file != "" {
				data, err := os.ReadFile(file)
				if err != nil {
					return err
				}
				if in.Measurement, err = boot.Parse(data); err != nil {
					return fmt.Errorf("%s: %w", file, err)
				}
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			if err := c.Post(cmd.Context(), "/v1/boot/allow", in, nil); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(in)
			}
			fmt.Fprintf(t.out, "%s is allowed to gateways whose policy is allow\n", in.Name)
			return nil
		},
	}
	c.Flags().StringVar(&in.From, "from", "", "what the gateway `ID` booted when it attested last")
	c.Flags().StringVar(&file, "file", "", "the values in this `FILE`")
	return c
}

func (t *tool) bootWithdraw() *cobra.Command {
	var in client.BootWithdraw
	c := &cobra.Command{
		Use: "withdraw RELEASE --reason TEXT", Short: "Allow a release no more", Args: exactly("name of a release"),
		Long:    "Allows a release no more: a gateway that boots it is put into quarantine at its next attestation.",
		Example: `  wardlink boot withdraw debian-12-8 --reason "its boot loader is revoked"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(in.Reason) == "" {
				return errors.New("--reason is missing: it stands in the audit log")
			}
			in.Name = args[0]
			c, err := t.client()
			if err != nil {
				return err
			}
			if err := c.Post(cmd.Context(), "/v1/boot/withdraw", in, nil); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(in)
			}
			fmt.Fprintf(t.out, "%s is allowed no more\n", in.Name)
			return nil
		},
	}
	c.Flags().StringVar(&in.Reason, "reason", "", "why, one line of `TEXT` (required)")
	return c
}

func (t *tool) bootLock(act, short, done string) *cobra.Command {
	return &cobra.Command{
		Use: act + " ID", Short: short, Args: exactly("gateway ID"), Example: "  wardlink boot " + act + " icu-3-bed-7",
		RunE: func(cmd *cobra.Command, args []string) error {
			var out client.GatewayBoot
			if err := t.gatewayAct(cmd, args[0], "boot/"+act, nil, &out); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(out)
			}
			fmt.Fprintf(t.out, "%s %s\n", out.Gateway, done)
			return nil
		},
	}
}

func (t *tool) gatewayReadmit() *cobra.Command {
	var in client.ReadmitRequest
	c := &cobra.Command{
		Use: "readmit ID --reason TEXT", Short: "End a gateway's quarantine", Args: exactly("gateway ID"),
		Long: "Ends the quarantine of a gateway that had booted something unknown. What it published meanwhile keeps its mark. Its newest attestation\n" +
			"must be one that its policy knows: boot it as it was before, or, if what it boots now is right, say so: under a policy of learn with\n" +
			"--accept, which makes it what the gateway is held to; under one of allow with 'wardlink boot allow'.",
		Example: `  wardlink boot show icu-3-bed-7
  wardlink gateway readmit icu-3-bed-7 --reason "firmware update of ticket 4711" --accept`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(in.Reason) == "" {
				return errors.New("--reason is missing: it stands in the audit log")
			}
			var out client.Quarantine
			if err := t.gatewayAct(cmd, args[0], "readmit", in, &out); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(out)
			}
			fmt.Fprintf(t.out, "%s is readmitted; it was in quarantine since %s: %s\n", out.Gateway, out.Since.Local().Format(time.DateTime), out.Mismatch.String())
			return nil
		},
	}
	c.Flags().StringVar(&in.Reason, "reason", "", "why, one line of `TEXT` (required)")
	c.Flags().BoolVar(&in.Accept, "accept", false, "what it booted becomes what it is held to")
	return c
}
