package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"wardlink/internal/child"
	"wardlink/internal/syscalltest"
)

// Parts of names that differ from one life to the next: a segment's number, and which file of an A/B pair is written.
var (
	numbered = regexp.MustCompile(`[0-9a-f]{16}`)
	paired   = regexp.MustCompile(`\.[ab](\.tmp)?$`)
)

// faultWard is a hospital with one enrolled gateway, for one life after the other: all that was sent in former ones must be there in the next.
type faultWard struct {
	*ward
	sent   int
	killed bool
}

func newFaultWard(t *testing.T) *faultWard {
	f := &faultWard{ward: newWard(t, false)}
	f.takes("M1")
	f.awaitObservations(1)
	f.sent = 1
	f.box.agent.Stop()
	f.proc.Stop()
	return f
}

// life is one life of both programs, of which one may be under watch; a message is sent, and both are stopped once FHIR has all that was ever
// sent, once. Whichever program ends meanwhile is started again, as its service manager would.
func (f *faultWard) life(t *testing.T, i *injector, server bool) {
	t.Helper()
	watch := syscalltest.Watch{Decide: i.decide}
	serve, run := (*syscalltest.Watch)(nil), &watch
	if server {
		serve, run = &watch, nil
	}
	f.killed = false
	f.proc = f.program(t, serve, "server", "wardlink-server", "run", "--dir", f.server())
	f.box.agent = f.program(t, run, "box/agent", "wardlink-agent", "run", "--config", f.box.config())
	defer func() {
		f.box.agent.Stop()
		f.proc.Stop()
		if server { // the next life begins with what a kill left
			f.proc = f.program(t, nil, "server", "wardlink-server", "run", "--dir", f.server())
			until := time.Now().Add(20 * time.Second)
			for asked := time.Now(); f.ready(context.Background()) != "ready" && asked.Before(until); asked = time.Now() {
				time.Sleep(child.Rest(time.Since(asked)))
			}
			f.proc.Kill()
		}
	}()
	control, acked, said := fmt.Sprintf("N%d", f.sent), false, ""
	f.sent++
	began := time.Now()
	for time.Since(began) < 90*time.Second {
		asked := time.Now()
		if f.proc.Ended() {
			f.ended(t, i, server, "server", "server started")
			said = "its start was refused, or it was killed"
			f.proc = f.program(t, serve, "server", "wardlink-server", "run", "--dir", f.server())
		}
		if f.box.agent.Ended() {
			f.ended(t, i, !server, "box/agent", "agent started")
			f.box.agent = f.program(t, run, "box/agent", "wardlink-agent", "run", "--config", f.box.config())
		}
		if !acked {
			answer, err := exchangeOnce(f.box.mllp, vitals(control))
			acked = err == nil && strings.Contains(answer, "MSA|CA|"+control)
		}
		ready := f.ready(t.Context())
		if i.lasting && i.hit() && !i.isLifted() && server && ready == "not ready: journal" {
			said = ready
			i.lift()
		}
		if i.lasting && i.hit() && (!server || time.Since(began) > 30*time.Second) && time.Since(began) > 3*time.Second {
			i.lift()
		}
		if !acked || f.backlog(t.Context()) != 0 {
			time.Sleep(child.Rest(time.Since(asked)))
			continue // each read is a commit of the journal's; a life's own commits come first
		}
		count, err := f.observations()
		if err == nil && count > f.sent {
			t.Fatalf("%d observations of %d messages", count, f.sent)
		}
		if damaged, _ := filepath.Glob(filepath.Join(f.server(), "journal", "*.damaged")); len(damaged) > 0 {
			t.Fatalf("no disk lost a byte, and the journal has set aside %v", damaged)
		}
		if err == nil && count == f.sent && (!server || ready == "ready") {
			commits := (i.at.call == "fdatasync" || i.at.call == "pwrite64") && strings.HasSuffix(i.at.file, ".seg")
			if i.lasting && commits && i.hit() && server && said == "" {
				t.Error("a journal that cannot be written was not named by /readyz")
			}
			return
		}
		time.Sleep(child.Rest(time.Since(asked)))
	}
	count, err := f.observations()
	t.Fatalf("%s: acknowledged %v; FHIR shows %d of %d observations (%v), /readyz %q, %d batches wait", control, acked, count, f.sent, err, f.ready(t.Context()), f.backlog(t.Context()))
}

func (f *faultWard) program(t *testing.T, w *syscalltest.Watch, log, name string, args ...string) *child.Process {
	t.Helper()
	logFile := filepath.Join(f.hospital.dir, log+".log")
	if w != nil {
		return syscalltest.Start(t, *w, logFile, program(name), args...)
	}
	p, err := child.Start(name, logFile, program(name), args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

// ended judges a program that has ended by itself: it was killed, once, or its start was refused by the disk.
func (f *faultWard) ended(t *testing.T, i *injector, watched bool, log, up string) {
	t.Helper()
	words, _ := os.ReadFile(filepath.Join(f.hospital.dir, log+".log"))
	last := string(words[max(0, len(words)-1500):])
	switch {
	case watched && i.hit() && i.verdict == syscalltest.Kill && !f.killed:
		f.killed = true
	case watched && i.hit() && i.verdict != syscalltest.Kill && strings.Contains(lastLine(last), i.dir) && !strings.Contains(lastLine(last), up):
		i.lift()
	default:
		t.Fatalf("%s has ended by itself:\n%s", log, last)
	}
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// observations counts what FHIR shows of the patient, and errs where one is there twice.
func (f *faultWard) observations() (int, error) {
	url := "https://" + f.hospital.hospital + "/fhir/Observation?_count=100&patient.identifier=urn:oid:1.2.3%7CCANARY7"
	ids := map[string]bool{}
	n := 0
	for url != "" {
		resp, err := f.reader.Get(url)
		if err != nil {
			return 0, err
		}
		var body struct {
			Link  []struct{ Relation, URL string }
			Entry []struct {
				Resource struct{ ID, ResourceType string }
			}
		}
		err = json.NewDecoder(resp.Body).Decode(&body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("%s: %w", resp.Status, err)
		}
		url = ""
		for _, l := range body.Link {
			if l.Relation == "next" {
				url = l.URL
			}
		}
		for _, e := range body.Entry {
			if e.Resource.ResourceType == "Observation" {
				ids[e.Resource.ID] = true
				n++
			}
		}
	}
	if n != len(ids) {
		return n, fmt.Errorf("%d observations have %d ids", n, len(ids))
	}
	return n, nil
}

// wardMatrix runs a matrix over lives of a hospital's programs, in two hospitals side by side: most of a life is waiting.
func wardMatrix(t *testing.T, server bool, dir func(*faultWard) string, wanted func(file string) bool) {
	t.Helper()
	free := make(chan *faultWard, 2)
	pilot := newFaultWard(t)
	at := func(w *faultWard, p point, f fault) *injector {
		i := newInjector(dir(w), p, f)
		i.norm, i.wanted = func(file string) string {
			return paired.ReplaceAllString(numbered.ReplaceAllString(file, "#"), ".ab$1")
		}, wanted
		return i
	}
	pilot.life(t, at(pilot, point{}, fault{}), server)
	i := at(pilot, point{}, fault{}) // the second life: the first one makes files that later ones have
	pilot.life(t, i, server)
	free <- pilot
	if wholeFaults {
		free <- newFaultWard(t)
	}
	runMatrix(t, i.met(), true, func(t *testing.T, p point, f fault) bool {
		w := <-free
		defer func() { free <- w }()
		i := at(w, p, f)
		w.life(t, i, server)
		return i.hit()
	})
}

// TestJournalFaults: every call by which the server writes its journal meets EIO, ENOSPC or SIGKILL, each time in the course of a start and a
// message's way. What a gateway was told is kept (and deletes) is shown by FHIR, once; the server does not die of an error; while one lasts,
// /readyz names the journal; afterwards all goes on by itself.
func TestJournalFaults(t *testing.T) {
	t.Parallel()
	wardMatrix(t, true, func(w *faultWard) string { return filepath.Join(w.server(), "journal") }, func(string) bool { return true })
}

// TestDrainFaults: the same of what an enrolled agent writes besides segments, while it delivers: acknowledgements, signed sealing records, the
// time, the log's checkpoint, the configuration.
func TestDrainFaults(t *testing.T) {
	t.Parallel()
	wardMatrix(t, false, func(w *faultWard) string { return w.box.state() }, func(file string) bool { return !strings.Contains(file, ".seg") })
}
