# make run   the demo, from nothing: environment, packages, then sound in and events out
# make test  everything that is checked before a change is accepted
# make chaos  an hour of kills, stops, overload and full disks, compared with an undisturbed run
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
DATA ?=
TRAIN_FLAGS ?=
MODEL ?= runs/bundled
# of the chaos run
MINUTES ?= 60
SEED ?= 1
# of the five stages
STEPS ?= 2600 1200 2000 2000 2800
# of audio without events, for the checkpoint itself and for those of the folds
NEGATIVE_HOURS ?= 48
FOLD_NEGATIVE_HOURS ?= 4
# accepted false alarms of each class, without any sound and among others
BUDGET ?= --budget 0.03/h --budget siren=0.17/h --budget telephone_bell_ringing=0.05/h \
    --budget smoke_detector_smoke_alarm=0.05/h --among 4/h
BIN := $(VENV)/bin
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
DEBIAN_PACKAGES := pulseaudio pulseaudio-utils libasound2-plugins libportaudio2 espeak-ng ffmpeg mosquitto openssl
# checks of what is shipped for them, and of the units in a container; elsewhere their tests are
# skipped: prometheus starts a service
CI_PACKAGES := systemd prometheus mmdebstrap systemd-container
ifeq ($(CI),true)
DEBIAN_PACKAGES += $(CI_PACKAGES)
endif

.PHONY: help run test check chaos debian fix bench model clean

help:
	@echo "make run    set up and run the demo"
	echo "make test   set up and run all checks and tests"
	echo "make chaos  kill, stop, overload and fill up a box for an hour (MINUTES=60 SEED=1), and compare"
	echo "make fix    format, and repair what ruff can repair"
	echo "make bench  measure this machine: milliseconds per window, attention, precision"
	echo "make model  train and measure a checkpoint as the bundled one was, in hours (DATA=clips.csv)"
	echo "make clean  remove what builds and tests leave behind"

run: $(VENV)/.installed
	@$(BIN)/ast-stream demo

test: $(VENV)/.installed-dev debian
	@$(MAKE) --no-print-directory check

check:
	@$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	# tests with real processes mostly wait for sound: three at a time keep two cores busy,
	# and more threads than cores would only wait for each other
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile $(PYTEST_FLAGS)

chaos: $(VENV)/.installed-dev
	@$(BIN)/python tests/chaos/run.py --minutes $(MINUTES) --seed $(SEED)

fix: $(VENV)/.installed-dev
	@$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.installed
	@$(BIN)/ast-stream doctor
	$(BIN)/python tests/benchmarks/bench_latency.py
	$(BIN)/python tests/benchmarks/bench_scan.py

# five stages, and the mean of the last two, for all clips and for each fold held out; thresholds of
# each model come from folds that the others held out. Every step goes on where it was stopped.
model: $(VENV)/.installed-dev
	@if [ -z "$(DATA)" ]; then
	    echo "Name the clips: make model DATA=path/to/clips.csv (columns file, fold, audioset_label," \
	        "licence), e.g. made from ESC-10" >&2
	    exit 2
	fi
	export OMP_WAIT_POLICY=passive
	steps=($(STEPS))
	clips=("$(DATA)" --label-column audioset_label --where licence=CC0,CC-BY)
	train() {
	    $(BIN)/ast-stream train "$${clips[@]}" --preset small --negative-hours 0 --device cpu \
	        --licence CC-BY-4.0 "$$@" $(TRAIN_FLAGS)
	}
	rates=(8e-4 4e-4 6e-4 6e-4 6e-4)
	seeds=(0 1 2 4 5)
	backgrounds=(1000 1000 4000 4000 4000)
	for part in all 1 2 3 4; do
	    held_out=()
	    if [ $$part != all ]; then held_out=(--test-fold $$part); fi
	    start=()
	    for stage in {1..5}; do
	        train --out $(MODEL)/$$part/$$stage "$${start[@]}" --steps $${steps[stage - 1]} \
	            --learning-rate $${rates[stage - 1]} --seed $${seeds[stage - 1]} \
	            --generated-backgrounds $${backgrounds[stage - 1]} "$${held_out[@]}"
	        start=(--start $(MODEL)/$$part/$$stage/checkpoint)
	    done
	    mean=$(MODEL)/$$part/checkpoint
	    if [ ! -d $$mean ]; then
	        rm -rf $$mean.unfinished
	        $(BIN)/ast-stream model average $(MODEL)/$$part/{4,5}/checkpoint -o $$mean.unfinished
	        mv $$mean.unfinished $$mean
	    fi
	done
	for part in 1 2 3 4 all; do
	    others=()
	    hours=$(FOLD_NEGATIVE_HOURS)
	    if [ $$part = all ]; then hours=$(NEGATIVE_HOURS); fi
	    for fold in 1 2 3 4; do
	        if [ $$fold != $$part ]; then
	            others+=(--fold-checkpoint $(MODEL)/$$fold/checkpoint)
	        fi
	    done
	    $(BIN)/ast-stream calibrate $(MODEL)/$$part/checkpoint --data "$${clips[@]}" \
	        "$${others[@]}" $(BUDGET) --negative-hours $$hours --in-place
	done
	models=()
	for fold in 1 2 3 4; do models+=(--model $(MODEL)/$$fold/checkpoint); done
	$(BIN)/ast-stream evaluate "$${clips[@]}" --cross-validate "$${models[@]}" --report $(MODEL)/report
	echo "$(MODEL)/all/checkpoint: the checkpoint; $(MODEL)/report: what it is worth"

clean:
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
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
