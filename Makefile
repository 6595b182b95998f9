# Everything is built static, with Go's certified FIPS 140-3 module, and reproducible from the sources (cross/).
export CGO_ENABLED := 0
export GOFIPS140 := certified
# Tests, tools and programs are compiled by the same flags, so that each package is compiled once.
export GOFLAGS := $(strip $(shell go env GOFLAGS) -trimpath)
BUILD = stamp=$$(cross/stamp) && go build -trimpath -buildvcs=false -ldflags="$$stamp"
# The agent speaks HTTP/1.1 alone; without HTTP/2 its program is half a megabyte smaller. cross/lean has what is not inlined.
AGENT := -tags nethttpomithttp2 $(shell sed -n '/^[^\#]/s/.*/-gcflags=&=-l/p' cross/lean)

# The packages that ask the database (translog's tests have both journals anyway): test runs them on SQLite with all the others, and beside them on PostgreSQL.
DATABASE := ./server/sqldb/... ./server/registry/... ./server/records/... ./server/alerts/... ./server/api/... ./server/fhir/...

.PHONY: help build cross packages packages-test repro emulated demo demo-nodes test check faults race bench bench-peers bench-records simulate storms footprint fuzz interop mutate lint vuln clean need need-postgres

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

build: ## the three programs, into bin/
	$(BUILD) -o bin/ ./cmd/wardlink ./cmd/wardlink-server
	$(BUILD) $(AGENT) -o bin/ ./cmd/wardlink-agent

demo: need build ## monitor, gateway, server on a bad day: kills, a cut network, attacks, proof; half a minute after the build
	bin/wardlink demo

demo-nodes: need need-postgres build ## the same at three ingest nodes behind HAProxy on a PostgreSQL, one of them killed mid-stream
	@scripts/need haproxy:haproxy
	bin/wardlink demo --postgres --nodes 3

test: need need-postgres ## all tests, with a real TPM emulator, and those of the database on a real PostgreSQL, too; some 9 minutes on two busy cores, and no package's may take longer than that
	@scripts/need haproxy:haproxy socat:socat python3:python3
	@scripts/recording --say
	scripts/test $(DATABASE)

check: need need-postgres build ## the long checks, in two lanes: lint, checks taken out, race detector, ARM, packages, two minutes of chaos, a sample of faults, former agents, two days of the CA's tables, a month of a thousand gateways' renewals, a hospital on PostgreSQL restored, real recordings where there are some
	@scripts/need haproxy:haproxy qemu-arm-static:qemu-user-static gcc:build-essential debootstrap:debootstrap rpm:rpm man:man-db systemd-analyze:systemd flock:util-linux
	scripts/check

faults: need ## every call by which an agent or a server writes fails, or is its last; power cuts, torn and rotten files: tables; some ten minutes
	scripts/faults

# Left out is what takes the detector minutes and shows it no goroutines: programs that are started and killed at each step, files that are hurt in each
# way. One course of the model, by a seed that is printed. RACE_SKIP=none leaves out nothing.
RACE_SKIP ?= ^Test(WriterDiesAtAStep|Kill|Damage|FaultsOfAnEviction|(Page|Torn|File)Faults|MemoryDoesNotGrowWithTheBacklog|RunsAreBounded|SelfIsNeverEvicted)$$
race: ## the concurrent packages under the race detector
	@scripts/need gcc:build-essential pg_createcluster:postgresql
	WARDLINK_SEED=$$(date +%s) CGO_ENABLED=1 GOFIPS140=off go test -race -vet=off -timeout 15m -skip '$(RACE_SKIP)' ./agent/... ./buffer/... ./server/alerts/... ./server/ca/acmedb ./server/journal/... ./server/ingest/... ./server/translog/... ./demo/...

cross: ## every program for every machine, into dist/; sizes beside goals
	cross/build dist
	cross/size dist

packages: cross ## deb and rpm for every machine, into dist/packages/; sizes and SHA-256
	cross/package dist

packages-test: need ## the amd64 packages in a throw-away Debian: install, run, upgrade, remove, purge
	@scripts/need debootstrap:debootstrap rpm:rpm man:man-db systemd-analyze:systemd
	cross/packages/test

repro: ## every program twice, in two directories: are the bytes the same? Some minutes
	cross/repro

# Left out is what an emulator cannot do (TestFaultsOfAnEviction watches system calls, which would be its own), what takes it minutes and would fail on
# 64 bits as well (kills, torn pages and evictions by the thousand), and two of the model's three courses.
# 'make emulated EMULATED_SKIP=TestFaultsOfAnEviction EMULATED_SEED=' leaves out what cannot be and nothing else: some eight minutes.
EMULATED_SEED ?= 1
EMULATED_SKIP ?= ^Test(FaultsOfAnEviction|Kill|Damage|(Page|Torn|File)Faults|MemoryDoesNotGrowWithTheBacklog|RunsAreBounded|SelfIsNeverEvicted|AFullBufferGoesOn|LiveAndBacklogShare|DeliveredGivesOutOnceMoreWhatTheReceiverLacks)$$
emulated: need ## what must hold on 32 bits, run as the oldest Raspberry Pi would; some 3 minutes
	@scripts/need qemu-arm-static:qemu-user-static
	WARDLINK_SEED=$(EMULATED_SEED) GOARCH=arm GOARM=6 go test -vet=off -timeout 15m -skip '$(EMULATED_SKIP)' -exec $(CURDIR)/cross/emulate ./buffer/... ./telemetry/... ./internal/durable

bench: need build ## figures beside goals
	scripts/bench

bench-peers: ## ours beside mosquitto and NATS JetStream under one load, beside the goals; some ten minutes (WARDLINK_BENCH_QUICK=1: two)
	scripts/bench-peers

storms: ## ten thousand gateways: idle memory, all of them back at once, one that floods; beside the goals, some six minutes
	scripts/storms

bench-records: ## records on SQLite and PostgreSQL: backlog, lag at a rate, searches among 10 million observations; some 20 minutes (RECORDS_LENGTH and others, see scripts/records)
	@scripts/need pg_ctlcluster:postgresql
	scripts/records

simulate: ## fleets of up to a million gateways, by what was measured (docs/SCALE.md); before them a prediction beside a measurement; one to three minutes
	scripts/simulate

footprint: need ## what an agent takes of memory and disk, beside goals; some 10 minutes (FOOTPRINT_SAMPLES and others, see e2e/footprint)
	scripts/footprint

fuzz: ## every fuzz target for FUZZTIME (default 10s) each
	scripts/fuzz

interop: ## enrolment against stock step and step-ca, what is issued against openssl and go-spiffe; a minute, the first time some minutes more for building step and step-ca
	scripts/interop

mutate: ## takes each check of an attestation and of its certificate out, one at a time: does a test notice? One to two minutes
	scripts/mutate

lint: ## gofmt, vet, staticcheck (pinned in go.mod)
	scripts/lint

vuln: ## known vulnerabilities in what is linked (needs the vulnerability database's host)
	go tool govulncheck ./...

clean: ## remove bin/ and dist/
	rm -rf bin dist

need-postgres:
	@scripts/need pg_ctlcluster:postgresql setpriv:util-linux

need:
	@scripts/need swtpm:swtpm swtpm_setup:swtpm-tools
