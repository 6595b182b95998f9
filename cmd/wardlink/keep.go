package main

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"wardlink/server/api/client"
)

// keeper opens an account's folder. It needs no operator's file: the account looks after itself.
func (t *tool) keeper(dir, roots string) (*client.Keeper, error) {
	return client.OpenKeeper(dir, roots, slog.New(slog.NewTextHandler(t.err, nil)))
}

const rootsUsage = "the `FILE` of certificates that sign the server's own at the hospital's port, where it has one; default: FOLDER/root.crt, by SPIFFE id"

func (t *tool) accessRenew() *cobra.Command {
	var roots string
	var force bool
	c := &cobra.Command{
		Use: "renew FOLDER", Short: "Renew the certificate in an account's folder, if it is due", Args: exactly("FOLDER of 'wardlink access issue'"),
		Long: "For a timer, where 'access keep' cannot run: at least every six hours. It renews past half of the certificate's life, and one that was rotated\n" +
			"out at once. It needs no operator's file: the present certificate is what it asks by.",
		Example: "  wardlink access renew /etc/ehr/wardlink",
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := t.keeper(args[0], roots)
			if err != nil {
				return err
			}
			due := force || k.Due()
			if !due {
				own, err := k.Own(cmd.Context())
				if err != nil {
					return err
				}
				due = own.Renew
			}
			if !due {
				if t.json {
					return t.printJSON(map[string]any{"renewed": false})
				}
				fmt.Fprintln(t.out, "not due yet; --force renews all the same")
				return nil
			}
			end, err := k.Renew(cmd.Context())
			if err != nil {
				return err
			}
			if t.json {
				return t.printJSON(map[string]any{"renewed": true, "not_after": end})
			}
			fmt.Fprintf(t.out, "renewed; the certificate counts until %s\n", end.Local().Format(time.DateTime))
			return nil
		},
	}
	c.Flags().BoolVar(&force, "force", false, "renew now, due or not")
	c.Flags().StringVar(&roots, "cacert", "", rootsUsage)
	return c
}

func (t *tool) accessKeep() *cobra.Command {
	var roots string
	c := &cobra.Command{
		Use: "keep FOLDER", Short: "Renew the certificate in an account's folder for ever", Args: exactly("FOLDER of 'wardlink access issue'"),
		Long: `Runs until it is ended, on the machine that reads: renews the certificate at half of its life, and within a minute or so after 'access
rotate'. The folder's files are replaced whole, mode 0600: programs read NAME.pem, which holds key and chain. It needs no operator's file.`,
		Example: `  wardlink access keep /etc/ehr/wardlink
  curl --cert /etc/ehr/wardlink/ehr-reader.pem --cacert /etc/ehr/wardlink/root.crt https://wardlink.hospital.example:8443/fhir/metadata`,
		RunE: func(cmd *cobra.Command, args []string) error {
			k, err := t.keeper(args[0], roots)
			if err != nil {
				return err
			}
			return k.Run(cmd.Context())
		},
	}
	c.Flags().StringVar(&roots, "cacert", "", rootsUsage)
	return c
}
