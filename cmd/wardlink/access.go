package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"wardlink/internal/durable"
	"wardlink/server/api/client"
)

func (t *tool) access() *cobra.Command {
	var out string
	var renew bool
	issue := &cobra.Command{
		Use: "issue NAME", Short: "Make a service account's client certificate for FHIR (24 h, reads all)", Args: exactly("account NAME"),
		Long: "Makes a key here, has the server certify it, and writes NAME.key, NAME.crt and root.crt into a folder.\n" +
			"The key never leaves this machine. Run it again before the certificate ends: with --renew the folder's files are replaced.",
		Example: `  wardlink access issue ehr-reader --out ./ehr-reader
  curl --cert ehr-reader/ehr-reader.crt --key ehr-reader/ehr-reader.key --cacert ehr-reader/root.crt \
    'https://localhost:8443/fhir/Observation?patient.identifier=urn:oid:1.2.3|4711&_count=10'
  wardlink access issue ehr-reader --renew          # before the 24 h are over, as from a daily timer`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				out = args[0]
			}
			return t.issue(cmd, args[0], out, renew)
		},
	}
	issue.Flags().BoolVar(&renew, "renew", false, "replace the files of the former certificate")
	issue.Flags().StringVar(&out, "out", "", "write into `FOLDER` (default: NAME)")
	return group("access", "Give hospital systems access to records", issue)
}

func (t *tool) issue(cmd *cobra.Command, name, out string, renew bool) error {
	keyFile := filepath.Join(out, name+".key")
	if _, err := os.Stat(keyFile); !renew && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is there already; replace it with --renew, or name another folder with --out", keyFile)
	}
	c, err := t.client()
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		return err
	}
	var grant client.AccessGrant
	if err := c.Post(cmd.Context(), "/v1/access", client.AccessRequest{Name: name, CSR: csr}, &grant); err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
		perm fs.FileMode
	}{
		{keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600},
		{filepath.Join(out, name+".crt"), []byte(grant.Certificate), 0o644},
		{filepath.Join(out, "root.crt"), []byte(grant.Root), 0o644},
	} {
		if err := durable.WriteFile(f.name, f.data, f.perm); err != nil {
			return err
		}
	}
	if t.json {
		return t.printJSON(map[string]any{"id": grant.ID, "folder": out, "not_after": grant.NotAfter})
	}
	fmt.Fprintf(t.out, "%s may read until %s; its files are in %s\n", grant.ID, grant.NotAfter.Local().Format(time.DateTime), out)
	return nil
}
