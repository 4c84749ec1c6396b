# SPDX-License-Identifier: Apache-2.0
# Every target sets up what it needs; on a fresh machine `make demo` or `make test` is all there is to type.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
EXTRAS := worker,bench,dev

.DEFAULT_GOAL := help
.PHONY: help setup demo lab lab-shell lab-demo lab-bench lab-bench-extender test tapes check lint types arch docs chart fmt bench constraints clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## build .venv with everything the project and its tests need

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "tidegate needs Python 3.11 or newer; say which with: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(READY)  ## the main job on this machine: two services from zero to many and back, under recorded traffic
	$(BIN)/tidegate demo

lab: $(READY)  ## build the lab: a real Kubernetes control plane, Helm and kwok (5 min once, then cached)
	$(BIN)/python -m tests.lab build

lab-shell: lab  ## a shell inside a running lab, with kubectl and helm; it all ends with the shell
	$(BIN)/python -m tests.lab shell

lab-demo: lab  ## the main job on a real Kubernetes: sklearn-iris to zero and back, told as it happens
	$(BIN)/python -m tests.lab demo

lab-bench: lab  ## a controller beside 2,000 services and 10,000 pods that kwok plays: ticks, CPU, memory, API requests
	$(BIN)/python -m tests.lab bench

lab-bench-extender: lab  ## 2,000 GPU pods on 500 nodes through a real kube-scheduler and the extender, beside its own best-fit
	$(BIN)/python -m tests.lab bench-extender

test: $(READY) lab  ## all tests
	$(BIN)/python -m pytest

tapes: $(READY)  ## write the golden decision stories anew; review the diff
	$(BIN)/python -m pytest tests/tapes --rewrite

lint: $(READY)  ## ruff: style and common mistakes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(READY)  ## mypy, strict
	$(BIN)/mypy

arch: $(READY)  ## import-linter: the direction of imports
	$(BIN)/lint-imports

docs: $(READY)  ## write the generated pages under docs/ and charts/ anew
	$(BIN)/python -m docs.generate
	$(BIN)/python -m docs.chart

chart: $(READY) lab  ## the Helm chart under the real Helm
	TIDEGATE_LAB_REQUIRED=1 $(BIN)/python -m pytest tests/chart

check: lint types arch  ## lint + types + arch + generated pages are current
	$(BIN)/python -m docs.generate --check
	$(BIN)/python -m docs.chart --check

fmt: $(READY)  ## format, and mend what can be mended by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## the activator beside Go's ReverseProxy and aiohttp, on one core
	$(BIN)/tidegate bench activator

constraints: $(READY)  ## write constraints.txt anew from what .venv holds
	$(BIN)/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools > constraints.txt

clean:  ## remove .venv and everything generated
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .tidegate
