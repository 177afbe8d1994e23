# Husk: metadata-only image pulls for stock CRI-O.
# `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION  := $(shell cat VERSION)
TAGS     := containers_image_openpgp exclude_graphdriver_btrfs
LDFLAGS  := -s -w -X main.version=$(VERSION)
GOBUILD  := CGO_ENABLED=0 go build -trimpath -tags "$(TAGS)" -ldflags "$(LDFLAGS)"
GOTEST   := CGO_ENABLED=0 go test -tags "$(TAGS)"
BIN      := build/bin
# What takes minutes to build (CRI-O, the linter) is kept here between runs and checkouts.
export HUSK_CACHE ?= $(HOME)/.cache/husk
GOLANGCI_VERSION := v2.15.0
GOLANGCI := $(HUSK_CACHE)/golangci-lint-$(GOLANGCI_VERSION)/golangci-lint
BATS_FILES ?= test

APT := bats busybox-static ca-certificates conmon containernetworking-plugins crun docker-registry gcc \
	curl iproute2 iptables jq libassuan-dev libbtrfs-dev libgpgme-dev libseccomp-dev make nftables openssl \
	pkg-config procps protobuf-compiler runc shellcheck skopeo socat

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Install the Debian packages that building and testing need (idempotent)
	@missing=(); for p in $(APT); do \
	  dpkg-query -W -f '$${Status}' "$$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$$p"); done; \
	if [ "$${#missing[@]}" -gt 0 ]; then \
	  echo "installing: $${missing[*]}"; \
	  apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; fi

.PHONY: build
build: ## Build the static binaries into build/bin
	@mkdir -p $(BIN)
	$(GOBUILD) -o $(BIN)/husk ./cmd/husk
	$(GOBUILD) -o $(BIN)/containerd-shim-husk-v2 ./cmd/containerd-shim-husk-v2

.PHONY: build-test
build-test: build deps ## Build the test tools, and CRI-O itself into the cache
	$(GOBUILD) -o $(BIN)/mkimage ./test/mkimage
	$(GOBUILD) -o $(BIN)/demo ./test/demo
	$(GOBUILD) -o $(BIN)/pinger ./test/internal/pinger
	$(GOBUILD) -o $(BIN)/taskcall ./test/internal/taskcall
	$(GOBUILD) -o $(BIN)/fakeregistry ./test/fakeregistry
	$(GOBUILD) -o $(BIN)/compat ./test/compat
	$(GOBUILD) -o $(BIN)/kubelet ./test/kubelet
	$(GOBUILD) -o $(BIN)/shimctl ./test/shimctl
	$(GOBUILD) -o $(BIN)/collector ./test/collector
	$(GOBUILD) -o $(BIN)/bundlediff ./test/bundlediff
	$(GOBUILD) -o $(BIN)/bundlectl ./test/bundlectl
	$(GOBUILD) -o $(BIN)/kata ./test/kata
	$(GOBUILD) -o $(BIN)/containerd-shim-fakekata-v2 ./internal/testkit/fakekata/cmd
	$(GOBUILD) -o $(BIN)/cdhclient ./internal/testkit/cdhclient/cmd
	cd test/node && CGO_ENABLED=0 go build -o ../../$(BIN)/testnode ./cmd/testnode
	cd test/node && CGO_ENABLED=0 go build -o ../../$(BIN)/crictl ./cmd/crictl
	$(BIN)/testnode build --cache $(HUSK_CACHE)

.PHONY: demo
demo: build-test ## Run the main job: an encrypted image on stock CRI-O, the host reading no layer
	$(BIN)/demo --bin $(BIN) --cache $(HUSK_CACHE) --evidence build/demo/evidence.json

.PHONY: test
test: deps test-unit test-node ## Run every test: unit tests, then the real node

.PHONY: test-unit
test-unit: ## Unit tests, of the project and of the test node
	$(GOTEST) ./...
	cd test/node && CGO_ENABLED=0 go test ./...

.PHONY: test-node
test-node: build-test ## End-to-end tests on real CRI-O, registry and runc (bats, root); BATS_FILES picks some
	HUSK_BIN_DIR=$(CURDIR)/$(BIN) bats --print-output-on-failure $(BATS_FILES)

# How long each fuzz target runs, as a count: go test ends a timed run with a false
# "context deadline exceeded" now and then (golang.org/issue/75804). Longer by hand: make fuzz FUZZTIME=10m
FUZZTIME ?= 5000x

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME
	@targets=$$(grep -rHo --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' cmd internal manifestonly bundlegen status pkg | \
	  sed 's|/[^/]*_test.go:func |:|'); \
	test -n "$$targets" || { echo "no fuzz targets found" >&2; exit 1; }; \
	for t in $$targets; do $(GOTEST) -run '^$$' -fuzz "^$${t#*:}\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1x "./$${t%%:*}"; done

# The peer of `husk run`. Only the benchmarks need it.
.PHONY: bench-deps
bench-deps: ## Install the Debian packages that only the benchmarks compare with (idempotent)
	@dpkg-query -W -f '$${Status}' podman 2>/dev/null | grep -q 'install ok installed' || { \
	  echo "installing: podman"; \
	  apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends podman >/dev/null; }

.PHONY: bench
bench: build-test bench-deps ## Benchmarks into build/bench/*.json, peers measured in the same run
	@mkdir -p build/bench
	$(GOBUILD) -o $(BIN)/bench ./test/bench
	$(BIN)/bench --bin $(BIN) --cache $(HUSK_CACHE) --out build/bench

$(GOLANGCI):
	@mkdir -p $(@D)
	GOBIN=$(@D) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)

.PHONY: lint
lint: deps $(GOLANGCI) ## golangci-lint, shellcheck, module tidiness
	$(GOLANGCI) run --build-tags "$(subst $() ,$(comma),$(TAGS))" ./...
	cd test/node && $(GOLANGCI) run ./...
	shellcheck -x .ci/run pkg/api/generate.sh test/*.bash test/*.bats
	go mod verify >/dev/null && go mod tidy -diff

comma := ,

.PHONY: generate
generate: build deps ## Regenerate completions and man pages from the binary, Go code from .proto
	pkg/api/generate.sh
	@mkdir -p completions/bash completions/zsh completions/fish docs/man
	$(BIN)/husk completion bash > completions/bash/husk
	$(BIN)/husk completion zsh > completions/zsh/_husk
	$(BIN)/husk completion fish > completions/fish/husk.fish
	$(BIN)/husk man > docs/man/husk.8

.PHONY: check-generate
check-generate: generate ## Fail when generated files are not what is committed
	git diff --exit-code -- completions docs/man pkg/api

.PHONY: ci
ci: deps lint check-generate test fuzz demo ## Everything CI runs

.PHONY: clean
clean: ## Remove build output (not the cache)
	rm -rf build
