# Everything here runs on a fresh machine with Python 3.11 or newer, make and a package index.
# What takes long is done once: the environment in .venv, MinIO in the user's cache.

PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
READY := .venv/.ready
MINIO := job/local/minio.py
BENCH := .venv-bench
BENCHMARKS = forward storing memory process pull many commit large gpu

.DEFAULT_GOAL := help
.PHONY: help setup run-local stop-local test test-faults check bench lock clean

help: ## Lists these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## Makes .venv with everything in it and the command neoscope
	@echo "neoscope is installed: source .venv/bin/activate"

run-local: $(READY) ## Starts MinIO and runs neoscope into it (ARGS="--batches 2", FRESH=1 to begin anew)
	@$(BIN)/python $(MINIO) start
	@FRESH=$(FRESH) $(BIN)/python job/local/run.py $(ARGS)

report: $(READY) ## Makes the page of the last local run, .minio/report.html, and opens it
	@test -f .minio/run || { echo "there is no local run yet: make run-local"; exit 3; }
	@$(BIN)/python $(MINIO) start
	@if [ -f .minio/env ]; then . ./.minio/env; fi; \
		$(BIN)/neoscope report "$$(cat .minio/run)" --file .minio/report.html
	@$(BIN)/python -m webbrowser "file://$(CURDIR)/.minio/report.html" >/dev/null || true

stop-local: ## Stops that MinIO; what is stored stays
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) $(MINIO) stop

test: $(READY) ## Runs the tests (ARGS="-k storage")
	@$(BIN)/python $(MINIO) get
	@$(BIN)/python -m pytest $(ARGS)

test-faults: $(READY) ## Runs the fault tests in full: hundreds of kills, a thousand flipped bits
	@$(BIN)/python $(MINIO) get
	@NEOSCOPE_FAULTS=full $(BIN)/python -m pytest tests/faults $(ARGS)

bench: $(BENCH)/.ready ## Runs the benchmarks, peers included, in an environment of their own (BENCHMARKS="storing")
	@$(BENCH)/bin/python $(MINIO) get
	@for each in $(BENCHMARKS); do $(BENCH)/bin/python tests/benchmarks/$$each.py || exit; echo; done

check: $(READY) ## Looks for faults in the code without running it: ruff and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

lock: $(UV) ## Pins what pyproject.toml asks for in requirements/ (ARGS=--upgrade for the newest)
	@$(COMPILE) pyproject.toml --output-file requirements/job.txt
	@$(COMPILE) pyproject.toml --extra dev --constraints requirements/job.txt \
		--output-file requirements/dev.txt
	@$(COMPILE) pyproject.toml --extra bench --output-file requirements/bench.txt
	@$(COMPILE) requirements/local.in --output-file requirements/local.txt
	@$(COMPILE) requirements/uv.in --output-file requirements/uv.txt

clean: stop-local ## Removes .venv, the local store with all its runs, and caches
	@rm -rf .venv .venv-bench .minio .mypy_cache .pytest_cache .ruff_cache .hypothesis build job/*.egg-info
	@find job tests -name __pycache__ -prune -exec rm -rf {} +

# One version of each package for every Python and platform, with hashes, whatever index they are from.
COMPILE = $(INDEX) $(UV) pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --custom-compile-command "make lock" $(ARGS)

# uv does not read pip's settings: an index that pip is told of is meant for uv too.
INDEX = UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}}"

$(READY): $(UV) requirements/dev.txt pyproject.toml
	@echo "Installing the environment into .venv (the first time this downloads about 3 GB)."
	@$(INDEX) $(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/uv.txt requirements/dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(BENCH)/.ready: $(UV) requirements/bench.txt pyproject.toml
	@echo "Installing the peers that the benchmarks compare with into $(BENCH)."
	@$(UV) venv --quiet --allow-existing --python $(BIN)/python $(BENCH)
	@$(INDEX) $(UV) pip sync --quiet --python $(BENCH)/bin/python --require-hashes requirements/bench.txt
	@$(UV) pip install --quiet --python $(BENCH)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

$(UV): requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"neoscope needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@
