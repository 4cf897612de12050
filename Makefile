# `make` alone lists what can be made. Written for GNU make 3.81 (macOS) and later.

PYTHON ?= python3
WORKERS ?= auto
PROMPT ?= The statement
TORCH_BUILD ?=

VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
PIP_INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

# PyTorch's own wheel index, where the builds have short names (cpu, cu130); torch's dependencies come from PyPI as ever.
TORCH_INDEX := $(if $(TORCH_BUILD),--no-deps --index-url https://download.pytorch.org/whl/$(TORCH_BUILD))

# Each worker is a process on a core of its own, so the libraries inside it get one thread.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 VECLIB_MAXIMUM_THREADS=1
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

DEPTHS := /*.py /*/*.py /*/*/*.py
SOURCES := $(filter-out %/__main__.py,$(wildcard $(addprefix numpygpt,$(DEPTHS)) $(addprefix torchgpt,$(DEPTHS))))
MODULES := $(subst /,.,$(patsubst %/__init__,%,$(SOURCES:.py=)))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# The tests start some hundred processes, each of which would compile the whole project again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo text2sql install test lint test-quick parity-long survival-long docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile
	@echo 'Settings, as in `make test PYTHON=python3.12`:'
	@echo '  PYTHON       the Python (3.11 or newer) that makes $(VENV); now $(PYTHON)'
	@echo '  TORCH_BUILD  a build of PyTorch from its own index: `cpu` spares a Linux without a GPU several GB'
	@echo '  WORKERS      processes that share the tests; now $(WORKERS)'
	@echo '  PROMPT       what the demo writes on from; now "$(PROMPT)"'

demo: $(VENV)/.runtime ## install, train a small GPT in NumPy for a minute, let it write
	$(BIN)/numpygpt train --out $(DEMO) --overwrite
	$(BIN)/numpygpt generate --checkpoint $(DEMO) --prompt "$(PROMPT)"
	@echo 'To use the command numpygpt yourself: . $(BIN)/activate'

text2sql: $(VENV)/.runtime ## train a small GPT in NumPy to write SQL, and run what it writes in SQLite
	$(BIN)/python scripts/text2sql.py

install: $(VENV)/.test ## everything for work on the project, and no more than that

test: lint ## install, then the linter, the type checker and every test
	$(PYTEST)

lint: $(VENV)/.test ## the linter and the type checker
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

test-quick: $(VENV)/.test ## every test, on few random draws, up to the first failure
	$(PYTEST) --hypothesis-profile quick --exitfirst

parity-long: $(VENV)/.test ## the tests marked long_run, on up to 10,000 random draws each, and those marked long_form
	$(PYTEST) --hypothesis-profile long -m "long_run or long_form"

survival-long: $(VENV)/.test ## kill a run 200 times while it saves, and stop and resume one at 50 random moments
	$(PYTEST) --hypothesis-profile long -m long_run parity_tests/test_survival.py

docs: $(VENV)/.docs ## the docstrings as pages, in build/docs
	$(BIN)/python -m pdoc --output-directory build/docs $(MODULES)

clean: ## remove the environment and all caches; runs/ stays
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment. A file in it stands for each thing installed, so that it is installed again only when its list changes.

$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: no $(PYTHON) here; install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.11 or newer is needed: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot make environments; install its venv module (Debian: apt install python3-venv)" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.made pyproject.toml constraints.txt
	@echo "installing numpygpt and what it runs on: NumPy, Matplotlib, tiktoken (under a minute)"
	@$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.runtime
	@echo "installing PyTorch, the peer (a few hundred MB; with CUDA several GB, see TORCH_BUILD in \`make help\`)"
	@$(PIP_INSTALL) $(TORCH_INDEX) torch
	@echo "installing the test tools, among them TensorFlow, of 1.3 GB (about two minutes)"
	@$(PIP_INSTALL) --editable ".[test,dev]"
	@touch $@

$(VENV)/.docs: $(VENV)/.test
	@echo "installing the documentation tool"
	@$(PIP_INSTALL) --editable ".[docs]"
	@touch $@
