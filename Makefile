# make demo, make test, make check: each sets up .venv by itself; nothing is needed but Python >= 3.11 and make.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13)))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= true
# Tests start some hundred processes, each of which would compile every module that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-gpu check lint format clean

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "ragadapt needs Python 3.11, 3.12 or 3.13 on the PATH (or: make PYTHON=/path/to/python)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt torch
# Compiled are modules when they are first imported: that is two in five.
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/ready  ## fit a retriever to the Python standard library's documentation, and search it
	$(BIN)/python examples/python_docs/demo.py

lint: .venv/ready  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## the same, import direction, quick tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist worksteal

test: lint  ## the same, and the slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist worksteal -m 'not gpu and not network and not requires_server'

test-gpu: .venv/ready  ## the tests that need a CUDA device; fails where there is none
	@$(BIN)/python -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "no CUDA device: nothing was tested")'
	$(BIN)/python -m pytest tests -m gpu

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo dist build
