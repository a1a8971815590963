# make run   the demo, from nothing: environment, packages, then sound in and events out
# make test  everything that is checked before a change is accepted
# make quick  the part of it that takes about a minute
# make chaos  an hour of faults of every kind, compared with an undisturbed run
# make reliability  the same, written to RELIABILITY.md
# make intruder  every attempt of SECURITY.md, with what happened as JSON
# make machines  the services under a real systemd (MACHINE=container, vm or any)
# make fuzz   a million damaged inputs through every decoder of bytes from outside
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHONS ?= python3.11 python3.12 python3.13 python3
# handed to pip, e.g. an index that serves torch's CPU build where there is no GPU
PIP_FLAGS ?=
PYTEST_FLAGS ?=
# of the chaos run and of fuzzing
MINUTES ?= 60
SEED ?= 1
CASES ?= 1000000
MACHINE ?= any
BIN := $(VENV)/bin
# tests with real processes mostly wait for sound: six files at a time keep two cores busy, in the
# order of tests/conftest.py; more threads than cores would only wait for each other;
# hundreds of processes begin, and without bytecode each would compile the program again
RUN_PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest
PYTEST := $(RUN_PYTEST) -n 6 --dist loadfile --no-loadscope-reorder
# only what went wrong is shown, and then all of it, warnings included
define PIP_INSTALL
install() {
    log=$(VENV)/pip-output.txt
    if ! $(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt \
        "$$@" >"$$log" 2>&1; then
        cat "$$log" >&2
        echo "pip could not install everything; what it said is above" >&2
        exit 1
    fi
}
install
endef
DEBIAN_PACKAGES := pulseaudio pulseaudio-utils libasound2-plugins libportaudio2 espeak-ng ffmpeg \
    mosquitto openssl gcc libzmq3-dev postgresql iproute2
# checks of what is shipped for them, and of the units in a container; elsewhere their tests are
# skipped: prometheus starts a service
CI_PACKAGES := systemd prometheus mmdebstrap systemd-container chromium nginx-light
ifeq ($(CI),true)
DEBIAN_PACKAGES += $(CI_PACKAGES)
endif

.PHONY: help run test quick check pytest lint style types contracts bytecode coverage chaos reliability power-cuts machines fuzz intruder debian fix docs bench clean

help:
	@echo "make run       set up and run the demo"
	echo "make test      set up and run all checks and tests"
	echo "make quick     set up and run the checks and tests that take about a minute"
	echo "make coverage  run all tests, and show the lines and branches that none of them reaches"
	echo "make chaos     disturb a box in every way for an hour, and compare (MINUTES=60 SEED=1)"
	echo "make reliability  the same, and write it to RELIABILITY.md"
	echo "make intruder  try what SECURITY.md says was tried; writes intruder.json"
	echo "make fuzz      give every decoder a million damaged inputs (CASES=1000000 SEED=1)"
	echo "make machines  run the services under a real systemd (MACHINE=container, vm or any)"
	echo "make power-cuts  cut the power after each operation that a busy minute does to its files"
	echo "make fix       format, and repair what ruff can repair"
	echo "make docs      write the generated pages of docs/reference/ again"
	echo "make bench     measure this machine: milliseconds per window, attention, precision"
	echo "make clean     remove what builds and tests leave behind"

run: $(VENV)/.installed
	@$(BIN)/ast-stream demo
	echo "next: '. $(BIN)/activate' puts ast-stream on this shell's path; then 'ast-stream listen', or the README"

test:
	@$(MAKE) --no-print-directory -j 2 $(VENV)/.installed-dev debian
	$(MAKE) --no-print-directory check

# mypy has one core at most, and tests also wait: they run beside each other, once all files are in
# style. A fault that mypy finds is shown at once, and the tests go on to their end
check:
	@$(MAKE) --no-print-directory -j 2 pytest lint

pytest: style bytecode
	@$(PYTEST) $(PYTEST_FLAGS)

# in a fresh checkout all processes of pytest would compile all tests at once, each for itself; one
# does it before, beside mypy
bytecode:
	@said=$$($(RUN_PYTEST) --collect-only -q -q 2>&1) || {
	    echo "$$said" >&2
	    exit 1
	}

# these tests compute: a process for each core, each of which imports torch
quick: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory lint
	$(PYTEST) -n 2 -m "not slow" tests/unit $(PYTEST_FLAGS)

# the numbers of processes that tests start are collected as well, but of workers that are forks;
# the floor is in pyproject.toml
coverage: $(VENV)/.installed-dev debian
	@rm -f .coverage .coverage.*
	$(PYTEST) --cov --cov-report= $(PYTEST_FLAGS)
	$(BIN)/coverage report

lint: style types contracts

style:
	@$(BIN)/ruff format --check
	$(BIN)/ruff check

types:
	@$(BIN)/mypy

contracts:
	@$(BIN)/lint-imports --no-cache

machines: $(VENV)/.installed-dev
	@MACHINE=$(MACHINE) $(BIN)/pytest tests/system $(PYTEST_FLAGS)

power-cuts: $(VENV)/.installed-dev
	@$(BIN)/python tests/powercut/power_cuts.py --seed $(SEED)

chaos: $(VENV)/.installed-dev
	@$(BIN)/python tests/chaos/run.py --minutes $(MINUTES) --seed $(SEED)

fuzz: $(VENV)/.installed-dev
	@PYTHONPATH=tests:tests/support OMP_NUM_THREADS=1 $(BIN)/python -m fuzz --cases $(CASES) \
	    --seed $(SEED) --out fuzz.json

# what is not explained is written to the page, too
reliability: $(VENV)/.installed-dev
	@code=0
	$(BIN)/python tests/chaos/run.py --minutes $(MINUTES) --seed $(SEED) \
	    --report docs/reliability/faults.json || code=$$?
	$(BIN)/python scripts/make_reliability.py
	exit $$code

intruder: $(VENV)/.installed-dev
	@PYTHONPATH=tests:tests/support:tests/process OMP_NUM_THREADS=1 $(BIN)/python -m intruder \
	    --out intruder.json

fix: $(VENV)/.installed-dev
	@$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.installed-dev
	@$(BIN)/python scripts/make_reference.py

bench: $(VENV)/.installed
	@$(BIN)/ast-stream doctor
	$(BIN)/python tests/benchmarks/bench_latency.py
	$(BIN)/ast-stream bench scan

clean:
	@rm -rf build dist *.egg-info .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

$(VENV)/.created:
	@found=
	for candidate in $(PYTHONS); do
	    if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
	        found=$$candidate
	        break
	    fi
	done
	if [ -z "$$found" ]; then
	    echo "ast-stream needs Python 3.11 or newer; found $$(python3 --version 2>&1 || echo none)." \
	        "Name another one with: make PYTHONS=/path/to/python3" >&2
	    exit 1
	fi
	if ! "$$found" -m venv "$(VENV)"; then
	    rm -rf "$(VENV)"
	    echo "Python's venv module is missing; on Debian and Ubuntu: apt-get install python3-venv" >&2
	    exit 1
	fi
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/.created
	@echo "Installing ast-stream and what it needs into $(VENV); the first time takes minutes"
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the tools for tests into $(VENV)"
	$(PIP_INSTALL) -e '.[dev]'
	touch $@

# The virtual microphone, speech and media of the tests. In CI a missing package is a failure;
# elsewhere the tests that need it say why they are skipped.
debian:
	@is_there() { # some libraries have "t64" at the end of their name since 64-bit time
	    grep -q 'ok installed' <(dpkg-query -W -f '$${Status}\n' "$$1" "$$1t64" 2>/dev/null)
	}
	log=$$(mktemp)
	trap 'rm -f "$$log"' EXIT
	missing=()
	for package in $(DEBIAN_PACKAGES); do is_there "$$package" || missing+=("$$package"); done
	if [ $${#missing[@]} -eq 0 ]; then exit 0; fi
	as_root=()
	if [ "$$(id -u)" -ne 0 ]; then as_root=(sudo -n); fi
	if command -v apt-get >/dev/null && "$${as_root[@]}" true 2>/dev/null; then
	    echo "Installing Debian packages for the tests: $${missing[*]}"
	    { "$${as_root[@]}" apt-get update -qq || true
	    "$${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
	        apt-get install -y -qq --no-install-recommends "$${missing[@]}" || true
	    } >"$$log" 2>&1
	fi
	left=()
	for package in "$${missing[@]}"; do is_there "$$package" || left+=("$$package"); done
	if [ $${#left[@]} -eq 0 ]; then exit 0; fi
	cat "$$log" >&2
	echo "Missing Debian packages: $${left[*]}. To have them: sudo apt-get install $${left[*]}" >&2
	if [ "$${CI:-}" = true ]; then exit 1; fi
	echo "Going on without the tests that need them." >&2
