# Two commands on a fresh machine: make run, make test. Everything they need
# lands in .venv, or comes from the system's packages (.ci/packages.sh).

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
KERNEL := $(wildcard dataplane/kernel/*.[ch]) dataplane/kernel/build.py

.DEFAULT_GOAL := help
.PHONY: help run test lint unit bench fuzz soak clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.run ## the edge with the echo and parrot backends; open http://127.0.0.1:8080
	@exec $(BIN)/earshot up \
	  --backend-command "echo=$(BIN)/python examples/echo.py" \
	  --backend-command "parrot=$(BIN)/python examples/parrot.py" $(ARGS)

test: $(VENV)/.test lint ## every check: style, types, layers, unit, process and browser tests
	@$(BIN)/pytest tests/unit tests/kernel -n 2 $(ARGS)
	@$(BIN)/pytest tests/process tests/interop $(ARGS)

lint: $(VENV)/.dev ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo 2>/dev/null || $(BIN)/lint-imports

unit: $(VENV)/.dev ## the fast tests alone
	@$(BIN)/pytest tests/unit tests/kernel -n 2 $(ARGS)

bench: $(VENV)/.dev ## the first figures: forwarding, calls per core, set-up time
	@$(BIN)/earshot bench first --json bench/out/first.json $(ARGS)

fuzz: $(VENV)/.dev ## libFuzzer under ASan and UBSan on every C parser
	@.ci/packages.sh fuzz
	@PATH="$(CURDIR)/$(BIN):$$PATH" tests/fuzz/run.sh $(or $(SECONDS_PER_TARGET),60)

soak: $(VENV)/.test ## the long forms of the tests
	@$(BIN)/pytest tests -m soak --timeout 3600 $(ARGS)

clean: ## everything that was built
	rm -rf $(VENV) build *.egg-info dataplane/kernel/_kernel.c dataplane/kernel/*.so bench/out

# --- stamps: what is installed, made anew when its description changes ---

$(VENV)/bin/python:
	@.ci/packages.sh run
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "earshot needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml $(KERNEL)
	@.ci/packages.sh run
	@echo "installing Earshot and building its kernel"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "installing what the tests and the linters need"
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

$(VENV)/.test: $(VENV)/.dev .ci/packages.sh
	@.ci/packages.sh test
	@touch $@
