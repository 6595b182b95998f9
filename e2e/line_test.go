package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDevicesAttachByLine runs the three examples for device vendors against a real gateway and a real server: what they send before there
// is an agent, and across its death, is in FHIR once each, and the account balances.
func TestDevicesAttachByLine(t *testing.T) {
	t.Parallel()
	w := wardOf(t, initHospital(t))
	socket := filepath.Join(w.box.dir, "v.sock")
	w.box.rewrite("sources: [", fmt.Sprintf("sources: [{id: vendors, socket: %q}, ", socket))
	w.box.reportsOften()
	example := filepath.Join(w.hospital.dir, "example")
	if out, err := exec.Command("go", "build", "-o", example, "../docs/examples/line.go").CombinedOutput(); err != nil {
		t.Fatalf("line.go: %v\n%s", err, out)
	}
	ended := make(chan error, 3)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var want []string
	for i, command := range [][]string{{"../docs/examples/line.sh"}, {"python3", "../docs/examples/line.py"}, {example}} {
		values := []string{fmt.Sprint(60 + 10*i), fmt.Sprint(61 + 10*i)}
		want = append(want, values...)
		cmd := exec.CommandContext(ctx, command[0], append(command[1:], socket)...)
		cmd.Stdin = strings.NewReader(strings.Join(values, "\n") + "\n")
		go func() {
			if out, err := cmd.CombinedOutput(); err != nil {
				err = fmt.Errorf("%s: %w\n%s", command, err, out)
				ended <- err
				return
			}
			ended <- nil
		}()
	}
	w.box.start() // the examples wait for it
	w.register()
	for range 3 {
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
	}
	for _, command := range [][]string{{"../docs/examples/line.sh"}, {example}} { // line.py takes whole numbers alone
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, command[0], socket)
		cmd.Stdin = strings.NewReader("none\n")
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), `{"error":"message: not JSON`) {
			t.Errorf("%s was to end with the gateway's answer to a line that is no message: %v\n%s", command, err, out)
		}
	}
	last := `{"id":"last","observations":[{"code":"MDC_ECG_HEART_RATE","value":99,"unit":"/min"}]}` + "\n"
	if a := lineTo(t, socket, last); a != `{"ok":"last"}`+"\n" {
		t.Fatal(a)
	}
	w.box.agent.Kill()
	w.box.start()
	if a := lineTo(t, socket, last); a != `{"ok":"last"}`+"\n" {
		t.Errorf("the same bytes after a power cut: %s", a)
	}
	if a := lineTo(t, socket, strings.Replace(last, "99", "98", 1)); !strings.HasPrefix(a, `{"error":"id: `) {
		t.Errorf("another message under the id: %s", a)
	}
	want = append(want, "99")
	slices.Sort(want)
	var got []string
	w.await("the readings in FHIR", func(context.Context) (bool, error) {
		_, found, _ := w.searchFor("patient:missing=true&code=" + url.QueryEscape("http://loinc.org|8867-4"))
		got = got[:0]
		for _, o := range found {
			got = append(got, o.ValueQuantity.Value.String())
		}
		slices.Sort(got)
		return len(got) >= len(want), nil
	})
	w.balanced(t, "icu-7")
	if !slices.Equal(got, want) {
		t.Errorf("FHIR has %v, want %v", got, want)
	}
}

// lineTo sends a line over a connection of its own, once there is a socket, and gives the answer.
func lineTo(t *testing.T, socket, line string) string {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("unix", socket)
		if err != nil {
			if time.Now().After(end) {
				t.Fatal(err)
			}
			continue
		}
		defer c.Close()
		if err := c.SetDeadline(end); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		answer, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			t.Fatalf("no answer: %v", err)
		}
		return answer
	}
}

// TestAttachShowsTheExamples: the page for device vendors holds the programs that TestDevicesAttachByLine runs, and keys that an agent reads.
func TestAttachShowsTheExamples(t *testing.T) {
	page, err := os.ReadFile("../docs/ATTACH.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"line.sh", "line.py", "line.go"} {
		text, err := os.ReadFile("../docs/examples/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(page), "\n"+string(text)+"```") {
			t.Errorf("docs/ATTACH.md does not show docs/examples/%s as it is", name)
		}
	}
}
