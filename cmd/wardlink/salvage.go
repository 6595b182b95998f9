package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wardlink/agent/card"
	"wardlink/buffer"
	"wardlink/server/api/client"
	"wardlink/telemetry"
)

// salvageLane is what became of one lane, in batches.
type salvageLane struct {
	buffer.Salvaged
	Sent    uint64 `json:"sent"`    // journaled now
	Here    uint64 `json:"here"`    // the server had them before
	Refused uint64 `json:"refused"` // by the server
}

// salvageReport is what the command prints.
type salvageReport struct {
	Gateway  string            `json:"gateway"`
	DryRun   bool              `json:"dry_run,omitempty"`
	Lanes    []*salvageLane    `json:"lanes"`
	Refusals map[string]uint64 `json:"refusals,omitempty"` // batches by reason
	Unsigned uint64            `json:"unsigned,omitempty"` // batches whose sealing record is not signed on the card
	Problems []string          `json:"problems,omitempty"` // what is damaged or missing on the card
	Events   []string          `json:"events,omitempty"`   // ids of the acts in the log
}

// in says that everything readable is with the hospital.
func (r *salvageReport) in() bool { return len(r.Refusals) == 0 }

func (t *tool) salvage() *cobra.Command {
	s := &salvage{tool: t}
	c := &cobra.Command{
		Use: "salvage DIR", Short: "Bring in what a dead gateway left on its card", Args: exactly("directory"),
		Long: `Brings the batches that a dead gateway could not deliver to the hospital, from its card, disk or a copy of either, on any machine with
an operator's file. DIR is the root of the card, the gateway's state directory (/var/lib/wardlink-agent) or the buffer in it. Nothing is
written there; mount it read-only. Batches stay sealed on the way: neither this program nor the operator can read them. Each is brought in
once however often this is run, so a run that broke off is repeated. Damaged files are read as far as they can be.

What the board had not signed before it died cannot be proven and is refused; a new board under the gateway's id signs it, with the
card in it ('wardlink gateway replace'). A gateway that is not active needs --despite with its state.

Exit code 0: everything that can be read is in.`,
		Example: `  wardlink salvage --dry-run /media/card                      # what is there, asking no server
  wardlink salvage /media/card
  wardlink salvage --gateway icu-3-bed-7 /srv/copy/buffer     # a copy that does not say whose it is`,
		RunE: func(cmd *cobra.Command, args []string) error { return s.run(cmd.Context(), args[0]) },
	}
	c.Flags().StringVar(&s.gateway, "gateway", "", "the gateway's `ID`, where the card does not say it")
	c.Flags().StringVar(&s.despite, "despite", "", "bring it in although the gateway is in `STATE`: suspended, revoked, decommissioned")
	c.Flags().BoolVar(&s.all, "all", false, "also what was delivered and is still there, for a server that was restored since")
	c.Flags().BoolVar(&s.dry, "dry-run", false, "only show what is there; no server is asked")
	return c
}

// salvage is one run.
type salvage struct {
	*tool
	gateway, despite string
	all, dry         bool

	card   *card.Card
	client *client.Client
	report salvageReport
	held   map[string][][2]uint64 // by epoch and lane
	lanes  map[uint8]*salvageLane

	up     client.SalvageUpload
	bytes  int
	keys   map[[16]byte]bool // sealing records in up
	of     []uint8           // lane of each frame in up
	read   int64
	size   int64
	showed time.Time
}

func (s *salvage) run(ctx context.Context, dir string) (err error) {
	if s.card, err = card.Open(dir); err != nil {
		return err
	}
	if err := s.name(); err != nil {
		return err
	}
	s.report.DryRun, s.report.Problems = s.dry, s.card.Problems
	s.report.Refusals, s.lanes, s.size = map[string]uint64{}, map[uint8]*salvageLane{}, s.card.Size()
	if !s.dry {
		if s.client, err = s.tool.client(); err != nil {
			return err
		}
		if err := s.ask(ctx); err != nil {
			return err
		}
	}
	s.begin()
	lanes, problems, err := s.card.Salvage(s.all, func() error { return going(ctx) }, func(b buffer.Batch) error { return s.take(ctx, b) })
	if err == nil {
		err = s.flush(ctx)
	}
	s.clearLine()
	if err != nil {
		if !s.dry && !errors.Is(err, buffer.ErrLocked) {
			return fmt.Errorf("%w; %d batches are in: run it again, it goes on from there", err, s.sent())
		}
		return err
	}
	for i, l := range lanes {
		at := s.lane(uint8(i))
		at.Salvaged = l
		s.report.Lanes = append(s.report.Lanes, at)
	}
	for _, p := range problems {
		s.report.Problems = append(s.report.Problems, p.Path+": "+p.Problem)
	}
	if err := s.show(); err != nil {
		return err
	}
	if !s.report.in() {
		return errSaid
	}
	return nil
}

// name settles which gateway it is.
func (s *salvage) name() error {
	says := s.card.Gateway.Name
	switch {
	case s.gateway == "" && says == "" && s.dry:
		says = "unknown"
	case s.gateway == "" && says == "":
		return fmt.Errorf("the card does not say which gateway it was (%s); name it with --gateway", printable(strings.Join(s.card.Problems, "; ")))
	case s.gateway != "" && says != "" && s.gateway != says:
		return fmt.Errorf("the card is of gateway %s, not of %s", says, s.gateway)
	case says == "":
		says = s.gateway
	}
	s.report.Gateway = says
	return nil
}

// ask learns what the hospital has already.
func (s *salvage) ask(ctx context.Context) error {
	var held client.HeldAnswer
	if err := s.client.Get(ctx, s.path("held"), nil, &held); err != nil {
		return err
	}
	s.held = map[string][][2]uint64{}
	for _, h := range held.Streams {
		s.held[h.Epoch+"/"+h.Lane] = h.Runs
	}
	return nil
}

func (s *salvage) path(what string) string {
	return "/v1/gateways/" + url.PathEscape(s.report.Gateway) + "/" + what
}

func (s *salvage) lane(index uint8) *salvageLane {
	if s.lanes[index] == nil {
		s.lanes[index] = &salvageLane{}
	}
	return s.lanes[index]
}

func (s *salvage) sent() (n uint64) {
	for _, l := range s.lanes {
		n += l.Sent
	}
	return n
}

// going is nil until the run is interrupted.
func going(ctx context.Context) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return nil
}

// take is given each batch.
func (s *salvage) take(ctx context.Context, b buffer.Batch) error {
	if err := going(ctx); err != nil {
		return err
	}
	s.read += int64(len(b.Frame))
	s.progress()
	record := s.card.Sealings[b.Sealing]
	if s.dry {
		if record == nil {
			s.report.Unsigned++
		}
		return nil
	}
	if s.holds(b.ID) {
		s.lane(b.ID.Lane).Here++
		return nil
	}
	if record == nil {
		s.report.Unsigned++ // sent all the same: the server may know it from a session
	}
	more := len(b.Frame) + len(record) + 16
	if s.bytes+more > client.MaxSalvageBytes || len(s.of) == client.MaxSalvageItems {
		if err := s.flush(ctx); err != nil {
			return err
		}
	}
	if record != nil && !s.keys[b.Sealing] {
		s.keys[b.Sealing] = true
		s.up.Sealings = append(s.up.Sealings, record)
	}
	s.up.Frames, s.of, s.bytes = append(s.up.Frames, b.Frame), append(s.of, b.ID.Lane), s.bytes+more
	return nil
}

func (s *salvage) holds(id buffer.ID) bool {
	for _, r := range s.held[hex.EncodeToString(id.Epoch[:])+"/"+telemetry.Lane(id.Lane).String()] {
		if r[0] <= id.Number && id.Number <= r[1] {
			return true
		}
	}
	return false
}

// begin empties the upload. 64 bytes are for what stands around its items.
func (s *salvage) begin() {
	s.up, s.of, s.keys, s.bytes = client.SalvageUpload{}, nil, map[[16]byte]bool{}, 64
}

// salvageTries is how often one upload is sent, with a longer wait each time: a server that restarts is back within seconds.
const salvageTries = 4

// flush sends what is gathered. What the server has journaled of it is durable there once it answers.
func (s *salvage) flush(ctx context.Context) error {
	if len(s.of) == 0 {
		return nil
	}
	query := url.Values{}
	if s.despite != "" {
		query.Set("despite", s.despite)
	}
	var out client.SalvageAnswer
	var err error
	for try := range salvageTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return errors.New("interrupted")
			case <-time.After(time.Duration(try*try) * time.Second):
			}
		}
		if err = s.client.PostBytes(ctx, s.path("salvage"), query, s.up.Encode(), &out); err == nil || !client.Passing(err) {
			break
		}
	}
	if err != nil {
		return err
	}
	if len(out.Frames) != len(s.of) {
		return fmt.Errorf("the server answered for %d of %d batches", len(out.Frames), len(s.of))
	}
	for i, what := range out.Frames {
		l := s.lane(s.of[i])
		switch what {
		case "":
			l.Sent++
		case client.SalvageHere:
			l.Here++
		default:
			l.Refused++
			s.report.Refusals[printable(what)]++
		}
	}
	s.report.Events = append(s.report.Events, out.Event)
	s.begin()
	return nil
}

// progress overwrites a line on a terminal.
func (s *salvage) progress() {
	if s.json || !isTerminal(s.err) || time.Since(s.showed) < 200*time.Millisecond {
		return
	}
	s.showed = time.Now()
	done := min(20, int(20*s.read/max(1, s.size)))
	fmt.Fprintf(s.err, "\r[%s%s] %s of %s read, %d batches sent ", strings.Repeat("#", done), strings.Repeat(".", 20-done), size(s.read), size(s.size), s.sent())
}

func (s *salvage) clearLine() {
	if !s.showed.IsZero() {
		fmt.Fprint(s.err, "\r\x1b[K")
	}
}

func (s *salvage) show() error {
	if s.json {
		return s.printJSON(s.report)
	}
	fmt.Fprintf(s.out, "gateway %s\n", s.report.Gateway)
	err := s.table(func(w io.Writer) {
		if s.dry {
			fmt.Fprintln(w, "LANE\tFOUND\tDELIVERED\tWAITING\tPARKED\tDAMAGED")
		} else {
			fmt.Fprintln(w, "LANE\tFOUND\tDELIVERED\tSENT NOW\tTHERE BEFORE\tREFUSED\tDAMAGED")
		}
		for _, l := range s.report.Lanes {
			damaged := fmt.Sprint(l.Damaged)
			if l.Unknown > 0 {
				damaged += fmt.Sprintf(", and at most %d more", l.Unknown)
			}
			if s.dry {
				fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%s\n", printable(l.Lane), l.Found, l.Delivered, l.Found-l.Delivered, l.Parked, damaged)
			} else {
				fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%s\n", printable(l.Lane), l.Found, l.Delivered, l.Sent, l.Here, l.Refused, damaged)
			}
		}
	})
	if err != nil {
		return err
	}
	for _, l := range s.report.Lanes {
		if l.Evicted > 0 {
			fmt.Fprintf(s.out, "lost: %d batches of %s had been deleted for lack of room, which the hospital had not heard yet: it does by the reports on the card\n", l.Evicted, printable(l.Lane))
		}
	}
	for _, reason := range slices.Sorted(maps.Keys(s.report.Refusals)) {
		fmt.Fprintf(s.out, "refused: %d batches: %s\n", s.report.Refusals[reason], reason)
	}
	if s.dry && s.report.Unsigned > 0 {
		fmt.Fprintf(s.out, "%d batches have no signature on the card: they are refused unless the server knows their sealing period\n", s.report.Unsigned)
	}
	for _, p := range s.report.Problems {
		fmt.Fprintf(s.out, "damaged: %s\n", printable(p))
	}
	switch {
	case s.dry:
	case !s.report.in():
		fmt.Fprintf(s.out, "not everything is in: put the card into a new board, which signs what waits: wardlink gateway replace %s\n", s.report.Gateway)
	default:
		fmt.Fprintln(s.out, "everything that can be read is in")
	}
	return nil
}
