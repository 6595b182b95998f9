package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"wardlink/internal/spiffe"
	"wardlink/server/api/client"
)

func (t *tool) access() *cobra.Command {
	return group("access", "Give hospital systems access to records", t.accessIssue(), t.identityList("access"), t.identityShow("access"), t.accessExplain(), t.accessScope(),
		t.identityOwner("access"), t.identityState("access", "suspend"), t.identityState("access", "resume"), t.identityState("access", "revoke"), t.identityRotate("access"),
		t.accessRenew(), t.accessKeep())
}

func (t *tool) accessIssue() *cobra.Command {
	var out, owner, contact string
	var renew bool
	var scope scopeFlags
	c := &cobra.Command{
		Use: "issue NAME [--ward WARD] [--code CODE] [--all]", Short: "Make a service account, or another certificate of one (24 h)", Args: exactly("account NAME"),
		Long: `Makes a key here, has the server certify it, and writes into a folder: NAME.pem (key and chain in one file, replaced in one go), NAME.key,
NAME.crt, root.crt and access.json, by which 'wardlink access keep' renews it. The key never leaves this machine.

A new account sees nothing until it has a scope: name wards, codes or patients, each of which narrows, or say --all. --waveforms adds
samples. An account that is there keeps its scope; --renew replaces the folder's files.`,
		Example: `  wardlink access issue ehr-reader --ward icu-3 --code loinc|8867-4 --owner "Clinical IT" --contact it@hospital.example
  wardlink access keep ehr-reader                   # on the system that reads: renews it for ever
  curl --cert ehr-reader/ehr-reader.pem --cacert ehr-reader/root.crt \
    'https://localhost:8443/fhir/Observation?patient.identifier=urn:oid:1.2.3|4711&_count=10'
  wardlink access issue ehr-reader --renew          # after it has ended, or to move it to another machine`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				out = args[0]
			}
			in := client.AccessRequest{Name: args[0], Owner: owner, Contact: contact, Scope: scope.given(cmd)}
			return t.issue(cmd, in, out, renew)
		},
	}
	c.Flags().BoolVar(&renew, "renew", false, "replace the files of the former certificate")
	c.Flags().StringVar(&out, "out", "", "write into `FOLDER` (default: NAME)")
	c.Flags().StringVar(&owner, "owner", "", "the `TEAM` or person that answers for a new account (default: you)")
	c.Flags().StringVar(&contact, "contact", "", "how to reach it: `ADDRESS` or telephone")
	scope.add(c)
	return c
}

func (t *tool) issue(cmd *cobra.Command, in client.AccessRequest, out string, renew bool) error {
	if err := spiffe.ValidName(in.Name); err != nil {
		return err
	}
	keyFile := filepath.Join(out, in.Name+".key")
	if _, err := os.Stat(keyFile); !renew && err == nil {
		return fmt.Errorf("%s is there already; replace it with --renew, or name another folder with --out", keyFile)
	}
	if err := client.ReadyFolder(out); err != nil { // before the account is there, whose key nobody would have
		return fmt.Errorf("the server was not asked: %w; name another folder with --out", err)
	}
	c, err := t.client()
	if err != nil {
		return err
	}
	key, csr, err := client.NewKey(in.Name)
	if err != nil {
		return err
	}
	in.CSR = csr
	var grant client.AccessGrant
	if err := c.Post(cmd.Context(), "/v1/access", in, &grant); err != nil {
		return err
	}
	if err := client.StoreAccess(out, in.Name, key, grant); err != nil {
		return fmt.Errorf("%w; the server has the account: 'wardlink access issue %s --renew' makes the files anew", err, in.Name)
	}
	if t.json {
		return t.printJSON(map[string]any{"id": grant.ID, "folder": out, "not_after": grant.NotAfter, "scope": grant.Scope})
	}
	fmt.Fprintf(t.out, "%s may see %s\nits certificate counts until %s, its files are in %s\n", grant.ID, grant.Scope, grant.NotAfter.Local().Format(time.DateTime), out)
	t.warn(grant.Warnings)
	if grant.Scope == "nothing" {
		fmt.Fprintf(t.out, "give it a scope: wardlink access scope %s --ward WARD   (--code, --patient, --identifier, --all)\n", in.Name)
	}
	return nil
}

// scopeFlags are the flags that name a scope.
type scopeFlags struct {
	client.Scope
	waveforms bool
}

func (f *scopeFlags) add(c *cobra.Command) {
	c.Flags().BoolVar(&f.All, "all", false, "everything: every ward, code and patient, samples too unless --operation says less")
	c.Flags().StringArrayVar(&f.Wards, "ward", nil, "readings that were taken in in `WARD`; may be repeated")
	c.Flags().StringArrayVar(&f.Codes, "code", nil, "readings of `CODE`: loinc|8867-4, mdc|147842 or URI|CODE; may be repeated")
	c.Flags().StringArrayVar(&f.Patients, "patient", nil, "readings of the patient with that `ID`, as FHIR shows it; may be repeated")
	c.Flags().StringArrayVar(&f.Identifiers, "identifier", nil, "the same by `SYSTEM|VALUE`, of which the server keeps the id alone; may be repeated")
	c.Flags().StringArrayVar(&f.Operations, "operation", nil, "`OPERATION` that is granted: read, search, waveforms; may be repeated (default: read and search)")
	c.Flags().BoolVar(&f.waveforms, "waveforms", false, "samples, too")
}

// given is the scope, if any flag names one.
func (f *scopeFlags) given(c *cobra.Command) *client.Scope {
	for _, name := range []string{"all", "ward", "code", "patient", "identifier", "operation", "waveforms"} {
		if c.Flags().Changed(name) {
			s := f.Scope
			if f.waveforms && !s.All {
				if len(s.Operations) == 0 {
					s.Operations = []string{"read", "search"}
				}
				s.Operations = append(s.Operations, "waveforms")
			}
			return &s
		}
	}
	return nil
}

func (t *tool) accessScope() *cobra.Command {
	var scope scopeFlags
	var none bool
	c := &cobra.Command{
		Use: "scope NAME [--ward WARD] [--code CODE] [--patient ID] [--all | --none]", Short: "Say what a service account may see", Args: exactly("account NAME"),
		Long: `Gives a service account a scope in place of the one that it has: it holds from the next request on. A reading is in the scope if it is in
each list that is given: wards (where its gateway stood when it was taken in), codes, patients. --all is everything, --none nothing.`,
		Example: `  wardlink access scope ehr-reader --ward icu-3 --ward icu-4
  wardlink access scope early-warning --ward icu-3 --code loinc|8867-4 --code loinc|59408-5 --operation search
  wardlink access scope research --identifier 'urn:oid:1.2.3|4711' --waveforms`,
		RunE: func(cmd *cobra.Command, args []string) error {
			given := scope.given(cmd)
			if (given == nil) != none {
				return errors.New("name a scope with --ward, --code, --patient, --identifier or --all, or take it away with --none")
			}
			if none {
				given = &client.Scope{}
			}
			return t.change(cmd, "access", args[0], client.ChangeRequest{Scope: given}, func(i client.Identity) string { return "may see " + i.Scope })
		},
	}
	scope.add(c)
	c.Flags().BoolVar(&none, "none", false, "nothing")
	return c
}

// change posts a change and says what is now.
func (t *tool) change(cmd *cobra.Command, kind, name string, in client.ChangeRequest, says func(client.Identity) string) error {
	c, err := t.client()
	if err != nil {
		return err
	}
	var out client.Identity
	if err := c.IdentityAct(cmd.Context(), kind, name, "change", in, &out); err != nil {
		return err
	}
	if t.json {
		return t.printJSON(out)
	}
	fmt.Fprintf(t.out, "%s %s\n", name, says(out))
	t.warn(out.Warnings)
	return nil
}

// warn says what an act that is done may not have meant.
func (t *tool) warn(warnings []string) {
	for _, w := range warnings {
		fmt.Fprintf(t.err, "note: %s\n", printable(w))
	}
}

func (t *tool) accessExplain() *cobra.Command {
	var q client.Question
	c := &cobra.Command{
		Use: "explain NAME [--operation OP] [--ward WARD] [--code CODE] [--patient ID]", Short: "Say whether a service account may see something, and why", Args: exactly("account NAME"),
		Long: "Judges by the rules that FHIR goes by. It exits 0 if the account may, 1 if it may not. Asked for nothing, it says whether the account sees anything.",
		Example: `  wardlink access explain ehr-reader
  wardlink access explain ehr-reader --operation search --ward icu-4 --code loinc|8867-4
  wardlink access explain ehr-reader --identifier 'urn:oid:1.2.3|4711'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := t.client()
			if err != nil {
				return err
			}
			var out client.Explanation
			if err := c.IdentityAct(cmd.Context(), "access", args[0], "explain", q, &out); err != nil {
				return err
			}
			if t.json {
				err = t.printJSON(out)
			} else {
				err = t.explained(out)
			}
			if err == nil && !out.Allowed {
				err = errSaid
			}
			return err
		},
	}
	c.Flags().StringVar(&q.Operation, "operation", "", "`OPERATION`: read, search or waveforms")
	c.Flags().StringVar(&q.Ward, "ward", "", "a reading that was taken in in `WARD`")
	c.Flags().StringVar(&q.Code, "code", "", "a reading of `CODE`: loinc|8867-4, mdc|147842 or URI|CODE")
	c.Flags().StringVar(&q.Patient, "patient", "", "of the patient with that `ID`, as FHIR shows it")
	c.Flags().StringVar(&q.Identifier, "identifier", "", "of the patient with that `SYSTEM|VALUE`")
	return c
}

func (t *tool) explained(e client.Explanation) error {
	verdict := "may"
	if !e.Allowed {
		verdict = "may NOT"
	}
	fmt.Fprintf(t.out, "%s %s\n", e.Identity.Name, verdict)
	for _, c := range e.Checks {
		mark := "yes"
		if !c.Holds {
			mark = "NO "
		}
		fmt.Fprintf(t.out, "  %s  %s: %s\n", mark, printable(c.What), printable(c.Why))
	}
	return nil
}
