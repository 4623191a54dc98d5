# SPDX-License-Identifier: Apache-2.0
# hf_sam: every command a person or CI runs. `make help` lists them.
# Without a GPU, let pip see an index of CPU-only builds of torch (PIP_EXTRA_INDEX_URL or
# PIP_FIND_LINKS); otherwise it fetches gigabytes of CUDA libraries.

PYTHON ?= python3
PYTEST_ARGS ?=
MUTANTS_ARGS ?= --minutes 30

VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
OLDEST := .venv-oldest
OPTIM := .venv-optim
NEWEST := .venv-newest

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-distributed test-oldest test-newest test-optim mutants check format bench docs clean
.DELETE_ON_ERROR:

help:  ## list the commands
	@echo "hf_sam: Sharpness-Aware Minimization for the Hugging Face Trainer (not Segment Anything)"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' Makefile

install: $(INSTALLED)  ## set up .venv (done by the others when it is missing or stale)

$(VENV)/bin/python $(OLDEST)/bin/python $(OPTIM)/bin/python $(NEWEST)/bin/python: %/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "hf_sam needs Python 3.11 or newer; PYTHON=$(PYTHON) is" \
	    "'$$($(PYTHON) --version 2>&1)'. Try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $* (a few minutes, once) ..."
	@$(PYTHON) -m venv --clear $*

# torch first, so that its build is settled before anything that depends on it is resolved.
$(VENV)/.installed $(OLDEST)/.installed $(OPTIM)/.installed: %/.installed: pyproject.toml | %/bin/python
	@$*/bin/python -m pip install -qq -c $(CONSTRAINTS) torch
	@$*/bin/python -m pip install -qq -c $(CONSTRAINTS) -e '.[$(EXTRA)]'
	@touch $@

$(VENV)/.installed $(OPTIM)/.installed: CONSTRAINTS := constraints.txt
$(VENV)/.installed $(OPTIM)/.installed: constraints.txt
$(VENV)/.installed $(OLDEST)/.installed: EXTRA := dev
$(OPTIM)/.installed: EXTRA := test-optim
$(OLDEST)/.installed: CONSTRAINTS := constraints-oldest.txt
$(OLDEST)/.installed: constraints-oldest.txt

demo: $(INSTALLED)  ## a small BERT and a small ResNet with and without SAM: tables and pictures
	$(RUN) -m glue_scripts.demo
	$(RUN) -m vision_scripts.demo

test: $(INSTALLED)  ## run the quick tests (one file: make test PYTEST_ARGS=tests/test_landscape.py)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-distributed: $(INSTALLED)  ## run the tests that start several processes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m distributed $(PYTEST_ARGS)

test-oldest: $(OLDEST)/.installed  ## run the quick tests with the oldest supported versions
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-optim: $(OPTIM)/.installed  ## run the tests of optimizers with every package that pip can install
	OMP_NUM_THREADS=1 $(OPTIM)/bin/python -m pytest tests/test_optimizers.py $(PYTEST_ARGS)

# Unpinned, and upgraded every time: what libraries change is seen on the day they publish it.
test-newest: $(NEWEST)/bin/python  ## run the quick tests with the newest versions there are
	$(NEWEST)/bin/python -m pip install -qq --upgrade --upgrade-strategy eager -e '.[dev]'
	$(NEWEST)/bin/python -m pip list | grep -E '^(torch|transformers|accelerate|peft|trl) '
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest -n 2 $(PYTEST_ARGS)

$(VENV)/.mutants: $(INSTALLED)
	@$(RUN) -m pip install -qq -c constraints.txt -e '.[mutants]'
	@touch $@

mutants: $(VENV)/.mutants  ## change lines of the mathematics, and see whether a test fails
	OMP_NUM_THREADS=1 $(RUN) -m tests.mutants $(MUTANTS_ARGS)

check: $(INSTALLED)  ## lint (docstrings and complexity too), formatting, types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: $(INSTALLED)  ## apply the formatter and the fixes that are safe
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

bench: $(INSTALLED)  ## measure what each method costs on this machine
	$(RUN) -m benchmarks

$(VENV)/.docs: $(INSTALLED)
	@$(RUN) -m pip install -qq -c constraints.txt -e '.[docs]'
	@touch $@

# The environment variables: two notices about future versions of mkdocs, and notebooks that run.
docs: $(VENV)/.docs  ## build the site into site/: links are checked, notebooks run
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true HF_SAM_NOTEBOOKS=true \
	  OMP_NUM_THREADS=1 $(RUN) -m mkdocs build --strict

clean:  ## remove caches and build products; .venv stays
	rm -rf build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache $(OLDEST) $(OPTIM)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
