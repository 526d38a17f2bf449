# `make train` pretrains on this machine, `make test` runs the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: install dev train test lint format types benchmark clean

install: $(VENV)/.installed

dev: $(VENV)/.installed-dev

train: install ## ARGS="topk.k=32 seed=2" adds overrides
	$(BIN)/python train.py $(ARGS)

test: dev
	$(BIN)/python -m pytest $(ARGS)

lint: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: dev
	$(BIN)/mypy

benchmark: dev
	$(BIN)/python scripts/benchmark.py what=step $(ARGS)

clean:
	rm -rf $(VENV) build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install -q -e .
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install -q -e '.[dev]'
	touch $@ $(VENV)/.installed
