# skep: build, try, test. `make` alone lists the targets.
#
# Versions of everything that is not a Go module are in deploy/versions.env; the toolchain is what go.work says.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
include deploy/versions.env

ROOT    := $(CURDIR)
BIN     := $(ROOT)/bin
MODULES := $(shell sed -n 's,^[[:space:]]*\./,,p' go.work)
# Every service binary is services/<part>/cmd/<name>; the rest are named here.
CMDS    := $(sort $(wildcard services/*/cmd/*)) $(sort $(wildcard e2e/cmd/*)) e2e/images/whoami e2e/images/mysql-entrypoint e2e/images/wordpress-entrypoint e2e/images/logspout

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT  ?= $(shell git rev-parse --short HEAD 2>/dev/null || echo none)
# The tag of the images: what compose.yaml asks for unless SKEP_VERSION says otherwise.
IMAGE_VERSION ?= latest
LDFLAGS := -s -w -X skep.dev/libs/daemon.Version=$(VERSION) -X skep.dev/libs/daemon.Commit=$(COMMIT)

# The same for every build, lint and test, so that nothing is compiled twice; what has the race detector needs cgo.
export GOFLAGS  ?= -buildvcs=false -trimpath
export CGO_ENABLED ?= 0
export PATH     := $(BIN):$(BIN)/tools:$(PATH):/usr/sbin:/sbin
export SKEP_BIN := $(BIN)
export SKEP_TOOLS := $(BIN)/tools
export SKEP_DEBIAN_SUITE := $(DEBIAN_SUITE)

# How long make fuzz feeds each target, and which: a regular expression over "directory name".
FUZZTIME ?= 1m
FUZZ     ?= .

PREFIX  ?= /usr/local
DESTDIR ?=

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r t d; do printf '  make %-12s %s\n' "$$t" "$$d"; done

## build

.PHONY: build
build: ## build every binary into bin/; RACE=1: skep with the race detector into bin/race/
ifdef RACE
	@mkdir -p $(BIN)/race
	CGO_ENABLED=1 go build -race -ldflags "-X skep.dev/libs/daemon.Version=$(VERSION)-race -X skep.dev/libs/daemon.Commit=$(COMMIT)" -o $(BIN)/race/ ./services/skep/cmd/skep
else
	@mkdir -p $(BIN)
	@for c in $(CMDS); do \
		ls $$c/*.go >/dev/null 2>&1 || continue; \
		echo "build bin/$${c##*/}"; \
		go build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./$$c; \
	done
endif

.PHONY: images
images: tools build ## write the images of deploy/compose.yaml into bin/images/, for docker load: no registry, no Docker Engine
	@$(BIN)/skep-images -o $(BIN)/images -version '$(IMAGE_VERSION)' -commit '$(COMMIT)' -containerd '$(CONTAINERD_VERSION)'

.PHONY: tools
tools: ## install what a node and the lab run beside skep: containerd, runc, a registry, Debian packages
	@deploy/tools.sh lab

.PHONY: proto
proto: ## generate the Go code of proto/
	@deploy/tools.sh proto
	cd proto && buf generate && buf lint

.PHONY: fmt
fmt: ## format every Go file
	@git ls-files '*.go' | grep -v '\.pb\.go$$' | xargs gofmt -w

.PHONY: proto-check
proto-check: ## fail when the generated code is not that of proto/, or proto/ breaks its rules or changes what a release said
	@deploy/tools.sh proto
	@for r in proto/compat/testdata/*.binpb; do (cd proto && buf breaking --against "../$$r") || \
		{ v=$${r##*/}; echo "proto/ changes what release $${v%.binpb} wrote (above): give the new meaning a new field, and reserve what goes" >&2; exit 1; }; done
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; cd proto && buf lint && buf generate -o "$$tmp" && \
		diff -r --exclude='*.proto' "$$tmp/skep" skep || { echo 'the code generated from proto/ is not this: run make proto' >&2; exit 1; }

.PHONY: lint
lint: proto-check ## proto-check, gofmt, go vet and staticcheck over every module
	@bad=$$(git ls-files --cached --others --exclude-standard '*.go' | grep -v '\.pb\.go$$' | xargs gofmt -l); \
		[ -z "$$bad" ] || { printf 'not formatted, run make fmt:\n%s\n' "$$bad"; exit 1; }
	@deploy/tools.sh lint
	@for m in $(MODULES); do echo "lint $$m"; (cd $$m && go vet ./... && staticcheck ./...); done

## try

.PHONY: up
up: tools build ## start a one-node cluster on this machine and deploy a demo service
	@deploy/demo.sh up

.PHONY: down
down: ## undo make up: nothing of it stays
	@deploy/demo.sh down

.PHONY: lab
lab: tools build ## start a lab: three hosts in namespaces, a cluster on them
	@$(BIN)/skep-lab up

.PHONY: tutorial
tutorial: tools build ## walk through the tutorial on a lab, and write what was seen as docs/tutorial.md (needs root)
	@$(BIN)/skep-tutorial -o docs/tutorial.md

## test

.PHONY: test
test: test-unit test-fuzz test-lab ## everything: unit, component, fuzz and lab tests, and one host by compose (the lab needs root)
	@$(MAKE) --no-print-directory test-compose RUN='TestByCompose$$'

.PHONY: test-unit
test-unit: tools ## unit and component tests of every module, with the race detector
	@deploy/tools.sh proto
	CGO_ENABLED=1 go test -race -shuffle=on -timeout 30m -p 4 $$(go list $(MODULES:%=./%/...) | grep -v '/e2e/cases\|/e2e/tutorial\|/libs/reconcile$$')
	@# Pure functions on one goroutine: the race detector makes their properties ten times slower and has nothing to find.
	CGO_ENABLED=1 go test -race -shuffle=on -timeout 15m ./libs/reconcile -rapid.checks=10
	go test -shuffle=on -timeout 15m ./libs/reconcile

.PHONY: fuzz
fuzz: ## feed every fuzz target of every module in turn: FUZZTIME=1m each, FUZZ=regexp picks some
	@e2e/fuzz.sh '$(FUZZTIME)' '$(FUZZ)' $(MODULES)

.PHONY: test-fuzz
test-fuzz: ## a few seconds of every fuzz target, without the race detector
	@$(MAKE) --no-print-directory fuzz FUZZTIME=2s

.PHONY: test-lab
test-lab: tools build ## the tutorial and the faults, on real hosts: RUN=regexp picks cases
	@$(MAKE) --no-print-directory build RACE=1
	cd e2e && go test -count=1 -timeout 60m -p 1 -parallel 4 $(if $(RUN),-run '$(RUN)') $(if $(V),-v) ./cases/... ./tutorial/...

.PHONY: test-compose
test-compose: tools build images ## nodes by docker compose, on hosts of the lab that have a Docker Engine (root, takes minutes): RUN=regexp picks some
	@deploy/tools.sh engine
	@$(MAKE) --no-print-directory build RACE=1
	cd e2e && SKEP_IMAGES='$(BIN)/images' go test -tags compose -count=1 -timeout 30m -run '$(or $(RUN),TestByCompose)' $(if $(V),-v) ./cases

.PHONY: bench
bench: tools build ## measure, and print the table of bars (needs root, takes minutes)
	@$(BIN)/skep-bench

.PHONY: soak
soak: soak-store soak-memory soak-chaos ## a year of deletions through the store, a day of churn through a manager, half an hour of chaos (takes long)

.PHONY: soak-store
soak-store: ## a year's million deletions through the store (takes minutes)
	cd libs && SKEP_DELETIONS=1000000 go test -count=1 -timeout 90m -v -run TestDeletionsCostNothing ./kv

.PHONY: soak-memory
soak-memory: tools ## 50,000 tasks and as much else made and removed: what a manager takes then (root, takes half an hour)
	cd services/skep && SKEP_CHURN=50000 go test -count=1 -timeout 120m -v -run TestChurn ./node

# How long make soak-chaos goes on, and the seed of its faults: 0 is a new one, which it prints. make test has two
# minutes of it, always with the same seed.
SKEP_CHAOS ?= 30m
SKEP_SEED  ?= 0

.PHONY: soak-chaos
soak-chaos: tools build ## half an hour of faults at random under twenty clients: nothing lost, nothing left (root); SKEP_CHAOS=10m SKEP_SEED=n
	@$(MAKE) --no-print-directory build RACE=1
	cd e2e && SKEP_CHAOS='$(SKEP_CHAOS)' SKEP_SEED='$(SKEP_SEED)' go test -count=1 -timeout 120m -v -run TestChaos ./cases

.PHONY: each
each: ## check that every commit after SINCE=commit builds, with its tests
	@e2e/each.sh '$(SINCE)'

.PHONY: check
check: lint test ## what a change must pass

## install and remove

.PHONY: install
install: tools build ## install skep, containerd, the systemd unit and shell completion below PREFIX
	@deploy/install.sh --prefix '$(PREFIX)' --destdir '$(DESTDIR)'

.PHONY: clean
clean: ## remove bin/
	rm -rf $(BIN)

.PHONY: clean-cache
clean-cache: ## remove the built tools and images that all clones share
	cd "$${SKEP_CACHE:-$${XDG_CACHE_HOME:-$$HOME/.cache}/skep}" && rm -rf tools images registry
