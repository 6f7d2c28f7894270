# pycolo: `make demo` and `make test` are all a newcomer needs; both install what is missing (as root) or say what is.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ROUNDS ?= 10
MINUTES ?= 10

TOOLS := gcc libc6-dev python3-venv iproute2 util-linux procps
GUEST := qemu-system-x86 busybox-static cpio e2fsprogs
TESTS := qemu-utils redis-server postgresql-15 iputils-ping libnbd-bin python3-libnbd nbd-client fio etcd-server etcd-client
MATRIX := debootstrap

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: packages
packages:
	@scripts/install-packages $(TOOLS) $(GUEST)

.PHONY: test-packages
test-packages: packages
	@scripts/install-packages $(TESTS)

$(STAMP): pyproject.toml src/pycolo/edge/preload.c $(wildcard src/pycolo/core/_*.p* src/pycolo/edge/_*.p*) | packages
	@echo "installing pycolo into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

.PHONY: setup
setup: packages $(STAMP) ## Install what is missing: Debian packages, a virtual environment with pycolo

.PHONY: demo
demo: setup ## Two hosts, real clients, one death each: shows that no client noticed (ARGS="--help" for options)
	@$(BIN)/colo demo $(ARGS)

.PHONY: test
test: setup test-packages ## Unit, property, simulation and integration tests with real QEMU
	@scripts/run-tests $(BIN)/python $(ARGS)

.PHONY: matrix
matrix: setup test-packages ## Every single fault, one after the other, on three hosts with etcd: a line each
	@$(BIN)/python -m pytest -q --as-shipped tests/integration/test_fault_matrix.py

.PHONY: campaign
campaign: setup test-packages ## Rounds of faults drawn from seeds, on three hosts with etcd (ROUNDS=50 ARGS="--help" for options)
	@$(BIN)/python -m tests.campaign --rounds $(ROUNDS) $(ARGS)

.PHONY: soak
soak: setup test-packages ## A VM under load for a long time: does anything grow? (MINUTES=60 ARGS="--help" for options)
	@$(BIN)/python -m tests.campaign.soak --minutes $(MINUTES) $(ARGS)

.PHONY: test-matrix
test-matrix: setup test-packages ## The integration tests on QEMU 7.2, 10.0 and 11.1, and with two processors (ARGS="--help" for options)
	@scripts/install-packages $(MATRIX)
	@scripts/test-matrix $(BIN)/python $(ARGS)

.PHONY: lint
lint: setup ## ruff, mypy strict, import rules
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/ruff format --no-cache --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: sim
sim: setup ## A longer simulation campaign (ARGS="--seeds 0..9999", ARGS=--sweep, ARGS="--seed 7" for one run, line by line)
	@$(BIN)/python -m tests.sim $(if $(ARGS),$(ARGS),--seeds 0..2000)

.PHONY: fuzz
fuzz: setup ## Fuzz every parser, SECONDS=60 each (ARGS="--target NAME"; CONTRIBUTING.md)
	@$(BIN)/python -m tests.fuzz --seconds $(or $(SECONDS),60) $(ARGS)

.PHONY: bench
bench: setup test-packages ## The same guest unprotected, ours, QEMU's own COLO, checkpoints alone: one report (ARGS="--help")
	@scripts/install-packages wrk apache2-utils $(MATRIX)
	@PYTHONPATH=benchmarks $(BIN)/python -m side_by_side $(ARGS)

.PHONY: bench-disk
bench-disk: setup test-packages ## The disk server beside qemu-nbd, with fio (ARGS="--help" for options)
	@$(BIN)/python benchmarks/disk.py $(ARGS)

.PHONY: bench-compare
bench-compare: setup ## Our comparison of frames beside QEMU's colo-compare (ARGS="--help" for options)
	@$(BIN)/python benchmarks/compare.py $(ARGS)

.PHONY: bench-failover
bench-failover: setup ## 20 deaths under load: how long clients wait, how soon it is safe again (ARGS="--help" for options)
	@$(BIN)/python benchmarks/failover.py $(ARGS)

.PHONY: bench-flows
bench-flows: setup ## 100,000 connections at once: memory and time for each (ARGS="--help" for options)
	@$(BIN)/python benchmarks/flows.py $(ARGS)

.PHONY: bench-tls
bench-tls: setup ## What TLS between the hosts costs, over loopback (ARGS="--help" for options)
	@$(BIN)/python benchmarks/tls.py $(ARGS)

.PHONY: bench-upload
bench-upload: setup ## Bulk data into a guest and out: unprotected, ours, QEMU's COLO filters (ARGS="--help" for options)
	@$(BIN)/python benchmarks/upload.py $(ARGS)

.PHONY: bench-tap
bench-tap: setup ## A frame from wire to network card: bridge, agents, QEMU's COLO filters (ARGS="--help" for options)
	@$(BIN)/python benchmarks/tap_to_tap.py $(ARGS)

.PHONY: bench-divergences
bench-divergences: setup ## How often two copies differ under load, and which settings of a guest help (ARGS="--help" for options)
	@$(BIN)/python benchmarks/divergences.py $(ARGS)

.PHONY: clean
clean: ## Remove what the targets made here
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build bench test-matrix demo-report bench-compare.json bench-disk.json bench-failover.json bench-tls.json bench-flows.json bench-upload.json bench-tap.json bench-divergences.json campaign.html soak.html src/*.egg-info
