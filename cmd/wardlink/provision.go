package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"wardlink/agent"
	"wardlink/enroll"
	"wardlink/internal/durable"
)

func (t *tool) provision() *cobra.Command {
	return group("provision", "Prepare what gateways need", t.kit(), t.labels(), t.provisionCode())
}

func (t *tool) kit() *cobra.Command {
	var servers []string
	var out, boot, config string
	c := &cobra.Command{
		Use: "kit", Short: "Write the small public file that makes a fresh gateway one of ours", Args: none("--out"),
		Long: `Writes the kit: server addresses, roots and public keys. It holds no secret, but whoever replaces it on a gateway that is not enrolled yet
decides whom that gateway trusts; its fingerprint, which a gateway shows at its start, is printed.

With --boot the kit is written where a gateway finds it on its boot partition (DIR/wardlink/kit.json), so that one image makes two
hundred gateways: nothing on the card is about one gateway. --agent puts a configuration beside it, for all of them; without one a gateway listens for
HL7 on port 2575 for devices of private networks.`,
		Example: `  wardlink provision kit --out kit.json
  wardlink provision kit --server wardlink.hospital.example:8883 --server 10.1.2.3:8883 --out kit.json
  wardlink provision kit --boot /media/bootfs
  wardlink provision kit --boot /media/bootfs --agent agent.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var yaml []byte
			switch {
			case boot != "" && out != "":
				return errors.New("--out and --boot both say where the kit goes; choose one")
			case config != "" && boot == "":
				return errors.New("--agent goes with --boot DIR, beside the kit")
			case config != "":
				var err error
				if yaml, err = os.ReadFile(config); err != nil {
					return err
				}
				if _, err := agent.ParseConfig(yaml); err != nil {
					return fmt.Errorf("%s: %w", config, err)
				}
			}
			if info, err := os.Stat(boot); boot != "" && (err != nil || !info.IsDir()) {
				return fmt.Errorf("--boot: %s is no directory; mount the boot partition of the gateway's card there", boot)
			}
			c, err := t.client()
			if err != nil {
				return err
			}
			body, err := c.Stream(cmd.Context(), "GET", "/v1/kit", url.Values{"server": servers}, "", nil)
			if err != nil {
				return err
			}
			defer body.Close()
			data, err := io.ReadAll(body)
			if err != nil {
				return err
			}
			k, err := enroll.ParseKit(data)
			if err != nil {
				return fmt.Errorf("the server's answer: %w", err)
			}
			switch {
			case boot != "":
				return t.writeBoot(boot, data, yaml, k.ShortFingerprint())
			case out == "" || out == "-":
				_, err = t.out.Write(data)
				return err
			}
			if err := durable.WriteFile(out, data, 0o644); err != nil {
				return err
			}
			if t.json {
				return t.printJSON(map[string]string{"file": out, "fingerprint": k.ShortFingerprint()})
			}
			fmt.Fprintf(t.err, "%s, fingerprint %s: copy it to each gateway's /etc/wardlink/kit.json or its boot partition; it holds no secret\n", out, k.ShortFingerprint())
			return nil
		},
	}
	c.Flags().StringArrayVar(&servers, "server", nil, "`HOST:PORT` by which gateways reach this server, in order (default: the server's names)")
	c.Flags().StringVar(&out, "out", "", "write to `FILE` instead of standard output")
	c.Flags().StringVar(&boot, "boot", "", "write it below `DIR`, where the boot partition of a gateway's card is mounted")
	c.Flags().StringVar(&config, "agent", "", "with --boot: put this agent.yaml `FILE` beside it, once it has been checked")
	return c
}

// writeBoot puts kit and configuration on a boot partition.
func (t *tool) writeBoot(boot string, kit, config []byte, fingerprint string) error {
	dir := filepath.Join(boot, "wardlink")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	var files []string
	for _, f := range []struct {
		name string
		data []byte
	}{{"kit.json", kit}, {"agent.yaml", config}} {
		if f.data == nil {
			continue
		}
		path := filepath.Join(dir, f.name)
		if err := writeFAT(path, f.data); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		files = append(files, path)
	}
	if t.json {
		return t.printJSON(map[string]any{"files": files, "fingerprint": fingerprint})
	}
	for _, f := range files {
		fmt.Fprintf(t.out, "%s\n", f)
	}
	fmt.Fprintf(t.out, "kit fingerprint %s; unmount %s, and start the gateway from it\n", fingerprint, boot)
	return nil
}

// writeFAT replaces a file on a file system that keeps no modes: chmod(2) fails there, which durable.WriteFile would not forgive.
func writeFAT(path string, data []byte) (err error) {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}
