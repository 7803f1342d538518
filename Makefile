# Holdfast. `make help` lists the targets; the two to begin with are demo and test.

export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
BIN     := build/bin
LINT_VERSION := v2.15.0
LINT    := $(BIN)/golangci-lint-$(LINT_VERSION)
RELEASE := $(shell git describe --tags --exact-match 2>/dev/null)

# Tests run real mounts and real databases: two packages at once are enough.
GO_TEST := go test -p 2 -timeout 25m
SEED    ?= 1
RUNS    ?= 1000
DURATION ?= 10m
VOLUMES ?= 1000
RECORDS ?= 10000

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build build/holdfast
	CGO_ENABLED=0 go build -trimpath -ldflags "-X main.release=$(RELEASE)" -o build/holdfast ./cmd/holdfast

.PHONY: demo
demo: ## Show it: a cluster on this machine, a database, a power cut (root, about two minutes)
	scripts/prerequisites.sh demo
	$(MAKE) --no-print-directory build
	build/holdfast demo

.PHONY: test
test: ## Run all tests, then slices of the simulation and of chaos (root)
	scripts/prerequisites.sh test chaos
	$(GO_TEST) ./...
	$(GO_TEST) ./replication/sim -run '^TestSeeds$$' -sim.seed=1000 -sim.runs=200
	$(GO_TEST) ./replication ./node/agent -tags mutations -run '^(TestOrders|TestRemovals)NoticeMutations$$'
	$(GO_TEST) ./replication/sim -tags mutations -run '^TestMutations$$' -sim.mutation=AcceptOlder,ReadRebuilding,FlushNothing,NoReconcile,KeepOldRecord,Unseen
	$(MAKE) --no-print-directory chaos DURATION=2m ARGS='-wait 20m'

.PHONY: race
race: ## Run all tests under the race detector (root)
	scripts/prerequisites.sh test race
	CGO_ENABLED=1 $(GO_TEST) -timeout 50m -race ./...

.PHONY: test-vm
test-vm: ## Device front ends and power cuts on Debian's kernels, in emulated machines (root, half an hour to an hour)
	scripts/prerequisites.sh test vm
	scripts/vm-kernels.sh
	go test -tags vm -count=1 -v -timeout 4h $(ARGS) ./test-vm

.PHONY: sim
sim: ## Simulate clusters with faults: make sim SEED=1 RUNS=1000 FAULTS=crash,power
	GOGC=400 $(GO_TEST) ./replication/sim -count=1 -v -timeout 0 -run '^TestSeeds$$' -sim.seed=$(SEED) -sim.runs=$(RUNS) -sim.faults=$(FAULTS)

.PHONY: chaos
chaos: ## Real daemons, random faults, everything verified: make chaos DURATION=10m SEED=1 (root)
	scripts/prerequisites.sh demo test chaos
	$(MAKE) --no-print-directory build
	@mkdir -p $(BIN)
	go build -o $(BIN)/chaos ./chaos
	$(BIN)/chaos -duration $(DURATION) -seed $(SEED) $(ARGS)

.PHONY: survive
survive: DURATION = 1m
survive: ## Kill and upgrade a daemon whose volume is busy, alone and as one of three: make survive DURATION=1m (root)
	scripts/prerequisites.sh test
	$(GO_TEST) ./cmd/holdfast -count=1 -v -timeout 0 -run '^TestApplicationsDoNotNoticeThatTheDaemonIsKilled$$' -survive.for=$(DURATION)

.PHONY: sim-mutations
sim-mutations: ## Break each rule of the protocol on purpose: it must be noticed (ten minutes)
	$(GO_TEST) ./replication ./node/agent -count=1 -v -tags mutations -run '^(TestOrders|TestRemovals)NoticeMutations$$'
	$(GO_TEST) ./replication/sim -count=1 -v -tags mutations -run '^TestMutations$$'

.PHONY: replay-proof
replay-proof: ## Cut the power at every flush of a pool with snapshots, and between: make replay-proof SEED=1 (root)
	scripts/prerequisites.sh test
	$(GO_TEST) ./engine -count=1 -v -timeout 0 -run '^TestReplay$$' -model.seed=$(SEED) -replay.steps=500 -replay.flushes=0 -replay.between=250

.PHONY: model-proof
model-proof: ## Snapshots against a model, on a disk in memory and on XFS: make model-proof SEED=1 RUNS=1000 (root)
	scripts/prerequisites.sh test
	$(GO_TEST) ./engine -count=1 -v -timeout 0 -run '^TestModel(XFS)?$$' -model.seed=$(SEED) -model.runs=$(RUNS) -model.xfs=50

.PHONY: bench
bench: ## Measure a cluster on this machine, with fio: make bench ARGS=-short (root)
	scripts/prerequisites.sh test bench
	$(MAKE) --no-print-directory build
	go run ./bench $(ARGS)

.PHONY: bench-scale
bench-scale: ## Measure many volumes on one node, and in the metadata: make bench-scale VOLUMES=1000 RECORDS=10000 (root)
	scripts/prerequisites.sh test bench
	$(MAKE) --no-print-directory build
	go run ./bench -scale $(VOLUMES) -records $(RECORDS) -out build/bench-scale.json $(ARGS)

.PHONY: bench-parts
bench-parts: ## Measure single packages: wire, engine, data plane, device (root)
	scripts/prerequisites.sh test bench
	go test -p 1 -run '^$$' -bench . -benchtime 2s ./replication/wire ./engine ./node/dataplane ./node/device/fuseloop

.PHONY: check
check: format vet lint rules generated ## All that is checked without running anything (what CI does first)

.PHONY: format
format: ## Complain about files that gofmt would change
	@bad=$$(git ls-files -co --exclude-standard '*.go' | xargs -r ls 2>/dev/null | xargs -r gofmt -l); \
	if [ -n "$$bad" ]; then echo "not formatted, run gofmt -w on:"; echo "$$bad"; exit 1; fi

.PHONY: vet
vet: ## go vet
	go vet ./...
	go vet -tags mutations ./replication/... ./node/agent
	go vet -tags vm ./test-vm

$(LINT):
	@mkdir -p $(BIN)
	GOBIN=$(CURDIR)/$(BIN) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv $(BIN)/golangci-lint $@

.PHONY: lint
lint: $(LINT) ## Run the linters of .golangci.yml
	$(LINT) run ./...

.PHONY: rules
rules: ## Check the house rules: imports, sizes, package comments
	go test ./internal/archtest
	@if git grep -nE '\b(TO[D]O|FIX[M]E)\b' -- . ':!LICENSE'; then echo "do these now, or say in the tracker what is to be done"; exit 1; fi

.PHONY: generate
generate: ## Generate code from proto/
	scripts/prerequisites.sh generate
	scripts/generate.sh

.PHONY: generated
generated: ## Check that generated code is up to date, where protoc is installed
	@if command -v protoc >/dev/null; then scripts/generated.sh; else echo "protoc is not installed: generated code is not checked"; fi

.PHONY: clean
clean: ## Remove build/ and what killed tests left behind
	scripts/clean.sh
	rm -rf build
