# Needs Python 3.11 or later and make; everything else goes into .venv.
# Options: PYTHON=python3.12, PIP_FLAGS="--index-url ..." (another package index), WORKERS=4.

PYTHON ?= python3
PIP_FLAGS ?=
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUT := runs/wren
DEMO_FLAGS ?=
ENVIRONMENTS ?= runs/environments
BENCH_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench guard clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.installed  ## decompile the embedded language model into runs/wren, offline
	@rm -rf $(DEMO_OUT)
	@$(BIN)/unweave decompile wren --text self --tokens 240k --out $(DEMO_OUT) $(DEMO_FLAGS)
	@echo "Open $(DEMO_OUT)/report.html in a browser."

test: $(VENV)/.installed-dev lint  ## everything that must hold: lint, then the tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

lint: $(VENV)/.installed-dev  ## style, types, the order of the rooms
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >$(VENV)/imports.txt || { cat $(VENV)/imports.txt; exit 1; }

bench: $(VENV)/.installed  ## race the trainers that ENVIRONMENTS holds (benchmarks/README.md)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench --environments $(ENVIRONMENTS) $(BENCH_FLAGS)

guard: $(VENV)/.installed  ## fail when a ratio of a short race fell below the committed one
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.guard --environments $(ENVIRONMENTS) $(BENCH_FLAGS)

clean:  ## remove .venv and caches; artifacts in runs/ stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

# A stamp is older than the lists of requirements exactly when something has to be installed.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing unweave into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing unweave and its tests' needs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unweave needs Python 3.11 or later, this is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	@$(PYTHON) -m venv $(VENV)
