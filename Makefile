# Everything needs only make and Python 3.10 or newer; the rest is installed into .venv.
# Another interpreter: make PYTHON=python3.12 test (after `make clean`, if .venv exists already).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
TOOLS_STAMP := $(VENV)/.installed-tools
# What runs the demo: the environment of the tests where there is one, otherwise a small one of its own.
DEMO_VENV := $(if $(wildcard $(STAMP)),$(VENV),.venv-demo)
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# Workers of the tests: many of them wait for a process or a time limit rather than compute.
JOBS ?= $(shell echo $$(( $$(nproc) * 5 / 2 )))
# Some tests only: make test TESTS=tests/process/test_cli.py.
TESTS ?=
# Kill loops repeat those of an earlier run with its seed: make chaos SEED=1234.
SEED ?=
# A part of the benchmarks.
ROWS ?=
EVENTS ?=
CHAOS := PYTHONPATH=. $(BIN)/python -m tests.chaos --must-finish $(if $(SEED),--seed $(SEED))
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes \
	--custom-compile-command "make lock" $(LOCK_OPTIONS)

# `make install`: where to. A packager sets PREFIX=/usr and DESTDIR. EXTRAS=openai,wordllama installs embedders, too.
DESTDIR ?=
override DESTDIR := $(if $(DESTDIR),$(abspath $(DESTDIR)))
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
EXTRAS ?=
PROGRAM = $(PREFIX)/lib/pmm-shm
UNITS = $(PREFIX)/lib/systemd
MAN = $(PREFIX)/share/man/man1
FOLDERS = \
	"$(UNITS)/system" "$(UNITS)/user" "$(UNITS)" "$(PREFIX)/lib/sysusers.d" "$(PREFIX)/lib/tmpfiles.d" \
	"$(PREFIX)/share/doc/pmm-shm" "$(MAN)" "$(PREFIX)/share/man" "$(SYSCONFDIR)/pmm-cached"
EXAMPLE = $(SYSCONFDIR)/pmm-cached/agent.env.example
CHECK_PYTHON = \
	command -v "$(PYTHON)" >/dev/null || { echo "error: no $(PYTHON) found; name one: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	"$(PYTHON)" -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: Python 3.10 or newer is needed, and $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=/path/to/python3")' || exit 1; \
	"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; install its venv package (on Debian: python3-venv)" >&2; exit 1; }
# The service has an account of its own, which may not pass through /root, say.
CHECK_REACHABLE = \
	if [ "$$(id -u)" = 0 ] && ! setpriv --reuid=65534 --regid=65534 --clear-groups "$(PROGRAM)/bin/python" -c ""; then \
		echo "error: other accounts cannot run $(PYTHON); name one they can: make install PYTHON=/usr/bin/python3" >&2; \
		rm -rf "$(PROGRAM)"; exit 1; fi
INSTALLED = \
	$(PREFIX)/bin/pmm-cached \
	$(PREFIX)/bin/pmm-shm \
	$(UNITS)/system/pmm-cached@.service \
	$(UNITS)/user/pmm-cached@.service \
	$(PREFIX)/lib/sysusers.d/pmm-cached.conf \
	$(PREFIX)/lib/tmpfiles.d/pmm-cached.conf \
	$(PREFIX)/share/doc/pmm-shm/README.md

# Bytecode is kept, whatever the caller's settings: each worker and each program of the tests would compile all anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-programs test-docs test-all lint format docs bench bench-search bench-large bench-recall bench-web bench-shapes bench-run bench-chat bench-cluster test-cluster test-web screenshots chaos lock audit man install uninstall clean

help: ## Show this list.
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1: \2/p' Makefile | while IFS=: read -r verb text; do \
		printf '  make %-14s%s\n' "$$verb" "$$text"; done

demo: $(DEMO_VENV)/.installed ## See it work: a ledger, a daemon, exact reads.
	$(DEMO_VENV)/bin/pmm-shm demo

test-fast: $(STAMP) ## Run the unit tests: seconds, no processes.
	$(BIN)/python -m pytest -n auto --dist worksteal --hypothesis-profile=fast tests/unit

test: $(STAMP) ## Run the tests of units and processes: minutes.
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(or $(TESTS),tests/unit tests/process tests/test_*.py)

test-programs: $(STAMP) ## Run what stands above the library: chat, PMM, the log in PostgreSQL, tools for assistants.
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/programs

test-docs: $(STAMP) ## Run pages, packages, shells and containers as users would.
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests/docs

test-all: ## Run them over each Python from 3.10 to 3.13 that is here.
	@TESTS="$(TESTS)" tools/test-all

lint: $(STAMP) ## Check style, types and layers.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Rewrite the code in the house style.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(STAMP) ## Write docs/reference anew, out of the code.
	$(BIN)/python tools/reference.py

bench: $(BENCH_STAMP) ## Measure what docs/BENCHMARKS.md shows; a part of it: ROWS=1,2 EVENTS=1000,100000.
	$(BIN)/python -m bench $(if $(ROWS),--rows $(ROWS)) $(if $(EVENTS),--events $(EVENTS)) $(if $(ROWS)$(EVENTS),,--page)

bench-search: $(BENCH_STAMP) ## Measure searches, beside numpy and sqlite-vec.
	$(BIN)/python -m bench.search

bench-large: $(BENCH_STAMP) ## Measure ten million events beside a million; another pair: EVENTS=100000,1000000.
	$(BIN)/python -m bench.large $(if $(EVENTS),--events $(EVENTS))

bench-recall: $(STAMP) ## Measure how well searches find: 200 questions about a dialogue, beside FTS5 and vectors alone.
	$(BIN)/python -m bench.recall

bench-web: $(STAMP) ## Measure the page of pmm-shm web; EVENTS=100000,1000000.
	$(BIN)/python -m bench.web $(if $(EVENTS),--events $(EVENTS))

bench-shapes: $(STAMP) ## Measure reads of logs of other programs, beside PMM's table.
	$(BIN)/python -m bench.shapes $(if $(EVENTS),--events $(EVENTS))

bench-run: $(STAMP) ## Measure a stand-in for PMM without and with pmm-shm run.
	$(BIN)/python -m bench.run

# A peer in a folder of its own: what it needs beside our dependencies is its own matter.
PEERS := /tmp/pmm-shm-eventsourcing-9.5.6
bench-cluster: $(STAMP) ## Measure the log in PostgreSQL, beside the bare work and a polling peer; EVENTS=1000000.
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(PEERS) eventsourcing==9.5.6 psycopg-pool==3.3.3
	PYTHONPATH=$(PEERS) $(BIN)/python -m bench.cluster $(if $(EVENTS),--events $(EVENTS))

bench-chat: $(STAMP) ## Measure chat workers on one ledger.
	$(BIN)/python -m bench.chat

chaos: $(STAMP) ## Run the slow tests: long runs, more examples, kill loops.
	$(BIN)/python -m pytest tests/chaos --timeout=3600
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=chaos --timeout=3600
	$(CHAOS) --seconds 900 --daemon-kills 300 --client-kills 200 --stops 20
	$(CHAOS) --seconds 300 --daemon-kills 80 --client-kills 60 --stops 0 --journal delete

CLUSTER_TESTS := tests/programs/test_cluster.py tests/programs/test_cluster_outcomes.py tests/programs/test_cluster_silence.py \
	tests/chaos/test_cluster_faults.py tests/chaos/test_cluster_machine.py
PG16 := /tmp/pmm-shm-pgserver-0.1.4
test-cluster: $(STAMP) ## Run the long tests of the log in PostgreSQL, and again with version 16.
	$(BIN)/python -m pytest $(CLUSTER_TESTS) --timeout=3600
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(PG16) pgserver==0.1.4
	chmod -R a+rX $(PG16)
	PMM_TEST_POSTGRES=$(PG16)/pgserver/pginstall/bin $(BIN)/python -m pytest $(CLUSTER_TESTS) --timeout=3600

# Chromium: apt-get install chromium.
test-web: $(STAMP) ## Run the tests of the page, in a browser, too.
	$(BIN)/python -m pytest tests/programs/test_web_parts.py tests/docs/test_web.py tests/docs/test_web_browser.py

screenshots: $(STAMP) ## Make the pictures of docs/web anew, with Chromium.
	$(BIN)/python tools/screenshots.py

# LOCK_OPTIONS=--upgrade takes the newest versions; without it, those that are locked stay where they fit.
lock: $(TOOLS_STAMP) ## Lock the dependencies anew, after a change of pyproject.toml.
	$(LOCK) --extra dev pyproject.toml requirements/build.in -o requirements/dev.txt
	$(LOCK) -c requirements/dev.txt pyproject.toml requirements/build.in -o requirements/product.txt
	$(LOCK) --extra bench -c requirements/dev.txt pyproject.toml -o requirements/bench.txt
	$(LOCK) -c requirements/dev.txt requirements/tools.in -o requirements/tools.txt
	$(LOCK) --python-version 3.11 requirements/shapes.in -o requirements/shapes.txt

audit: $(TOOLS_STAMP) ## Look for known vulnerabilities in what is locked.
	@$(BIN)/python requirements/audit.py $(BIN)/pip-audit requirements/dev.txt requirements/bench.txt

man: $(STAMP) ## Write the manual pages into build/man.
	$(BIN)/python tools/man_pages.py build/man

# The units name the program by its path. A virtual environment and what pip puts into it name the place where they are
# made, which with DESTDIR is not the one where they will lie.
install: ## Install program and units: DESTDIR, PREFIX.
	@$(CHECK_PYTHON)
	rm -rf "$(DESTDIR)$(PROGRAM)"
	"$(PYTHON)" -m venv "$(DESTDIR)$(PROGRAM)"
	@$(if $(DESTDIR),,$(CHECK_REACHABLE))
	"$(DESTDIR)$(PROGRAM)/bin/python" -m pip --quiet --disable-pip-version-check install --no-compile \
		".$(if $(EXTRAS),[$(EXTRAS)])"
	@if [ -n "$(DESTDIR)" ]; then \
		grep -rlIF "$(DESTDIR)$(PROGRAM)" "$(DESTDIR)$(PROGRAM)/bin" "$(DESTDIR)$(PROGRAM)/pyvenv.cfg" \
			| xargs -d '\n' sed -i 's|$(DESTDIR)$(PROGRAM)|$(PROGRAM)|g'; fi
	"$(DESTDIR)$(PROGRAM)/bin/python" -m compileall -q -s "$(DESTDIR)" -p / "$(DESTDIR)$(PROGRAM)/lib"
	chmod -R u=rwX,go=rX "$(DESTDIR)$(PROGRAM)"
	install -d "$(DESTDIR)$(PREFIX)/bin" "$(DESTDIR)$(SYSCONFDIR)/pmm-cached"
	ln -sfn ../lib/pmm-shm/bin/pmm-cached "$(DESTDIR)$(PREFIX)/bin/pmm-cached"
	ln -sfn ../lib/pmm-shm/bin/pmm-shm "$(DESTDIR)$(PREFIX)/bin/pmm-shm"
	install -D -m 644 "systemd/pmm-cached@.service" "$(DESTDIR)$(UNITS)/system/pmm-cached@.service"
	install -D -m 644 "systemd/user/pmm-cached@.service" "$(DESTDIR)$(UNITS)/user/pmm-cached@.service"
	sed -i -e 's|/usr/local/|$(PREFIX)/|g' -e 's|/etc/pmm-cached/|$(SYSCONFDIR)/pmm-cached/|g' \
		"$(DESTDIR)$(UNITS)/system/pmm-cached@.service" "$(DESTDIR)$(UNITS)/user/pmm-cached@.service"
	install -D -m 644 systemd/pmm-cached.sysusers "$(DESTDIR)$(PREFIX)/lib/sysusers.d/pmm-cached.conf"
	install -D -m 644 systemd/pmm-cached.tmpfiles "$(DESTDIR)$(PREFIX)/lib/tmpfiles.d/pmm-cached.conf"
	install -D -m 644 README.md "$(DESTDIR)$(PREFIX)/share/doc/pmm-shm/README.md"
	umask 022 && "$(DESTDIR)$(PROGRAM)/bin/python" tools/man_pages.py "$(DESTDIR)$(MAN)"
	install -m 644 systemd/agent.env.example "$(DESTDIR)$(EXAMPLE)"
	@$(if $(DESTDIR),,echo "Now: systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload")

# What the administrator wrote stays: settings, drop-ins, ledgers, the account. So does a directory that is not empty.
uninstall: ## Remove what install made, and only that.
	rm -rf "$(DESTDIR)$(PROGRAM)"
	rm -f $(foreach path,$(INSTALLED),"$(DESTDIR)$(path)")
	rm -f "$(DESTDIR)$(MAN)/pmm-shm.1" "$(DESTDIR)$(MAN)/pmm-shm-"*.1 "$(DESTDIR)$(MAN)/pmm-cached.1"
	@if cmp -s systemd/agent.env.example "$(DESTDIR)$(EXAMPLE)"; then rm -f "$(DESTDIR)$(EXAMPLE)"; fi
	@for folder in $(FOLDERS); do \
		if [ -d "$(DESTDIR)$$folder" ]; then rmdir --ignore-fail-on-non-empty "$(DESTDIR)$$folder"; fi; done

clean: ## Remove the environment and everything generated.
	rm -rf $(VENV) .venv-demo .venv-shapes .venv-shapes.lock .venv-3.* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .bench
	find pmm_shm server client tests bench -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml requirements/dev.txt
	@$(CHECK_PYTHON)
	@echo "Setting up $(VENV) (once) ..."
	@"$(BIN)/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

.venv-demo/.installed: pyproject.toml requirements/product.txt
	@$(CHECK_PYTHON)
	@echo "Setting up .venv-demo (once): pmm-shm and the libraries that it needs, nothing for tests ..."
	@"$(PYTHON)" -m venv --clear .venv-demo
	@.venv-demo/bin/python -m pip --disable-pip-version-check install --require-hashes -r requirements/product.txt \
		| sed -n 's/^Collecting \([^ ]*\).*/  \1/p'
	@.venv-demo/bin/python -m pip --quiet --disable-pip-version-check install --no-deps --no-build-isolation -e .
	@.venv-demo/bin/python -m pip --quiet --disable-pip-version-check check
	@touch $@

$(BENCH_STAMP): $(STAMP) requirements/bench.txt
	@$(PIP) install --require-hashes -r requirements/bench.txt
	@touch $@

$(TOOLS_STAMP): $(STAMP) requirements/tools.txt
	@$(PIP) install --require-hashes -r requirements/tools.txt
	@touch $@
