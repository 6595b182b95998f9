package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardlink/audit"
	"wardlink/enroll/wipe"
	"wardlink/internal/durable"
	"wardlink/server/api/client"
)

func (t *tool) gatewayDecommission() *cobra.Command {
	var in client.DecommissionRequest
	var yes, drain bool
	c := &cobra.Command{
		Use: "decommission ID --reason TEXT", Short: "End a gateway's life, for ever, and have it wipe itself", Args: exactly("gateway ID"),
		Long: "Ends a gateway's life. By default it first hands over what waits on it: it takes nothing more from its devices, and stays active until\n" +
			"the hospital has everything; then it wipes itself. With --now its session is cut within two seconds, it gets no certificate, and what\n" +
			"waits on it is destroyed with the rest: patients' data that nobody will ever see. It hears of that when it next asks for a certificate.\n" +
			"It wipes its keys, its certificate and its buffer, leaves a mark so that it does not enrol again, and sends its signed word, which\n" +
			"'gateway record' gives out as a proof. A gateway that never comes back is decommissioned all the same, without that word.\n" +
			"There is no way back: neither its id nor its TPM is ever admitted again.",
		Example: `  wardlink gateway decommission icu-3-bed-7 --reason "ward closed"
  wardlink gateway decommission icu-3-bed-7 --reason "stolen, not coming back" --now --yes
  wardlink gateway record icu-3-bed-7 --out icu-3-bed-7.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case strings.TrimSpace(in.Reason) == "":
				return errors.New("--reason is missing: it stands in the audit log, and the gateway shows it")
			case in.Now && drain:
				return errors.New("--now and --after-drain contradict each other: give one")
			}
			if err := t.confirmEnd(cmd.InOrStdin(), args[0], in.Now, yes); err != nil {
				return err
			}
			var out client.DecommissionAnswer
			if err := t.gatewayAct(cmd, args[0], "decommission", in, &out); err != nil {
				return err
			}
			t.unjournaled(out.Journaled, out.Gateway, "decommissioned")
			if t.json {
				return t.printJSON(out)
			}
			switch {
			case out.Already && out.Confirmed != nil:
				fmt.Fprintf(t.out, "%s was decommissioned already, and has wiped itself\n", out.Gateway)
			case out.Already:
				fmt.Fprintf(t.out, "%s is being decommissioned already, since %s\n", out.Gateway, out.At.Local().Format(time.DateTime))
			case out.Drain:
				fmt.Fprintf(t.out, "%s hands over what waits, then wipes itself; 'wardlink gateway show %s' says how far it is\n", out.Gateway, out.Gateway)
			default:
				fmt.Fprintf(t.out, "%s is decommissioned: its session is cut; it wipes itself when it next asks for a certificate\n", out.Gateway)
			}
			return nil
		},
	}
	c.Flags().StringVar(&in.Reason, "reason", "", "why, one line of `TEXT` (required)")
	c.Flags().BoolVar(&drain, "after-drain", false, "first hand over what waits on the gateway (the default)")
	c.Flags().BoolVar(&in.Now, "now", false, "cut it off at once, and destroy what waits on it")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// confirmEnd asks a person before what cannot be taken back. Where nobody can be asked, --yes must say it.
func (t *tool) confirmEnd(in io.Reader, id string, now, yes bool) error {
	if yes {
		return nil
	}
	if _, ok := terminal(in); !ok {
		return errors.New("this cannot be taken back, and there is no terminal to ask on: give --yes")
	}
	fmt.Fprintf(t.err, "This ends %s for ever: its id and its TPM are never admitted again.\n", id)
	if now {
		fmt.Fprintln(t.err, "What waits on it is destroyed, and nobody will ever see it; without --now it is handed over first.")
	}
	fmt.Fprintf(t.err, "Type the gateway's id to go on: ")
	line, err := bufio.NewReader(io.LimitReader(in, 1024)).ReadString('\n')
	if err != nil && line == "" || strings.TrimSpace(line) != id {
		return errors.New("nothing is done: that was not the gateway's id")
	}
	return nil
}

// showEnd is how a gateway's life ends.
func showEnd(w io.Writer, state string, e client.End) {
	what, more := "decommissioned", ""
	if state != what {
		what, more = "leaving", ": it hands over what waits, then is decommissioned"
	}
	fmt.Fprintf(w, "%s\t%s%s\nby\t%s\nreason\t%s\n", what, e.At.Local().Format(time.RFC3339), more, e.By, e.Reason)
	if e.Confirmed == nil {
		fmt.Fprintf(w, "wiped\tnot confirmed by the gateway\n")
		return
	}
	fmt.Fprintf(w, "wiped\t%s, by its own signed word\n", e.Confirmed.Local().Format(time.RFC3339))
	if e.Undelivered > 0 || e.Refused > 0 {
		fmt.Fprintf(w, "destroyed\t%d batches of what devices sent that the hospital never had, %d that it had refused\n", e.Undelivered, e.Refused)
	}
}

// recordTime is how long the log may take to come to an event: it follows the journal by about a second.
const recordTime = 10 * time.Second

func (t *tool) gatewayRecord() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "record ID --out FILE", Short: "Write the proof of how a gateway's life ended", Args: exactly("gateway ID"),
		Long: "Writes a proof bundle of a decommissioned gateway: what was ordered, by whom and why, and, where the gateway has answered, its signed\n" +
			"word that it has wiped itself. 'audit check' verifies it offline, for whoever has the log's public key.",
		Example: `  wardlink gateway record icu-3-bed-7 --out icu-3-bed-7.json
  wardlink audit check --key log.pub icu-3-bed-7.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				return errors.New("--out is missing: the file to write, or - for standard output")
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			data, err := record(cmd.Context(), c, args[0])
			if err != nil {
				return err
			}
			if out == "-" {
				_, err := t.out.Write(data)
				return err
			}
			if err := durable.WriteFile(out, data, 0o644); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(map[string]string{"file": out})
			}
			said := "the order alone: the gateway has not confirmed that it is wiped"
			if b, err := audit.ParseBundle(data); err == nil {
				if leaf, err := audit.DecodeLeaf(b.Leaf); err == nil && leaf.Event != nil && leaf.Event.Type == audit.GatewayWiped {
					said = "the order, and the gateway's signed word that it is wiped"
				}
			}
			fmt.Fprintf(t.err, "%s: %s; check it with: wardlink audit check --key log.pub %s\n", out, said, out)
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "write to `FILE`; - is standard output (required)")
	return c
}

// record asks until the log has come to the event.
func record(ctx context.Context, c *client.Client, id string) ([]byte, error) {
	for began := time.Now(); ; {
		body, err := c.Stream(ctx, "GET", "/v1/gateways/"+url.PathEscape(id)+"/record", nil, "", nil)
		if err == nil {
			defer body.Close()
			return io.ReadAll(io.LimitReader(body, audit.MaxBundle))
		}
		if !strings.Contains(err.Error(), "has not come to that event yet") || time.Since(began) > recordTime {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// provenEnd is what a proof of a gateway's end says.
type provenEnd struct {
	OrderedBy   string     `json:"ordered_by"`
	Reason      string     `json:"reason"`
	Wiped       *time.Time `json:"wiped,omitempty"` // by the gateway's own signed word; absent: not confirmed
	Undelivered uint64     `json:"destroyed_undelivered"`
	Refused     uint64     `json:"destroyed_refused"`
}

// checkEnd verifies what an event of a gateway's end holds within itself: that its hash is the order's, and that the gateway's word is about
// this order and signed by the key beside it. nil for every other event.
func checkEnd(ev *audit.Event) (*provenEnd, error) {
	if ev == nil || ev.Outcome != audit.Success || ev.Type != audit.GatewayWiped && (ev.Type != audit.GatewayDecommissioned || ev.Detail["order"] == "") {
		return nil, nil
	}
	order, err := base64.StdEncoding.DecodeString(ev.Detail["order"])
	if err != nil {
		return nil, fmt.Errorf("order: %w", err)
	}
	hash := sha256.Sum256(order)
	if hex.EncodeToString(hash[:]) != ev.Detail["order_sha256"] {
		return nil, errors.New("the order is not the one whose hash is logged")
	}
	out := &provenEnd{OrderedBy: ev.Actor.ID, Reason: ev.Reason}
	if ev.Type == audit.GatewayDecommissioned {
		return out, nil
	}
	word, err := base64.StdEncoding.DecodeString(ev.Detail["word"])
	if err != nil {
		return nil, fmt.Errorf("word: %w", err)
	}
	key, err := base64.StdEncoding.DecodeString(ev.Detail["key"])
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	done, err := wipe.VerifyDone(word, key, hash)
	if err != nil {
		return nil, err
	}
	if done.Gateway != ev.Target {
		return nil, fmt.Errorf("the word is gateway %s's, the event is about %s", done.Gateway, ev.Target)
	}
	at := time.UnixMilli(done.At).UTC()
	out.OrderedBy, out.Wiped, out.Undelivered, out.Refused = ev.Detail["ordered_by"], &at, done.Waiting, done.Parked
	return out, nil
}

func (e *provenEnd) print(w io.Writer) {
	if e == nil {
		return
	}
	fmt.Fprintf(w, "ordered by\t%s\nreason\t%s\n", e.OrderedBy, e.Reason)
	if e.Wiped == nil {
		fmt.Fprintf(w, "wiped\tnot confirmed by the gateway\n")
		return
	}
	fmt.Fprintf(w, "wiped\t%s, signed by the gateway's device key\n", e.Wiped.Format(time.RFC3339))
	fmt.Fprintf(w, "destroyed\t%d batches of what devices sent that the hospital never had, %d that it had refused\n", e.Undelivered, e.Refused)
}
