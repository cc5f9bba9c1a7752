# Everything needs only make and Python 3.10 or newer; the rest is installed into .venv.
# Another interpreter: make PYTHON=python3.12 test (after `make clean`, if .venv exists already).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# Kill loops repeat those of an earlier run with its seed: make chaos SEED=1234.
SEED ?=
# A part of the benchmarks.
ROWS ?=
EVENTS ?=
CHAOS := PYTHONPATH=. $(BIN)/python -m tests.chaos --must-finish $(if $(SEED),--seed $(SEED))

.DEFAULT_GOAL := help
.PHONY: help demo test lint format bench bench-search bench-chat chaos clean

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1: \2/p' Makefile | while IFS=: read -r verb text; do \
		printf '  make %-14s%s\n' "$$verb" "$$text"; done

demo: $(STAMP) ## See it work: a ledger, a daemon, exact reads.
	$(BIN)/pmm-shm demo

test: $(STAMP) ## Run the tests, without the slow ones.
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

lint: $(STAMP) ## Check style, types and layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Rewrite the code in the house style.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(BENCH_STAMP) ## Measure what docs/BENCHMARKS.md shows; a part of it: ROWS=1,2 EVENTS=1000,100000.
	$(BIN)/python -m bench $(if $(ROWS),--rows $(ROWS)) $(if $(EVENTS),--events $(EVENTS)) $(if $(ROWS)$(EVENTS),,--page)

bench-search: $(BENCH_STAMP) ## Measure searches, beside numpy and sqlite-vec.
	$(BIN)/python tests/bench_search.py

bench-chat: $(STAMP) ## Measure chat workers on one ledger.
	PYTHONPATH=. $(BIN)/python tests/chat_load.py

chaos: $(STAMP) ## Run the slow tests: crashes, long runs, kill loops.
	$(BIN)/python -m pytest tests -m slow --timeout=3600
	$(CHAOS) --seconds 900 --daemon-kills 300 --client-kills 200 --stops 20
	$(CHAOS) --seconds 300 --daemon-kills 80 --client-kills 60 --stops 0 --journal delete

clean: ## Remove the environment and everything generated.
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .bench
	find pmm_shm server client tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || { echo "error: no $(PYTHON) found; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: Python 3.10 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=/path/to/python3")'
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; install its venv package (on Debian: python3-venv)" >&2; exit 1; }
	@echo "Setting up $(VENV) (once) ..."
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@$(PIP) install -e ".[dev]"
	@touch $@

$(BENCH_STAMP): $(STAMP)
	@$(PIP) install -e ".[bench]"
	@touch $@
