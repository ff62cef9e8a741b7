# Thin: each target is one command that also works by itself. The same names are used in CI.

PYTHON ?= python3.11
DEMO ?= /tmp/pgvigil-demo-$(shell id -u)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: help demo demo-stop test long soak fault mutations matrix docs screenshots check bench lock system clean

help:
	@echo 'make demo       start the sandbox, run every pipeline, show what each proved'
	@echo 'make demo-stop  remove everything that make demo started'
	@echo 'make test       the suite, on live servers: under twelve minutes on two cores'
	@echo 'make long       its claims that take tens of seconds each: browser, approval, more kills and faults'
	@echo 'make soak       what must stay silent or outlive a kill, thirty times, and an idle hour'
	@echo 'make fault      each flow killed, cut off and starved at every state, and run again (ONLY=12,40 SEED=7)'
	@echo 'make mutations  each central check disabled once: the suite must notice (ONLY=name for one)'
	@echo 'make matrix     what needs no backup, on PostgreSQL 15, 17 and 18, and docs/versions.md'
	@echo 'make docs       the reference pages in docs/, from the code'
	@echo 'make screenshots  pictures of the UI, into docs/screenshots'
	@echo 'make check      format, lint, types, import contract'
	@echo 'make bench      what is fast, measured side by side (ONLY=name for one)'
	@echo 'make lock       resolve the dependencies anew, with hashes'

demo: $(VENV)/.runtime
	@$(BIN)/pgvigil sandbox down --dir '$(DEMO)'
	@$(BIN)/pgvigil sandbox up --dir '$(DEMO)'
	@$(BIN)/python -m deployments.demo '$(DEMO)'

# Without the environment nothing of ours can run, so nothing needs to be ended.
demo-stop:
	@if [ -e '$(DEMO)' ]; then $(BIN)/pgvigil sandbox down --dir '$(DEMO)'; fi

# A live test that was skipped because something is missing has proven nothing: here it fails.
test: $(VENV)/.dev
	@TESTS=1 PYTHON='$(PYTHON)' infra/install-system
	PGVIGIL_DEMAND_LIVE=1 $(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder -m 'not long and not fault_matrix'

# The rest of the suite; .ci/run runs both.
long: $(VENV)/.dev
	@TESTS=1 PYTHON='$(PYTHON)' infra/install-system
	PGVIGIL_DEMAND_LIVE=1 $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder -m long

# The claims about silence and exactness once more, thirty times each and with an idle hour: about two hours.
soak: $(VENV)/.dev
	PGVIGIL_DEMAND_LIVE=1 PGVIGIL_ROUNDS=30 PGVIGIL_IDLE=3600 $(BIN)/python -m pytest -m rounds

# The whole fault matrix: about a quarter of an hour. Writes docs/faults.md.
fault: $(VENV)/.dev
	@TESTS=1 PYTHON='$(PYTHON)' infra/install-system
	PGVIGIL_DEMAND_LIVE=1 PGVIGIL_FAULT_SEED='$(or $(SEED),1)' $(BIN)/python -m tests.faults $(ONLY)

# Each central check disabled once, in a copy of the tree: a test must go red. Writes docs/mutations.md.
mutations: $(VENV)/.dev
	PGVIGIL_DEMAND_LIVE=1 $(BIN)/python tests/mutations.py $(ONLY)

# The suites that need no backup on several majors; those that Debian lacks come as wheels. Writes docs/versions.md.
matrix: $(VENV)/.dev
	@TESTS=1 PYTHON='$(PYTHON)' infra/install-system
	$(BIN)/python -m tests.matrix

docs: $(VENV)/.dev
	$(BIN)/python -m deployments.reference docs/reference

screenshots: $(VENV)/.dev
	PGVIGIL_SCREENSHOTS='$(CURDIR)/docs/screenshots' $(BIN)/python -m pytest tests/acceptance/test_browser.py

check: $(VENV)/.dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python bench/run.py $(ONLY)

lock: $(VENV)/.dev
	CUSTOM_COMPILE_COMMAND='make lock' infra/lock $(BIN)/pip-compile

clean: demo-stop
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

system:
	@PYTHON='$(PYTHON)' infra/install-system

$(VENV)/.made: | system
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The lock is whole, so nothing is left to resolve: pip 23, which Debian 12 has, takes a pin for what must be
# pinned only if it is the newest release. 'pip check' proves that it is whole.
$(VENV)/.runtime: requirements.lock pyproject.toml $(VENV)/.made | system
	$(PIP) install --quiet --only-binary=:all: --no-deps --require-hashes -r requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	$(PIP) check
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime | system
	$(PIP) install --quiet --only-binary=:all: --no-deps --require-hashes -r requirements-dev.lock
	@touch $@
