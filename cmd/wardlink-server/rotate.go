package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"wardlink/server"
	"wardlink/server/ca"
)

// takenUp is how long 'rotate' waits for a running server, which looks every five seconds.
const takenUp = 15 * time.Second

func rotate(ctx context.Context, args []string, s streams) error {
	if len(args) > 0 && args[0] == "api" {
		return rotateAPI(ctx, args[1:], s)
	}
	args, err := only("rotate", "issuing", args)
	if err != nil {
		return err
	}
	fs, dir := flags("rotate issuing", s)
	passFile := fs.String("passphrase-file", "", "read the recovery passphrase from `FILE` (default: standard input)")
	wait := fs.Duration("wait", takenUp, "how long to wait for the running server to take it up; 0 prepares only")
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	passphrase, err := readPassphrase(*passFile, s)
	if err != nil {
		return err
	}
	cert, err := server.PrepareIssuing(ctx, *dir, passphrase)
	if err != nil {
		return err
	}
	end := cert.NotAfter.UTC().Format("2006-01-02")
	if !*asJSON {
		fmt.Fprintf(s.out, "made      the next issuing CA, serial %s, until %s\n", ca.Serial(cert), end)
		if *wait > 0 {
			fmt.Fprintf(s.err, "waiting up to %s for the running server to take it up\n", *wait)
		}
	}
	waiting, cancel := context.WithTimeout(ctx, *wait)
	defer cancel()
	inUse, err := server.AwaitIssuing(waiting, *dir)
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(s.out).Encode(map[string]any{"serial": ca.Serial(cert), "not_before": cert.NotBefore.UTC(), "not_after": cert.NotAfter.UTC(), "in_use": inUse})
	}
	if inUse {
		fmt.Fprintln(s.out, "in use    the former key is destroyed; what the former CA issued stays good until it ends")
	} else {
		fmt.Fprintln(s.out, "prepared  no running server has taken it up yet; the next 'wardlink-server run' does")
	}
	return nil
}

// rotateAPI makes the identity by which a process with the service api asks those with the service ca.
func rotateAPI(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("rotate api", s)
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	cert, err := server.MakeAPIIdentity(ctx, *dir)
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(s.out).Encode(map[string]any{"serial": ca.Serial(cert), "not_after": cert.NotAfter.UTC()})
	}
	fmt.Fprintf(s.out, "made      the api's identity, serial %s, until %s; from now on it renews itself\n", ca.Serial(cert), cert.NotAfter.UTC().Format(time.DateTime))
	return nil
}
