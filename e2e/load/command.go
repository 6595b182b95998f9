package load

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"strconv"
	"syscall"
)

// Command is a benchmark's main function: it runs until run returns, whose context ends at Ctrl-C or SIGTERM. What went wrong is told as name's, and
// the program's exit code is 1 then.
func Command(name string, run func(ctx context.Context, args []string) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, name+":", err)
		os.Exit(1)
	}
}

// Variable is an environment variable's number, or what counts without it. One that is no number ends the program: figures taken on other terms
// than those that were asked for are worse than none.
func Variable(name string, otherwise float64) float64 {
	v, err := variable(name, otherwise)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return v
}

func variable(name string, otherwise float64) (float64, error) {
	text := os.Getenv(name)
	if text == "" {
		return otherwise, nil
	}
	v, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, fmt.Errorf("environment variable %s=%q: expected a number, such as %g", name, text, otherwise)
	}
	return v, nil
}

// WriteJSON writes a benchmark's figures to a file; "" is none.
func WriteJSON(file string, figures any) error {
	if file == "" {
		return nil
	}
	data, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}
