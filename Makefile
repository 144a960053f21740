# Two commands matter: `make demo` and `make test`. Both make or reuse .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_TORCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests and the demo are bound by two small models: more threads than cores only fight each other.
PYTEST_ARGS ?=

.PHONY: demo test lint types bench sketch-base install clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         train a character from 20 drawings and make pictures and a video of it"
	@echo "make test         lint, types and every test"
	@echo "make bench        measure the loop, identity and prompt following (minutes)"
	@echo "make sketch-base  rebuild the small base model from nothing (hours on 2 cores)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile
	@echo "Installing into $(VENV): $(TORCH) first, then diffusers, transformers, peft, aiohttp, SQLAlchemy and the rest."
	@echo "Downloads: about 250 MB with a CPU build of torch, several GB where pip picks a CUDA build (see README)."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_TORCH_ARGS) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[embedded,dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/troupe demo $(DEMO_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

bench: $(STAMP)
	$(BIN)/python -m bench $(BENCH_ARGS)

sketch-base: $(STAMP)
	$(BIN)/python -m sketch_base

clean:
	rm -rf $(VENV) build *.egg-info
