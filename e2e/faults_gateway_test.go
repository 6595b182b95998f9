package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"wardlink/enroll/enrolltest"
	"wardlink/internal/child"
	"wardlink/internal/syscalltest"
	"wardlink/telemetry"
	"wardlink/telemetry/seal"
)

// lone is a gateway that stands alone: no TPM, no network, a monitor that sends each message until it is acknowledged, and a service
// manager that starts the agent again. It keeps the account that the agent's files are held against.
type lone struct {
	t     *testing.T
	dir   string
	mllp  string
	key   seal.PrivateKey
	agent *child.Process
	watch *syscalltest.Watch // of every start; nil: none

	acked   map[string]bool // by control id
	starts  int
	began   int64       // where the last start's words begin in the log
	mayDie  func() bool // whether the end of an agent is the test's own doing
	refused func(n int) // told that a message was sent n times without an acknowledgement
}

// newLone makes a gateway in an empty directory. The hospital's records key is the test's, so that it can read what the agent sealed.
func newLone(t *testing.T, key seal.PrivateKey, kit []byte) *lone {
	t.Helper()
	l := &lone{t: t, dir: folder(t), mllp: freeAddr(t), key: key, acked: map[string]bool{}, mayDie: func() bool { return false }, refused: func(int) {}}
	text := fmt.Sprintf("kit: %s/kit.json\nstate: %s\ntpm: swtpm:%s/none\nsources: [{id: bed-1, mllp: %q}]\nbuffer: {cap: 64MB}\nconsole: %s/none/issue\n",
		l.dir, l.state(), l.dir, l.mllp, l.dir)
	if err := os.WriteFile(l.config(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.dir, "kit.json"), kit, 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lone) config() string { return filepath.Join(l.dir, "agent.yaml") }
func (l *lone) state() string  { return filepath.Join(l.dir, "state") }
func (l *lone) log() string    { return filepath.Join(l.dir, "agent.log") }
func (l *lone) words() string  { text, _ := os.ReadFile(l.log()); return string(text) }

// loneKit is the kit of a hospital that nobody answers for, and its records key.
func loneKit(t *testing.T) (seal.PrivateKey, []byte) {
	t.Helper()
	records, err := seal.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return records, enrolltest.Kit(t, "ward.example", "127.0.0.1:1", records.Public())
}

// start starts the agent, as the service manager does at boot and whenever it ended.
func (l *lone) start() {
	l.t.Helper()
	if l.starts++; l.starts > 12 {
		l.t.Fatalf("the agent was started %d times and does not stay:\n%s", l.starts, l.words())
	}
	if info, err := os.Stat(l.log()); err == nil {
		l.began = info.Size()
	}
	args := []string{"run", "--config", l.config()}
	if l.watch != nil {
		l.agent = syscalltest.Start(l.t, *l.watch, l.log(), program("wardlink-agent"), args...)
		return
	}
	var err error
	if l.agent, err = child.Start("agent", l.log(), program("wardlink-agent"), args...); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(l.agent.Kill)
}

// deliver sends a message until it is acknowledged, and starts the agent again where it has ended.
func (l *lone) deliver(control, msg string) {
	l.t.Helper()
	deadline := time.Now().Add(40 * time.Second)
	for n := 1; time.Now().Before(deadline); n++ {
		answer, err := l.try(msg)
		if err == nil && strings.Contains(answer, "MSA|CA|"+control) {
			l.acked[control] = true
			return
		}
		if err == nil {
			l.t.Fatalf("%s is answered %q", control, answer)
		}
		if l.agent.Ended() {
			l.ended()
			l.start()
			n = 0
			continue
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			l.refused(n)
		}
		time.Sleep(5 * time.Millisecond)
	}
	l.t.Fatalf("%s is not acknowledged; the agent says\n%s", control, l.words())
}

// ended judges an agent that has ended by itself. A start that the disk refuses may say so, with the place, and end: it is tried again. An
// agent that is up stays up.
func (l *lone) ended() {
	l.t.Helper()
	if l.mayDie() {
		return
	}
	words := l.words()[l.began:]
	if strings.Contains(words, "agent started") {
		l.t.Errorf("the agent died:\n%s", words)
	} else if !strings.Contains(words, l.state()) {
		l.t.Errorf("the agent refuses to start and does not name the place:\n%s", words)
	}
	l.refused(2) // for what lasts would keep it from starting for ever
}

// runFor runs a program for a while at most and gives all that it says.
func runFor(d time.Duration, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	out, err := exec.CommandContext(ctx, program(name), args...).CombinedOutput()
	return string(out), err
}

func (l *lone) try(msg string) (string, error) { return exchangeOnce(l.mllp, msg) }

// exchangeOnce sends a message over a connection of its own and gives the answer.
func exchangeOnce(mllp, msg string) (string, error) {
	conn, err := net.Dial("tcp", mllp)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "\x0b"+msg+"\x1c\r"); err != nil {
		return "", err
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	return bufio.NewReader(conn).ReadString('\x1c')
}

// vitals and alarm are messages of the two lanes.
func vitals(control string) string { return oru("ORU^R01^ORU_R01", control) }
func alarm(control string) string  { return oru("ORU^R40^ORU_R40", control) }

func oru(kind, control string) string {
	return "MSH|^~\\&|MON|ICU|WL|WL|20261122120000+0000||" + kind + "|" + control + "|T|2.6|||AL|NE\r" +
		"PID|||CANARY7^^^HOSP&1.2.3&ISO\rOBR|1|||X|||20261122120000+0000\r" +
		"OBX|1|NM|147842^MDC_ECG_HEART_RATE^MDC|1.5.1.1|72|264864^MDC_DIM_BEAT_PER_MIN^MDC|||||R\r"
}

// checked is what 'wardlink-agent buffer check' says.
type checked struct {
	Damaged  []string `json:"damaged"`
	Findings []struct{ File, Text string }
}

func (l *lone) check() (c checked) {
	l.t.Helper()
	out, err := exec.Command(program("wardlink-agent"), "buffer", "check", "--json", "--config", l.config()).Output()
	if jerr := json.Unmarshal(out, &c); jerr != nil {
		l.t.Fatalf("buffer check: %v, %v\n%s", err, jerr, out)
	}
	if (err == nil) != (len(c.Findings) == 0) {
		l.t.Fatalf("buffer check found %d things and exits %v", len(c.Findings), err)
	}
	return c
}

// kept reads the buffer's files by their specification (buffer/FORMAT.md), with nothing of package buffer, and opens every frame in
// them with the hospital's key: the control ids of all messages, and how often each is there.
func (l *lone) kept() map[string]int {
	l.t.Helper()
	files, err := filepath.Glob(filepath.Join(l.state(), "buffer", "*.seg"))
	if err != nil {
		l.t.Fatal(err)
	}
	got := map[string]int{}
	for _, path := range files {
		if err := l.keptIn(path, got); err != nil {
			l.t.Fatalf("%s: %v", path, err)
		}
	}
	return got
}

func (l *lone) keptIn(path string, got map[string]int) error {
	db, err := bbolt.Open(path, 0o400, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	defer db.Close()
	return db.View(func(tx *bbolt.Tx) error {
		openers := map[string]*seal.Opener{}
		err := tx.Bucket([]byte("sealings")).ForEach(func(id, v []byte) error {
			record, err := seal.ParseRecord(v[:len(v)-4])
			if err != nil {
				return err
			}
			openers[string(id)], err = seal.NewOpener(l.key, record)
			return err
		})
		if err != nil {
			return err
		}
		batches := tx.Bucket([]byte("batches"))
		return batches.ForEach(func(number, _ []byte) error {
			batch := batches.Bucket(number)
			o := openers[string(batch.Get([]byte("m"))[8:24])]
			if o == nil {
				return fmt.Errorf("batch %x has no sealing record", number)
			}
			_, plain, err := o.Open(batch.Get([]byte("z")))
			if err != nil {
				return err
			}
			b, err := telemetry.Decode(plain)
			for _, m := range b.Messages {
				got[m.ControlID]++
			}
			return err
		})
	})
}

// holds is the oracle: what was acknowledged is there.
func (l *lone) holds() {
	l.t.Helper()
	got := l.kept()
	for control := range l.acked {
		if got[control] == 0 {
			l.t.Errorf("%s was acknowledged and is not in the buffer", control)
		}
	}
}
