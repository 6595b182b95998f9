package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"wardlink/server"
)

// nodeCommand is 'node add', 'node list' and 'node remove'.
func nodeCommand(ctx context.Context, args []string, s streams) error {
	commands := map[string]func(context.Context, []string, streams) error{"add": addNode, "list": listNodes, "remove": removeNode}
	if len(args) > 0 {
		if run, ok := commands[args[0]]; ok {
			return run(ctx, args[1:], s)
		}
	}
	if len(args) == 1 && slices.Contains([]string{"help", "-h", "-help", "--help"}, args[0]) {
		fmt.Fprintf(s.out, "%s\n%s\n%s", helps["wardlink-server node add"][1:], helps["wardlink-server node list"][1:], helps["wardlink-server node remove"][1:])
		return nil
	}
	return usageError{errors.New("expected 'node add', 'node list' or 'node remove'; 'wardlink-server node --help' says how")}
}

func addNode(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("node add", s)
	o := server.NodeOptions{Gateways: ":8883"}
	var hosts, servers, balancers list
	fs.Var(&balancers, "balancer", "`ADDRESS` or network of a balancer before the node that sends PROXY headers, such as 10.1.0.5; may be given again")
	services := fs.String("services", server.ServiceIngest, "`SERVICE` of the node: ingest, or ca for a further process that is the CA")
	fs.StringVar(&o.Name, "name", "", "`NAME` of the node (required)")
	fs.StringVar(&o.Out, "out", "", "the node's new `DIR` (required)")
	fs.Var(&hosts, "host", "`HOST` name or address of the node's gateways' port, or of the balancer before it; may be given again")
	fs.Var(&servers, "server", "`ADDRESS` host:port of the server's gateways' port; may be given again (default: those that kits name)")
	fs.StringVar(&o.Gateways, "gateways", o.Gateways, "listen `ADDRESS` for gateways")
	fs.StringVar(&o.Health, "health", "", "listen `ADDRESS` for a balancer's checks, plain HTTP (default: none)")
	fs.StringVar(&o.Database, "database", "", "`URL` by which the node reaches the database, without user and password (default: the server's)")
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	if o.Name == "" || o.Out == "" {
		return usageError{errors.New("--name and --out are required: the node's name, such as node-1, and a new directory for it")}
	}
	o.Dir, o.Hosts, o.Server, o.Balancers = *dir, hosts, servers, balancers
	add, what := server.AddNode, "is ingest node "+o.Name+". Take it to the node's machine and leave no copy; its key and its database login are its own."
	switch *services {
	case server.ServiceIngest:
	case server.ServiceCA:
		add, what = server.AddCA, "holds the CA's keys and the server's database login. Take it to its machine and leave no copy; name its address in 'ca' of each server.yaml."
	default:
		return usageError{fmt.Errorf("--services %s: expected ingest or ca", *services)}
	}
	if err := add(ctx, o); err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(s.out).Encode(map[string]string{"name": o.Name, "dir": o.Out})
	}
	fmt.Fprintf(s.out, "%s %s\n\nNext, there:\n  wardlink-server run --dir %s\n", o.Out, what, o.Out)
	return nil
}

func listNodes(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("node list", s)
	asJSON := fs.Bool("json", false, "print JSON")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	nodes, err := server.Nodes(ctx, *dir)
	if err != nil {
		return err
	}
	if *asJSON {
		out := []map[string]any{}
		for _, n := range nodes {
			out = append(out, map[string]any{"name": n.Name, "hosts": n.Hosts, "login": n.Login, "added": n.Added, "spki_sha256": fmt.Sprintf("%x", n.SPKI)})
		}
		return json.NewEncoder(s.out).Encode(out)
	}
	w := tabwriter.NewWriter(s.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tADDED\tDATABASE LOGIN\tKEY")
	for _, n := range nodes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%x\n", n.Name, n.Added.Format(time.DateTime), n.Login, n.SPKI[:8])
	}
	return w.Flush()
}

func removeNode(ctx context.Context, args []string, s streams) error {
	fs, dir := flags("node remove", s)
	name := fs.String("name", "", "`NAME` of the node (required)")
	if err := parse(fs, args, dir); err != nil {
		return err
	}
	if *name == "" {
		return usageError{errors.New("--name is missing: the node's name; 'wardlink-server node list' has them")}
	}
	if err := server.RemoveNode(ctx, *dir, *name); err != nil {
		return err
	}
	fmt.Fprintf(s.out, "%s is no node any more; its key and its database login count for nothing\n", *name)
	return nil
}
