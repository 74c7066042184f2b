# `make run` and `make test` set up what they need: a virtual environment in .venv, and the
# packages of requirements*.txt in it. A second call starts at once.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Small matrices: on a busy machine threads wait for each other more than they compute.
ONE_THREAD = OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test chromium postgres lint format data figures gallery nano-eval bench bench-check tiny

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.installed ## Start the app, on this machine
	$(BIN)/python app.py

test: $(VENV)/.installed-dev chromium postgres ## Run every test that needs no GPU and no published weights
	$(ONE_THREAD) $(BIN)/python -m pytest --timeout=300
	$(ONE_THREAD) $(BIN)/python -m pytest --timeout=300 -m browser

lint: $(VENV)/.installed-dev ## Check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## Format the code and sort its imports
	$(BIN)/ruff check --fix --select I
	$(BIN)/ruff format

data: $(VENV)/.installed ## Gather the training photographs into data/ (needs apt-get; 380 MB)
	$(BIN)/python -m tools.photos
	$(BIN)/python -m tools.perceptual_weights

figures: $(VENV)/.installed-dev chromium ## Make the pictures of README and docs again
	$(ONE_THREAD) $(BIN)/python -m tools.figures
	$(BIN)/python -m tools.study_screens

gallery: $(VENV)/.installed ## Make the gallery of the Compare tab again, and the study of its pictures
	$(BIN)/python -m tools.gallery
	$(BIN)/python -m tools.study_demo

nano-eval: $(VENV)/.installed ## Measure PURE-nano on held-out photographs (needs make data)
	$(ONE_THREAD) $(BIN)/python -m tools.nano_eval

tiny: $(VENV)/.installed-dev ## Make tiny random checkpoints of the diffusion methods (OUT=weights-tiny)
	$(BIN)/python -m baselines.tiny all $(or $(OUT),weights-tiny)

bench: $(VENV)/.installed ## Measure decoding: paired rounds, one thread (STAGES=nano: only that)
	$(ONE_THREAD) $(BIN)/python -m tools.bench $(STAGES)

bench-check: $(VENV)/.installed ## Fail where decoding lost 30 % of a recorded gain (a short run)
	$(ONE_THREAD) $(BIN)/python -m tools.bench $(or $(STAGES),speed nano) --quick --rounds 3 --check

# The browser tests drive the system's Chromium. Where it is missing and cannot be installed they
# skip with a sentence, but never in CI, where nobody would notice.
chromium:
	@for name in chromium chromium-browser google-chrome; do \
	  command -v $$name >/dev/null && exit 0; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Chromium for the browser tests."; \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium \
	    >/dev/null && exit 0; \
	fi; \
	echo "There is no Chromium: install it (Debian: apt-get install chromium)" \
	  "and the browser tests run too."; \
	[ "$$CI" != true ]

# The stores' tests run against a real PostgreSQL, on the same terms.
postgres:
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing PostgreSQL for the tests of the vote store."; \
	  apt-get update -qq && apt-get install -qq -y --no-install-recommends postgresql \
	    >/dev/null && exit 0; \
	fi; \
	echo "There is no PostgreSQL: install it (Debian: apt-get install postgresql)" \
	  "and the tests of the vote store run against it too."; \
	[ "$$CI" != true ]

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "This needs Python 3.11 or 3.12: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements.txt -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements-baselines.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-dev.txt -r requirements-baselines.txt -c constraints.txt
	@touch $@
