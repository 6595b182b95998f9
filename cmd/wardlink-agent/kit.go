package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"wardlink/agent"
)

// kitFacts are what `kit` prints.
type kitFacts struct {
	File        string   `json:"file"`
	Copied      bool     `json:"copied"` // the file is the gateway's own copy
	Fingerprint string   `json:"fingerprint"`
	SHA256      string   `json:"sha256"`
	TrustDomain string   `json:"trust_domain"`
	Servers     []string `json:"servers"`
	Beside      string   `json:"beside,omitempty"` // a kit that was found and is not followed
	Refused     string   `json:"refused,omitempty"`
}

// kit shows the kit that this gateway follows, or has it follow another.
func kit(_ context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flags("kit", stderr)
	path, asJSON := configFlag(fs), fs.Bool("json", false, "print JSON")
	rest, err := parseWith(fs, args, 2)
	if err != nil {
		return err
	}
	cfg, err := agent.LoadConfig(*path)
	if err != nil {
		return err
	}
	var held agent.HeldKit
	switch {
	case len(rest) == 0:
		held, err = cfg.LoadKit()
	case len(rest) == 2 && rest[0] == "adopt":
		held, err = cfg.AdoptKit(rest[1])
	default:
		return usageError{fmt.Errorf("expected 'kit' or 'kit adopt FILE'")}
	}
	if err != nil {
		return err
	}
	f := kitFacts{File: held.Path, Copied: held.Copied, Fingerprint: held.ShortFingerprint(), SHA256: fmt.Sprintf("%x", held.Fingerprint),
		TrustDomain: held.TrustDomain, Servers: held.Servers, Beside: held.Other, Refused: held.Refused}
	if *asJSON {
		return printJSON(stdout, f)
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	from := "found there; the agent's start copies it"
	if f.Copied {
		from = "the gateway's own copy"
	}
	fmt.Fprintf(w, "kit\t%s (%s)\nfingerprint\t%s\nSHA-256\t%s\ntrust domain\t%s\nservers\t%s\n", f.File, from, f.Fingerprint, f.SHA256, f.TrustDomain, printable(strings.Join(f.Servers, ", ")))
	if f.Beside != "" {
		fmt.Fprintf(w, "not followed\t%s (%s)\n", f.Beside, printable(f.Refused))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(rest) == 2 {
		_, err = fmt.Fprintln(stdout, "adopted: restart the agent, which follows it from then on (systemctl restart wardlink-agent)")
	}
	return err
}
