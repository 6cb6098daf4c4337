# make demo | make test | make lint. Everything is installed into .venv, at the versions of requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/digits

.DEFAULT_GOAL := help
.PHONY: help demo test lint notebooks format lock clean

help:
	@echo "make demo    train, sample and score a diffusion model of handwritten digits (about five minutes)"
	@echo "make test    all tests"
	@echo "make lint    ruff and mypy"
	@echo "make notebooks  run the notebooks"
	@echo "make format  put the code into ruff's format"
	@echo "make lock    resolve the newest versions into requirements.lock"
	@echo "make clean   remove .venv, and what was built (not runs/)"

demo: .venv/train.installed
	@$(BIN)/python -m experiments.train --config experiments/configs/digits.py --workdir $(DEMO)
	@$(BIN)/python -m experiments.evaluate --workdir $(DEMO)

test: .venv/dev.installed
	@$(BIN)/python -m pytest -n 2 tests

lint: .venv/dev.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

notebooks: .venv/dev.installed
	@$(BIN)/python -m pytest tests/test_notebooks.py

format: .venv/dev.installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: .venv/dev.installed
	@$(BIN)/python -m pip install -q uv
	@$(BIN)/uv pip compile --universal --python-version 3.11 --all-extras --upgrade --no-annotate --no-header \
	  -q pyproject.toml -o requirements.lock

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 or newer; name another, as in: make PYTHON=python3.12 demo"; exit 1; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/train.installed: .venv/python pyproject.toml requirements.lock
	@echo "installing into .venv ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock -e '.[train]'
	@touch $@

.venv/dev.installed: .venv/train.installed
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock -e '.[train,dev]'
	@touch $@
