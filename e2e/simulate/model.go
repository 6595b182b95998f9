package main

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
)

// Costs are what the model takes from measurements; costs.json has units and sources.
type Costs struct {
	IngestBatchUS   float64 // CPU of an ingest node a batch: TLS, checks, audit row
	IngestCores     float64 // of a node
	JournalBatches  float64 // a second, of the one commit order of a cell
	RecordsBatchUS  float64 // of the one records worker: a batch without its readings
	RecordsReadUS   float64 // and each reading
	LogRows         float64 // a second, of the one writer of the log
	HandshakeMS     float64 // CPU of a node
	HandshakesNode  float64 // a second, that a node lets in
	EnrolMS         float64 // CPU of the CA for an enrolment or a renewal
	EnrolmentsCA    float64 // a second, that the CA lets in
	ConnectionKB    float64
	GatewayBatches  float64 // a second that one gateway can send of its backlog
	InFlight        float64 // batches of a gateway at most, and at the beginning of a connection
	InFlightLeast   float64 // and at least, however long acknowledgements take
	CommitMS        float64 // from the last byte of a publish to its PUBACK, without a queue
	CertificateH    float64 // life of a gateway's certificate
	BackoffFirstS   float64
	BackoffMostS    float64
	BackoffAlarmS   float64 // the most, while an alarm waits
	ObservationByte float64 // of the database
	JournalByte     float64 // of the journal, a batch
	LogByte         float64 // of the log, a batch, packed
}

func (c *Costs) fields() map[string]*float64 {
	return map[string]*float64{
		"ingest_batch_us": &c.IngestBatchUS, "ingest_cores": &c.IngestCores, "journal_batches": &c.JournalBatches, "records_batch_us": &c.RecordsBatchUS,
		"records_reading_us": &c.RecordsReadUS, "log_rows": &c.LogRows, "handshake_ms": &c.HandshakeMS, "handshakes_node": &c.HandshakesNode,
		"enrol_ms": &c.EnrolMS, "enrolments_ca": &c.EnrolmentsCA, "connection_kb": &c.ConnectionKB, "gateway_batches": &c.GatewayBatches,
		"in_flight": &c.InFlight, "in_flight_least": &c.InFlightLeast, "commit_ms": &c.CommitMS, "certificate_h": &c.CertificateH, "backoff_first_s": &c.BackoffFirstS,
		"backoff_most_s": &c.BackoffMostS, "backoff_alarm_s": &c.BackoffAlarmS, "observation_bytes": &c.ObservationByte,
		"journal_bytes": &c.JournalByte, "log_bytes": &c.LogByte,
	}
}

// Load is what one gateway sends a second.
type Load struct{ Batches, Observations, AlarmsDay float64 }

// recordsRate is how many batches of a load one records worker settles a second.
func (c *Costs) recordsRate(l Load) float64 {
	return 1e6 / (c.RecordsBatchUS + c.RecordsReadUS*l.Observations/l.Batches)
}

// CellSize is how many gateways one cell can hold with a third of its narrowest part to spare, so that a backlog can be drained.
func (c *Costs) CellSize(l Load) int {
	return max(int(min(c.recordsRate(l), c.JournalBatches, c.LogRows)*2/3/l.Batches), 1)
}

// Nodes is how many ingest nodes the live load and half as much again need.
func (c *Costs) Nodes(gateways int, l Load) int {
	return max(int(math.Ceil(1.5*float64(gateways)*l.Batches*c.IngestBatchUS/1e6/c.IngestCores)), 1)
}

// Scenario is one run of one cell.
type Scenario struct {
	Gateways, Nodes    int
	Hours, OutageHours float64 // the outage begins after an eighth of the time
	Load               Load
	Seed               uint64
	Costs              Costs
}

type kind uint8

const (
	attempt kind = iota // a gateway tries to connect
	renewal             // a gateway renews its certificate
)

type event struct {
	at      float64
	order   uint64 // among equal times, the order of their making: a run is the same each time
	gateway int32
	kind    kind
}

type events []event

func (h events) Len() int { return len(h) }
func (h events) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].order < h[j].order
}
func (h events) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *events) Push(x any)   { *h = append(*h, x.(event)) }
func (h *events) Pop() any     { old := *h; e := old[len(old)-1]; *h = old[:len(old)-1]; return e }

// draining is a gateway with a backlog: by processor sharing, all that drain get the same, so each is done when the share that everyone has got since
// the beginning reaches done.
type draining struct{ done float64 }

type drains []draining

func (h drains) Len() int           { return len(h) }
func (h drains) Less(i, j int) bool { return h[i].done < h[j].done }
func (h drains) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *drains) Push(x any)        { *h = append(*h, x.(draining)) }
func (h *drains) Pop() any          { old := *h; e := old[len(old)-1]; *h = old[:len(old)-1]; return e }

type gateway struct {
	since   float64 // its data waits since then; while it is connected: unused
	expires float64 // its certificate
	tries   uint8
	up      bool
}

// bucket is a token bucket: what is let in a second, with bursts of a second.
type bucket struct{ rate, tokens, at float64 }

func (b *bucket) take(now float64) bool {
	b.tokens, b.at = min(b.tokens+(now-b.at)*b.rate, max(b.rate, 1)), now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// queue is a first-in, first-out queue of fluid: what waits, and since when.
type queue struct {
	parts []part
	waits float64
}

type part struct{ at, amount float64 }

func (q *queue) add(at, amount float64) {
	if amount > 0 {
		q.parts, q.waits = append(q.parts, part{at, amount}), q.waits+amount
	}
}

// take serves up to an amount and gives how much it was.
func (q *queue) take(amount float64) (served float64) {
	for len(q.parts) > 0 && amount > 0 {
		p := &q.parts[0]
		n := min(p.amount, amount)
		p.amount, amount, served = p.amount-n, amount-n, served+n
		if p.amount > 1e-9 {
			break
		}
		q.parts = q.parts[1:]
	}
	q.waits = max(q.waits-served, 0)
	return served
}

func (q *queue) lag(now float64) float64 {
	if len(q.parts) == 0 || q.waits < 1e-6 {
		return 0
	}
	return now - q.parts[0].at
}

type simulation struct {
	Scenario
	r          *rand.Rand
	now        float64
	order      uint64
	events     events
	gateways   []gateway
	from, to   float64 // of the outage
	connected  int
	shares     []bucket // of handshakes, by node
	enrol      bucket
	drains     drains
	share      float64 // batches that each gateway that drains has got since the beginning
	window     float64 // batches that each of them has in flight
	backlog    float64 // batches of gateways that are connected and drain
	heldUp     float64 // live batches that ingest had no room for; they are in the gateways' buffers
	records    queue
	log        queue
	result     Result
	thisSecond float64 // handshakes and enrolments of the second under way
	enrolNow   float64
}

// Simulate runs a scenario.
func Simulate(sc Scenario) Result {
	s := &simulation{Scenario: sc, r: rand.New(rand.NewPCG(sc.Seed, 6)), gateways: make([]gateway, sc.Gateways)}
	s.from = sc.Hours * 3600 / 8
	s.to = s.from + sc.OutageHours*3600
	s.shares = make([]bucket, sc.Nodes)
	for i := range s.shares {
		s.shares[i] = bucket{rate: sc.Costs.HandshakesNode}
	}
	s.enrol, s.window = bucket{rate: sc.Costs.EnrolmentsCA}, sc.Costs.InFlight
	life := sc.Costs.CertificateH * 3600
	for i := range s.gateways { // in the middle of their lives, connected, nothing waits
		g := &s.gateways[i]
		g.up, g.expires = true, life*(0.5+0.5*s.r.Float64())
		s.at(g.expires-life/2*(1-0.1*s.r.Float64()), i, renewal)
	}
	s.connected = sc.Gateways
	for second := range int(sc.Hours * 3600) {
		s.second(float64(second))
	}
	s.result.finish(s)
	return s.result
}

func (s *simulation) at(t float64, gateway int, k kind) {
	s.order++
	heap.Push(&s.events, event{at: t, order: s.order, gateway: int32(gateway), kind: k})
}

func (s *simulation) out() bool { return s.now >= s.from && s.now < s.to }

// second takes one: what happens in it, then what flows in it.
func (s *simulation) second(begin float64) {
	s.now, s.thisSecond, s.enrolNow = begin, 0, 0
	if s.OutageHours > 0 && begin >= s.from && s.connected > 0 && begin < s.to {
		s.cut()
	}
	for len(s.events) > 0 && s.events[0].at < begin+1 {
		e := heap.Pop(&s.events).(event)
		s.now = max(e.at, begin)
		switch e.kind {
		case attempt:
			s.attempt(int(e.gateway))
		case renewal:
			s.renew(int(e.gateway))
		}
	}
	s.now = begin
	s.flow()
}

// cut ends all connections. What drained goes on later; all of it waits from now on as if it had come evenly, which only the sums need.
func (s *simulation) cut() {
	for i := range s.gateways {
		if g := &s.gateways[i]; g.up {
			g.up, g.since, g.tries = false, s.now, 0
			// In a long outage nothing comes of all but the last attempts, and by then their times are spread as if all had been made.
			s.at(max(s.now, s.to-4*s.Costs.BackoffMostS)+s.backoff(g), i, attempt)
		}
	}
	s.connected = 0

	s.heldUp += s.backlog
	s.backlog, s.drains = 0, nil
}

// backoff is the agent's law: full jitter below a bound that doubles; a gateway where an alarm waits has a lower one.
func (s *simulation) backoff(g *gateway) float64 {
	most := s.Costs.BackoffMostS
	if waits := 1 - math.Exp(-s.Load.AlarmsDay/86400*(s.now-g.since)); s.r.Float64() < waits {
		most = s.Costs.BackoffAlarmS
	}
	bound := min(s.Costs.BackoffFirstS*math.Pow(2, float64(g.tries)), most)
	g.tries = min(g.tries+1, 30)
	return bound * s.r.Float64()
}

// attempt is one try to connect: to a node by the balancer's choice, if it is let in there, with a certificate that is renewed first if it is over.
func (s *simulation) attempt(i int) {
	g := &s.gateways[i]
	if g.up {
		return
	}
	if s.out() {
		s.at(s.now+s.backoff(g), i, attempt)
		return
	}
	if !s.shares[s.r.IntN(len(s.shares))].take(s.now) {
		s.result.Refused++
		s.at(s.now+s.backoff(g), i, attempt)
		return
	}
	s.thisSecond++
	if s.now > g.expires {
		if !s.enrol.take(s.now) {
			s.result.Refused++
			s.at(s.now+s.backoff(g), i, attempt)
			return
		}
		s.renewed(i)
	}
	waited := s.now - g.since
	g.up, g.tries = true, 0
	s.connected++
	if s.connected == s.Gateways && s.now > s.to && s.result.BackAfter == 0 {
		s.result.BackAfter = s.now - s.to
	}
	// What came while it was away, and its part of what ingest had no room for.
	amount := waited*s.Load.Batches + s.heldUp/float64(s.Gateways-s.connected+1)
	s.heldUp -= s.heldUp / float64(s.Gateways-s.connected+1)
	s.result.produced += waited * s.Load.Batches
	s.backlog += amount
	heap.Push(&s.drains, draining{s.share + amount})
}

// renewed gives a gateway a new certificate and says when it is to be renewed: at half its life, with a tenth of jitter.
func (s *simulation) renewed(i int) {
	life := s.Costs.CertificateH * 3600
	s.gateways[i].expires = s.now + life
	s.enrolNow++
	s.result.Renewals++
	s.at(s.now+life/2*(1+0.1*s.r.Float64()), i, renewal)
}

func (s *simulation) renew(i int) {
	g := &s.gateways[i]
	if g.expires-s.now > s.Costs.CertificateH*3600*0.55 {
		return // it was renewed when it came back
	}
	if !g.up || !s.enrol.take(s.now) {
		s.at(s.now+60+240*s.r.Float64(), i, renewal) // as the agent: tried again within minutes; at its next connection at the latest
		return
	}
	s.thisSecond++ // the second connection of a renewal
	s.renewed(i)
}

// flow moves one second's batches: gateways to the journal, alarms first, then live ones, then backlog; the journal to records and the log.
func (s *simulation) flow() {
	c := &s.Costs
	live := float64(s.connected) * s.Load.Batches
	s.result.produced += live
	// Handshakes take processor time of the nodes before batches do; a tenth is always left.
	room := float64(s.Nodes) * c.IngestCores * 1e6 / c.IngestBatchUS
	room = min(max(room-s.thisSecond*c.HandshakeMS*1000/c.IngestBatchUS, room/10), c.JournalBatches)
	s.pace(min(float64(len(s.drains))*s.window, s.backlog) / room)
	// Ingest serves the sessions in which an alarm waits first: before an alarm stands what its own gateway has in flight, and what those have that
	// have an alarm in the same second.
	ahead := min(s.window*(1+float64(s.connected)*s.Load.AlarmsDay/86400), s.backlog)
	took := 0.0
	if s.connected > 0 {
		took = min(live+s.heldUp, room)
		if s.connected < s.Gateways {
			took = min(live, room) // what is held up is of gateways that are away too
		}
	}
	s.heldUp = max(s.heldUp+live-took, 0)
	drained := s.drain(room - took)
	s.records.add(s.now, took+drained)
	s.log.add(s.now, took+drained)
	stored := s.records.take(c.recordsRate(s.Load))
	logged := s.log.take(c.LogRows)
	s.result.second(s, took+drained, stored, logged, ahead/room+c.CommitMS/1000)
}

// pace is what agents make of how long acknowledgements take (agent/uplink/pace.go): after more than 4 s half as much is in flight, within a second
// twice as much.
func (s *simulation) pace(delay float64) {
	switch {
	case len(s.drains) == 0:
		s.window = s.Costs.InFlight
	case delay > 4:
		s.window = max(s.window/2, s.Costs.InFlightLeast)
	case delay < 1:
		s.window = min(s.window*2, s.Costs.InFlight)
	}
}

// drain gives those that drain what is left of ingest, the same to each.
func (s *simulation) drain(room float64) (drained float64) {
	for room > 1e-9 && len(s.drains) > 0 && drained < s.Costs.GatewayBatches*float64(len(s.drains)) {
		n := float64(len(s.drains))
		step := min(room/n, s.Costs.GatewayBatches-drained/n, s.drains[0].done-s.share)
		if step > 0 {
			s.share, drained, room = s.share+step, drained+step*n, room-step*n
		}
		for len(s.drains) > 0 && s.drains[0].done-s.share < 1e-9 {
			heap.Pop(&s.drains)
		}
		if step <= 0 {
			break
		}
	}
	s.backlog = max(s.backlog-drained, 0)
	return drained
}

// Result is what a run shows.
type Result struct {
	BackAfter   float64 // seconds from the outage's end to the last gateway's connection; 0: none, or not all came back
	DrainAfter  float64 // and until no gateway has a backlog
	CaughtUp    float64 // and until records and log have settled all
	RecordsLag  float64 // longest, seconds
	LogLag      float64
	AlarmMS     float64 // longest, from a connected gateway's alarm to its PUBACK
	SteadyLag   float64 // of records, at the outage's beginning
	Handshakes  float64 // most in a second
	Enrolments  float64
	Refused     int // attempts that were not let in
	Renewals    int
	Cores       float64 // ingest's and the records worker's, live load alone
	MemoryMB    float64 // of connections
	DiskGBDay   float64
	Unconnected int // at the end
	Batches     float64

	produced, journaled, stored, logged float64
	buffered, recordsWait, logWait      float64
}

// second notes what one second showed.
func (r *Result) second(s *simulation, journaled, stored, logged, alarm float64) {
	r.journaled, r.stored, r.logged = r.journaled+journaled, r.stored+stored, r.logged+logged
	r.Handshakes, r.Enrolments = max(r.Handshakes, s.thisSecond), max(r.Enrolments, s.enrolNow)
	lag := s.records.lag(s.now)
	if s.now < s.from {
		r.SteadyLag = lag
	}
	r.RecordsLag, r.LogLag = max(r.RecordsLag, lag), max(r.LogLag, s.log.lag(s.now))
	if s.connected > 0 {
		r.AlarmMS = max(r.AlarmMS, alarm*1000)
	}
	if s.now >= s.to && s.OutageHours > 0 {
		if r.DrainAfter == 0 && s.connected == s.Gateways && s.backlog < 1 && s.heldUp < 1 {
			r.DrainAfter = s.now - s.to + 1
		}
		if r.CaughtUp == 0 && r.DrainAfter > 0 && s.records.lag(s.now) < 2 && s.log.lag(s.now) < 2 {
			r.CaughtUp = s.now - s.to + 1
		}
	}
}

func (r *Result) finish(s *simulation) {
	end := s.Hours * 3600
	for i := range s.gateways {
		if g := &s.gateways[i]; !g.up {
			r.Unconnected++
			waits := (end - g.since) * s.Load.Batches
			r.produced, r.buffered = r.produced+waits, r.buffered+waits
		}
	}
	r.buffered += s.backlog + s.heldUp
	r.recordsWait, r.logWait = s.records.waits, s.log.waits
	c, live := s.Costs, float64(s.Gateways)*s.Load.Batches
	r.Cores = live*c.IngestBatchUS/1e6 + live/c.recordsRate(s.Load) + live/c.LogRows
	r.MemoryMB = float64(s.Gateways) * c.ConnectionKB / 1024
	r.DiskGBDay = 86400 * float64(s.Gateways) * (s.Load.Observations*c.ObservationByte + s.Load.Batches*(c.JournalByte+c.LogByte)) / 1e9
	r.Batches = r.produced
}

// Check holds the run to its own books: what gateways made is journaled or in their buffers, what is journaled is settled or waits.
func (r *Result) Check() error {
	for _, b := range []struct {
		what      string
		made, has float64
	}{
		{"made by gateways, journaled or buffered", r.produced, r.journaled + r.buffered},
		{"journaled, stored or waiting for records", r.journaled, r.stored + r.recordsWait},
		{"journaled, logged or waiting for the log", r.journaled, r.logged + r.logWait},
	} {
		if diff := math.Abs(b.made - b.has); diff > 1e-6*b.made+1 {
			return fmt.Errorf("the simulation's books do not balance: %s: %.1f and %.1f batches", b.what, b.made, b.has)
		}
	}
	return nil
}
