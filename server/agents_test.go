package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wardlink/audit"
	"wardlink/enroll"
	"wardlink/internal/recording"
	"wardlink/internal/spiffe"
	"wardlink/server/ca"
	"wardlink/server/keys"
	"wardlink/server/registry"
	"wardlink/telemetry"
)

// recordings are the directories of recorded agents. There is always one, or nothing would be tested.
func recordings(t *testing.T) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join("testdata", "agents", "*", recording.File))
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no recorded agents in testdata/agents: %v", err)
	}
	for i := range dirs {
		dirs[i] = filepath.Dir(dirs[i])
	}
	return dirs
}

// replay is the present server, with the keys of a recorded hospital.
type replay struct {
	*Server
	t   *testing.T
	rec recording.Recording
}

func newReplay(t *testing.T, rec recording.Recording, database []byte) *replay {
	t.Helper()
	c := DefaultConfig()
	c.TrustDomain, c.Names = rec.TrustDomain, []string{"localhost", "127.0.0.1"}
	c.Gateways, c.Hospital, c.Operators = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	dir := filepath.Join(t.TempDir(), "s")
	if err := Init(t.Context(), InitOptions{Dir: dir, Config: c, Passphrase: keys.NewPassphrase(), Operator: "operator"}); err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{
		"keys/records/records.key": {Type: "WARDLINK RECORDS KEY", Bytes: rec.RecordsKey},
		"keys/api/config.key":      {Type: "PRIVATE KEY", Bytes: rec.ConfigKey},
	} {
		if err := os.WriteFile(filepath.Join(dir, path), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if database != nil {
		if err := os.WriteFile(databaseFile(dir), database, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var log lockedLog
	s, err := New(dir, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ran; err != nil {
			t.Errorf("server: %v", err)
		}
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return &replay{s, t, rec}
}

// register enters the recorded gateway with its device key.
func (r *replay) register() {
	r.t.Helper()
	ctx, who := r.t.Context(), audit.Actor{ID: "test"}
	ek := sha256.Sum256([]byte("the EK of " + r.rec.Gateway))
	if _, err := r.registry.Import(ctx, who, "test", []registry.Gateway{{ID: r.rec.Gateway, EKs: [][32]byte{ek}, Site: "s", Ward: "w"}}); err != nil {
		r.t.Fatal(err)
	}
	if err := r.registry.AddKey(ctx, registry.Key{
		Gateway: r.rec.Gateway, EK: ek, SPKI: sha256.Sum256(r.rec.DeviceKey), Public: r.rec.DeviceKey, Serial: "7",
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}); err != nil {
		r.t.Fatal(err)
	}
}

// identity is a certificate of the gateway's id for a fresh key: the recorded one is in a TPM.
func (r *replay) identity() tls.Certificate {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	uri := &url.URL{Scheme: "spiffe", Host: r.rec.TrustDomain, Path: "/gateway/" + r.rec.Gateway}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(77), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), URIs: []*url.URL{uri},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}, r.keys.Issuing, key.Public(), r.keys.IssuingKey)
	if err != nil {
		r.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		r.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der, r.keys.Issuing.Raw}, PrivateKey: key, Leaf: leaf}
}

func (r *replay) client(cert *tls.Certificate, alpn string) *tls.Config {
	conf := spiffe.ServerTLS(pool(r.keys.Root), spiffe.ID{TrustDomain: r.rec.TrustDomain, Kind: spiffe.Service, Name: "ingest"}, alpn)
	if cert != nil {
		conf.Certificates = []tls.Certificate{*cert}
	}
	return conf
}

// session says what the agent said, and expects what it was answered: CONNACK, SUBACK and PUBACKs byte by byte and in order, and the
// documents by their topics.
func (r *replay) session(s recording.Session) {
	r.t.Helper()
	cert := r.identity()
	conn, err := tls.Dial("tcp", r.listeners.gateways.Addr().String(), r.client(&cert, "mqtt"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write(bytes.Join(s.Up, nil)); err != nil {
		r.t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	wanted, awaited := answers(r.t, s.Down)
	var got [][]byte
	for len(got) < len(wanted) || len(awaited) > 0 {
		packet, err := packetOf(in)
		if err != nil {
			r.t.Fatalf("after %d of %d answers and without %v: %v", len(got), len(wanted), awaited, err)
		}
		if packet[0]>>4 != 3 {
			got = append(got, packet)
			continue
		}
		topic := topicOf(packet)
		delete(awaited, topic)
		// An old agent is told nothing that it has no name for; what it names and has no use for it passes over.
		if _, doc, err := telemetry.ParseDown(topic); err != nil || !slices.Contains(firstDocs, doc) {
			r.t.Errorf("a document on %s, which the agent has not heard of", topic)
		}
	}
	for i := range wanted {
		if !bytes.Equal(got[i], wanted[i]) {
			r.t.Errorf("answer %d is %x; the agent was answered %x", i, got[i], wanted[i])
		}
	}
}

// firstDocs are the documents that agents of protocol 1 have names for.
var firstDocs = []telemetry.Doc{telemetry.DocConfig, telemetry.DocTime, telemetry.DocHint, telemetry.DocFirmware, telemetry.DocResend,
	telemetry.DocRefused, telemetry.DocCheckpoint}

func answers(t *testing.T, down [][]byte) (wanted [][]byte, topics map[string]bool) {
	t.Helper()
	topics = map[string]bool{}
	for _, packet := range down {
		if packet[0]>>4 == 3 {
			topics[topicOf(packet)] = true
		} else {
			wanted = append(wanted, packet)
		}
	}
	if len(wanted) < 5 || wanted[0][0]>>4 != 2 {
		t.Fatalf("a session with %d answers was recorded", len(wanted))
	}
	return wanted, topics
}

// topicOf is the topic of a PUBLISH.
func topicOf(packet []byte) string {
	at := 1
	for packet[at] >= 0x80 {
		at++
	}
	n := int(packet[at+1])<<8 | int(packet[at+2])
	return string(packet[at+3 : at+3+n])
}

func packetOf(in *bufio.Reader) ([]byte, error) {
	head, err := in.ReadByte()
	if err != nil {
		return nil, err
	}
	packet, size := []byte{head}, 0
	for shift := 0; shift <= 21; shift += 7 {
		b, err := in.ReadByte()
		if err != nil {
			return nil, err
		}
		packet = append(packet, b)
		if size |= int(b&0x7f) << shift; b < 0x80 {
			break
		}
	}
	body := make([]byte, size)
	_, err = io.ReadFull(in, body)
	return append(packet, body...), err
}

// reader is a client of FHIR with access.
func (r *replay) reader() *http.Client {
	r.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		r.t.Fatal(err)
	}
	cert, err := ca.NewCertificate(r.keys.Issuing, r.keys.IssuingKey, ca.Template{
		ID: spiffe.ID{TrustDomain: r.rec.TrustDomain, Kind: spiffe.Access, Name: "reader"}, Public: key.Public(), Life: time.Hour,
	}, time.Now())
	if err != nil {
		r.t.Fatal(err)
	}
	who := audit.Actor{ID: "test"}
	err = r.registry.Enter(r.t.Context(), who, "", registry.Identity{Kind: spiffe.Access, Name: "reader", Scope: registry.Scope{All: true}})
	if err == nil || errors.Is(err, registry.ErrConflict) { // the recorded server had one of that name
		err = r.registry.Certify(r.t.Context(), who, "", spiffe.Access, "reader", "", registry.IdentityCertificate{
			SPKI: sha256.Sum256(cert.RawSubjectPublicKeyInfo), Serial: ca.Serial(cert), NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
		})
	}
	if err != nil {
		r.t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: pool(r.keys.Root), ServerName: "localhost",
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw, r.keys.Issuing.Raw}, PrivateKey: key}},
	}}}
	r.t.Cleanup(client.CloseIdleConnections)
	return client
}

type resource = map[string]any

// readings are the recorded patient's observations by id.
func (r *replay) readings(client *http.Client) map[string]resource {
	r.t.Helper()
	answer, err := client.Get("https://" + r.listeners.hospital.Addr().String() + "/fhir/Observation?_count=1000&patient.identifier=urn:oid:1.2.3%7CCANARY7")
	if err != nil {
		r.t.Fatal(err)
	}
	defer answer.Body.Close()
	var bundle struct {
		Entry []struct{ Resource resource }
	}
	if err := json.NewDecoder(answer.Body).Decode(&bundle); err != nil || answer.StatusCode != http.StatusOK {
		r.t.Fatalf("FHIR: %s, %v", answer.Status, err)
	}
	out := map[string]resource{}
	for _, e := range bundle.Entry {
		if e.Resource["resourceType"] == "Observation" {
			out[e.Resource["id"].(string)] = e.Resource
		}
	}
	return out
}

// expect waits until FHIR shows the readings as the server of the agent's day did: the same ids, and all that it said of each but when it
// was stored.
func (r *replay) expect(client *http.Client) {
	r.t.Helper()
	var recorded []resource
	if err := json.Unmarshal(r.rec.Readings, &recorded); err != nil || len(recorded) < 5 {
		r.t.Fatalf("%d readings were recorded: %v", len(recorded), err)
	}
	var got map[string]resource
	for end := time.Now().Add(30 * time.Second); len(got) < len(recorded) && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		got = r.readings(client)
	}
	if len(got) != len(recorded) {
		r.t.Errorf("FHIR shows %d readings, expected %d", len(got), len(recorded))
	}
	for _, want := range recorded {
		id := want["id"].(string)
		for key, value := range want {
			if key != "issued" && !holds(got[id][key], value) {
				r.t.Errorf("%s, %s: %v, expected %v", id, key, got[id][key], value)
			}
		}
	}
}

// holds says whether a value of JSON has all that an older one had; later servers may say more.
func holds(got, want any) bool {
	switch want := want.(type) {
	case map[string]any:
		object, ok := got.(map[string]any)
		for key, value := range want {
			ok = ok && holds(object[key], value)
		}
		return ok
	case []any:
		list, ok := got.([]any)
		for _, value := range want {
			ok = ok && slices.ContainsFunc(list, func(g any) bool { return holds(g, value) })
		}
		return ok
	}
	return got == want
}

// TestRecordedAgents plays what older agents said to the present server: it is acknowledged, journaled, opened, stored and shown as in
// their day, and each session is known by what the agent named.
func TestRecordedAgents(t *testing.T) {
	for _, dir := range recordings(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			t.Parallel()
			rec, err := recording.Load(dir)
			if err != nil || len(rec.Sessions) < 2 {
				t.Fatalf("%d sessions, %v", len(rec.Sessions), err)
			}
			r := newReplay(t, rec, nil)
			r.register()
			for _, s := range rec.Sessions {
				r.session(s)
			}
			client := r.reader()
			r.expect(client)
			r.session(rec.Sessions[0]) // a second time it is acknowledged and changes nothing
			r.expect(client)
			if st, err := r.records.Stats(t.Context()); err != nil || st.Dead != 0 || st.Pending != 0 {
				t.Errorf("%+v, %v", st, err)
			}
		})
	}
}

// TestRecordedAgentsAskOverHTTP: what can be played of enrolment and time, whose later steps answer to fresh challenges.
func TestRecordedAgentsAskOverHTTP(t *testing.T) {
	for _, dir := range recordings(t) {
		rec, err := recording.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		r := newReplay(t, rec, nil)
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: r.client(nil, "http/1.1")}}
		defer client.CloseIdleConnections()
		played := map[string]int{}
		for _, x := range rec.Exchanges {
			if x.Path != enroll.TimePath && x.Path != "/attestation/attest" && !strings.HasSuffix(x.Path, "/directory") && !strings.HasSuffix(x.Path, "/new-nonce") {
				continue
			}
			request, err := http.NewRequest(x.Method, "https://"+r.listeners.gateways.Addr().String()+x.Path, bytes.NewReader(x.Body))
			if err != nil {
				t.Fatal(err)
			}
			request.Header = x.Header
			request.Header.Del("Accept-Encoding")
			answer, err := client.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(answer.Body)
			_ = answer.Body.Close()
			if err != nil || answer.StatusCode != x.Status {
				t.Errorf("%s %s: %s, expected %d, %v: %.300s", x.Method, x.Path, answer.Status, x.Status, err, body)
			}
			played[x.Path]++
			if x.Path == enroll.TimePath {
				asked, err := enroll.ParseTimeRequest(x.Body)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := enroll.VerifyTime(body, r.configPublic(), asked); err != nil {
					t.Errorf("time: %v", err)
				}
			} else if missing := without(t, x.Answer, body); len(missing) > 0 {
				t.Errorf("%s: the answer lacks %q, which the agent was given", x.Path, missing)
			}
		}
		if len(played) != 4 {
			t.Errorf("%s: played %v, expected time, attest, directory and new-nonce", dir, played)
		}
	}
}

// without are the members of the JSON object was that is has not.
func without(t *testing.T, was, is []byte) (missing []string) {
	t.Helper()
	if len(was) == 0 {
		return nil
	}
	var before, now map[string]json.RawMessage
	if err := json.Unmarshal(was, &before); err != nil {
		t.Fatal(err)
	}
	_ = json.Unmarshal(is, &now)
	for key := range before {
		if now[key] == nil {
			missing = append(missing, key)
		}
	}
	return missing
}
