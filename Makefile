# `make serve` and `make test` do all set-up: they create .venv, install the package and fetch what they need.
PYTHON ?= python3
MODEL ?= qwen2.5-coder-1.5b-instruct
HOST ?= 127.0.0.1
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
RUNTIME_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help serve chat test test-slow check format bench bench-engine bench-invariance doctor clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.11, 3.12 or 3.13 is needed; choose one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(RUNTIME_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

$(DEV_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@ $(RUNTIME_STAMP)

serve: $(RUNTIME_STAMP)  ## serve MODEL (default: qwen2.5-coder-1.5b-instruct) on HOST:PORT
	$(BIN)/deepseek serve $(MODEL) --host $(HOST) --port $(PORT)

chat: $(RUNTIME_STAMP)  ## talk to MODEL in the terminal
	$(BIN)/deepseek chat $(MODEL)

test: $(DEV_STAMP)  ## the test suite: CPU, no network but for the 98 MB test model
	$(BIN)/deepseek pull smollm2-135m-instruct || echo "the test model cannot be had; tests that need it are skipped"
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(DEV_STAMP)  ## tests that take minutes or need the larger models
	$(BIN)/deepseek pull qwen2.5-coder-1.5b-instruct
	$(BIN)/deepseek pull gemma-3-270m
	$(BIN)/python -m pytest -m slow --timeout 3600

check: $(DEV_STAMP)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

format: $(DEV_STAMP)  ## rewrite the files in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: bench-engine bench-invariance  ## all benchmarks; results as JSON in benchmarks/results

bench-engine: $(DEV_STAMP)  ## the engine against transformers, in turn, on one file
	$(BIN)/deepseek pull smollm2-135m-instruct
	$(BIN)/python -m benchmarks.engine_vs_transformers --json benchmarks/results/engine_vs_transformers.json

bench-invariance: $(RUNTIME_STAMP)  ## do seeded answers change with what else is in the batch?
	$(BIN)/python -m benchmarks.batch_invariance --dtype fp32
	$(BIN)/python -m benchmarks.batch_invariance --dtype bf16

doctor: $(RUNTIME_STAMP)  ## what this machine can do
	$(BIN)/deepseek doctor

clean:  ## remove the virtual environment and caches (downloaded models stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info
