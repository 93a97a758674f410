# Everything a developer runs. Each target makes the environment it needs; a second call starts at
# once. PYTHON chooses the interpreter (3.11 or newer) for a new .venv, WORKERS how many processes
# test: `make test PYTHON=python3.13 WORKERS=8`.
PYTHON ?= python3
WORKERS ?= 2

BIN := .venv/bin
VENV := .venv/created
DEMO := .venv/installed-for-demo
TEST := .venv/installed-for-test

.NOTPARALLEL:
.PHONY: help demo demo-channels test lint types tests bench compat stress clean

help:
	@echo "make demo    train, prune, save and reload a small network; prints a table (minutes)"
	@echo "make demo-channels  prune half the channels, cut them, fine-tune, export (minutes)"
	@echo "make test    lint, types and tests"
	@echo "make lint    ruff, rules and format"
	@echo "make types   basedpyright"
	@echo "make bench   how fast: ratios measured side by side"
	@echo "make compat  every optimizer of optax with every method"
	@echo "make stress  100 kills of a training run, and the same bits at the end"
	@echo "make clean   remove the environment, caches and built packages (runs/ stays)"

demo: $(DEMO)
	$(BIN)/python -m experiments.demo

demo-channels: $(DEMO)
	$(BIN)/python -m experiments.demo_channels

test: lint types tests

lint: $(TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(TEST)
	$(BIN)/basedpyright

tests: $(TEST)
	$(BIN)/python -m pytest -n $(WORKERS)

bench: $(DEMO)
	$(BIN)/python -m experiments.bench

compat: $(DEMO)
	$(BIN)/python -m experiments.compat

stress: $(DEMO)
	$(BIN)/python -m experiments.stress

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps lie in .venv, so that they vanish with it.
$(VENV):
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("jaxprune needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	@touch $@

$(DEMO): pyproject.toml | $(VENV)
	@echo "Installing into .venv: once, about two minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[experiments]'
	@touch $@

$(TEST): pyproject.toml | $(VENV)
	@echo "Installing into .venv: once, about two minutes."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[experiments,test,dev]'
	@touch $@ $(DEMO)
