# Everything here runs on a fresh machine with Python 3.11 or newer, make and a package index.
# What takes long is done once: the environment in .venv, MinIO in the user's cache.

PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
READY := .venv/.ready
MINIO := job/local/minio.py
BENCH := .venv-bench
# Two test processes: most of a test's time it waits. More would starve one another on a laptop.
TWO := --numprocesses 2 --dist worksteal
BENCHMARKS = forward storing memory process pull many commit large checked network
IMAGE ?= localhost/neoscope:dev
export IMAGE
KUBECTL = kubectl $(if $(NAMESPACE),--namespace $(NAMESPACE))
OVERLAY_DIR = k8s/$(if $(OVERLAY),overlays/$(OVERLAY),base)

.DEFAULT_GOAL := help
.PHONY: help setup run-local report stop-local test test-s3 test-faults check gpu-check bench lock clean \
	test-wheel docs pictures image image-check run-docker k8s-run k8s-status k8s-logs k8s-delete test-k8s \
	slurm-run slurm-status test-slurm

help: ## Lists these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

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
	@$(BIN)/python -m pytest $(TWO) $(ARGS)

test-s3: $(READY) ## Runs the tests on S3 servers other than MinIO, built with Go once: four minutes
	@$(BIN)/python $(MINIO) get
	@nice $(BIN)/python tests/support/programs.py versitygw seaweedfs rclone
	@$(BIN)/python -m pytest tests/test_storage/test_servers.py $(ARGS)

test-faults: $(READY) ## Runs the fault tests in full: hundreds of kills, a thousand flipped bits
	@$(BIN)/python $(MINIO) get
	@NEOSCOPE_FAULTS=full $(BIN)/python -m pytest $(TWO) tests/faults $(ARGS)

test-wheel: $(READY) ## Builds the wheel and tries it in new environments, that of 6 GB too
	@NEOSCOPE_WHEEL=full $(BIN)/python -m pytest tests/deploy/test_wheel.py $(ARGS)

docs: $(READY) ## Builds the pages of docs/ into .site, without the network; a link that leads nowhere fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir .site
	@echo "file://$(CURDIR)/.site/index.html"

pictures: $(READY) ## Makes docs/images anew from the last local run, with this machine's chromium
	@test -f .minio/run || { echo "there is no local run yet: make run-local"; exit 3; }
	@$(BIN)/python $(MINIO) start
	@if [ -f .minio/env ]; then . ./.minio/env; fi; $(BIN)/python docs/hooks/pictures.py "$$(cat .minio/run)"

bench: $(BENCH)/.ready ## Runs the benchmarks, peers included, in an environment of their own (BENCHMARKS="storing")
	@$(BENCH)/bin/python $(MINIO) get
	@for each in $(BENCHMARKS); do $(BENCH)/bin/python tests/benchmarks/$$each.py || exit; echo; done

gpu-check: $(READY) ## Checks and measures this machine's NVIDIA GPU: PASS or FAIL a line, a table, JSON
	@$(BIN)/neoscope gpu-check

check: $(READY) ## Looks for faults in the code without running it: ruff and mypy
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

image: ## Builds the container image (IMAGE=name:tag, BASE_IMAGE=...)
	@docker build --file docker/Dockerfile --tag $(IMAGE) \
		$(if $(BASE_IMAGE),--build-arg BASE_IMAGE=$(BASE_IMAGE)) \
		--build-arg PIP_INDEX_URL --build-arg UV_DEFAULT_INDEX \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) .

image-check: $(READY) ## Tries the built image, and prints its size and layers
	@$(BIN)/python $(MINIO) get
	@$(BIN)/python -m pytest tests/deploy/image.py $(ARGS)
	@docker image inspect --format '{{.Size}} bytes in {{len .RootFS.Layers}} layers' $(IMAGE)
	@docker history --format 'table {{.Size}}\t{{.CreatedBy}}' $(IMAGE)

run-docker: ## Runs the image into a MinIO beside it (ARGS="--batches 2", SERVICE=gpu on an NVIDIA host)
	@docker compose --file docker/compose.yaml run --rm $(or $(SERVICE),job) run $(ARGS)

k8s-run: ## Launches k8s/base, or OVERLAY=local|kueue|spot (NAMESPACE=...); a finished Job makes way
	@if $(KUBECTL) get job neoscope --ignore-not-found --output jsonpath='$(CONDITIONS)' \
		| grep -qwE 'Complete|Failed'; then $(KUBECTL) delete job neoscope --cascade=foreground; fi
	@$(KUBECTL) apply --kustomize $(OVERLAY_DIR)

k8s-status: ## Shows the Job, and each pod's node, state and message
	@$(KUBECTL) get job neoscope
	@$(KUBECTL) get pods --selector $(PODS) --output custom-columns='$(COLUMNS)'

k8s-logs: ## Prints the logs of all pods (ARGS=-f to follow them)
	@$(KUBECTL) logs --selector $(PODS) --all-containers --prefix --tail -1 --max-log-requests 200 $(ARGS)

k8s-delete: ## Deletes what k8s-run has made (OVERLAY, NAMESPACE); the run itself stays in its store
	@$(KUBECTL) delete --kustomize $(OVERLAY_DIR) --ignore-not-found

test-k8s: $(READY) ## Tries k8s/ on the test cluster that kubectl points at
	@$(BIN)/python -m pytest tests/deploy/cluster*.py --timeout 1200 -rs $(ARGS)

slurm-run: ## Submits slurm/neoscope.sbatch (ARGS="s3://... --partitions 64", SBATCH="--array=0-63%16")
	@sbatch $(SBATCH) slurm/neoscope.sbatch $(ARGS)

slurm-status: ## Shows your tasks, those that have ended lately too: state, restarts, time, node or reason
	@squeue --me --name neoscope --array --states all --Format $(TASKS)

test-slurm: $(READY) ## Tries slurm/neoscope.sbatch on a Slurm of one node that it starts (root, slurm-wlm)
	@$(BIN)/python $(MINIO) get
	@$(BIN)/python -m pytest tests/slurm/cluster.py --timeout 1200 -rs $(ARGS)

lock: $(UV) ## Pins what pyproject.toml asks for in requirements/ (ARGS=--upgrade for the newest)
	@$(COMPILE) pyproject.toml --extra run --output-file requirements/job.txt
	@$(COMPILE) pyproject.toml --extra run --extra docs --extra dev --constraints requirements/job.txt \
		--output-file requirements/dev.txt
	@$(COMPILE) pyproject.toml --extra run --extra bench --output-file requirements/bench.txt
	@$(COMPILE) requirements/local.in --output-file requirements/local.txt
	@$(COMPILE) requirements/uv.in --output-file requirements/uv.txt

clean: stop-local ## Removes .venv, the local store with all its runs, and caches
	@rm -rf .venv .venv-bench .minio .site .mypy_cache .pytest_cache .ruff_cache .hypothesis build job/*.egg-info
	@find job tests -name __pycache__ -prune -exec rm -rf {} +

VERSION = $$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
PODS = batch.kubernetes.io/job-name=neoscope
CONDITIONS = {.status.conditions[?(@.status=="True")].type}
TASKS = JobArrayID:16,State:14,RestartCnt:14,TimeUsed:14,ReasonList
COLUMNS = POD:.metadata.name,NODE:.spec.nodeName,STATE:.status.phase,$\
	MESSAGE:..terminated.message

# One version of each package for every Python and platform, with hashes, whatever index they are from.
COMPILE = $(INDEX) $(UV) pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	--generate-hashes --custom-compile-command "make lock" $(ARGS)

# uv does not read pip's settings: an index that pip is told of is meant for uv too.
INDEX = UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null)}}"

$(READY): $(UV) requirements/dev.txt pyproject.toml
	@echo "Installing the environment into .venv (the first time this downloads about 3 GB)."
	@$(INDEX) $(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements/uv.txt requirements/dev.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

$(BENCH)/.ready: $(UV) requirements/bench.txt pyproject.toml
	@echo "Installing the peers that the benchmarks compare with into $(BENCH)."
	@$(UV) venv --quiet --allow-existing --python $(BIN)/python $(BENCH)
	@$(INDEX) $(UV) pip sync --quiet --compile-bytecode --python $(BENCH)/bin/python --require-hashes requirements/bench.txt
	@$(UV) pip install --quiet --python $(BENCH)/bin/python --no-deps --no-build-isolation --editable .
	@touch $@

$(UV): requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"neoscope needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.11 ..." % sys.version_info[:2])'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@touch $@
