# Two commands on a fresh machine (Linux, Python >= 3.10, make):
#   make quickstart   install, then train, export, bench and predict on the generated motion set
#   make test         install what is missing, then run every test
# PYTHON=/path/to/python3 chooses the interpreter, VENV=folder the virtual environment.

VENV ?= .venv
PYTHON ?=
PYTEST_ARGS ?=
# Files of tests that run side by side. Few tests keep more than one core busy.
TEST_JOBS ?= 2
export PYTHON

BIN := $(VENV)/bin
BESIDE := -n $(TEST_JOBS) --dist loadfile

.PHONY: help quickstart install test test-quick lint format wheels clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   install, then train, export, bench and predict once (about 6 minutes on 2 cores)"
	@echo "make test         install what is missing, then run every test"
	@echo "make test-quick   the tests that take seconds"
	@echo "make lint         ruff and mypy        make format   let ruff rewrite"
	@echo "make wheels       does the base install resolve to binary wheels on aarch64 and x86-64?"
	@echo "make clean        remove the virtual environment and what was built (runs/ stays)"

# The stamps are newer than pyproject.toml once its dependencies are installed; `dev` includes `all`.
$(VENV)/.installed-all: pyproject.toml
	@if [ -e $(VENV)/.installed-dev ] && [ ! pyproject.toml -nt $(VENV)/.installed-dev ]; then touch $@; else scripts/install $(VENV) all; fi

$(VENV)/.installed-dev: pyproject.toml
	@scripts/install $(VENV) dev

install: $(VENV)/.installed-all

quickstart: $(VENV)/.installed-all
	@scripts/quickstart $(BIN)/dtkd-edge

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(BESIDE) $(PYTEST_ARGS)

test-quick: $(VENV)/.installed-dev
	$(BIN)/python -m pytest $(BESIDE) -m "not slow and not gpu and not jetson" $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	@scripts/lint $(BIN)/python

format: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

wheels: $(VENV)/.installed-dev
	$(BIN)/python scripts/check_wheels.py

clean:
	@if [ -e $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
