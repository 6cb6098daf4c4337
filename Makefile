# make demo | make test | make lint. Everything is installed into .venv, at the versions of requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/digits

.DEFAULT_GOAL := help
PEERS := .venv-peers/bin
X64 := tests/schedules tests/solvers/test_falling.py tests/solvers/test_single_step.py tests/grids/test_plain.py \
  $(patsubst %,tests/test_%.py,adaptive curricula denoiser draws guidance likelihood losses noise preconditioning \
  sample variational weightings)

.PHONY: help demo test test-slow test-x64 test-all chaos lint notebooks peers bench bench-models bench-peers format lock clean

help:
	@echo "make demo    train, sample and score a diffusion model of handwritten digits (about five minutes)"
	@echo "make test    the tests, but for the slow ones"
	@echo "make test-all  all of them: make test, make test-slow (kills, damage, several processes, networks of full size)"
	@echo "             and make test-x64 (the core once more, with JAX in 64 bits)"
	@echo "make chaos   kill, stop and damage runs, and compare what comes of them with one left alone (half an hour)"
	@echo "make lint    ruff and mypy"
	@echo "make notebooks  run the notebooks"
	@echo "make peers   install PyTorch and diffusers too: make test then proves weights carried over from them"
	@echo "make bench   compare the solvers at equal numbers of evaluations (bench/solvers.html)"
	@echo "make bench-models  time the small networks, beside PyTorch after make peers (bench/models.json)"
	@echo "make bench-peers  beside k-diffusion, diffusers and azula, in an environment of their own"
	@echo "make format  put the code into ruff's format"
	@echo "make lock    resolve the newest versions into requirements.lock"
	@echo "make clean   remove .venv, .venv-peers and what was built (not runs/)"

demo: .venv/train.installed
	@$(BIN)/python -m experiments.train --config experiments/configs/digits.py --workdir $(DEMO)
	@$(BIN)/python -m experiments.evaluate --workdir $(DEMO)

PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

test: .venv/dev.installed
	@$(PYTEST) -m 'not slow' tests

test-slow: .venv/dev.installed
	@$(PYTEST) -m slow tests

test-x64: .venv/dev.installed
	@JAX_ENABLE_X64=1 $(PYTEST) -m 'not slow' $(X64)

test-all: test test-slow test-x64

chaos: .venv/train.installed
	@$(BIN)/python -m experiments.chaos --out bench/chaos

lint: .venv/dev.installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

notebooks: .venv/dev.installed
	@$(BIN)/python -m pytest tests/test_notebooks.py

peers: .venv/peers.installed

bench-models: .venv/dev.installed
	@$(BIN)/python -m experiments.bench_models --models digits,mnist --out bench/models.json

bench: .venv/dev.installed
	@$(BIN)/python -m experiments.bench_solvers --out bench $(if $(wildcard bench/peers.json),--peers bench/peers.json)

bench-peers: .venv/dev.installed .venv-peers/installed
	@$(BIN)/python -m experiments.bench_solvers --problems bench/problems
	@$(PEERS)/python -m experiments.bench.peers --problems bench/problems --out bench/peers.json
	@$(PEERS)/python -m experiments.bench.peers --speed 100 --out bench/peers.json
	@$(BIN)/python -m experiments.bench_solvers --peers bench/peers.json --speed 100 --out bench

format: .venv/dev.installed
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: .venv/dev.installed
	@$(BIN)/python -m pip install -q uv
	@$(BIN)/uv pip compile --universal --python-version 3.11 --extra train --extra dev --upgrade --no-annotate --no-header \
	  -q pyproject.toml -o requirements.lock

clean:
	rm -rf .venv .venv-peers build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

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

.venv/peers.installed: .venv/dev.installed
	@echo "installing PyTorch and diffusers into .venv ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c requirements.lock -e '.[train,dev,peers]'
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps torch-fidelity==0.4.0 \
	  efficientnet-lite-pytorch==0.1.0
	@touch $@

# k-diffusion imports CLIP, which imports pkg_resources: the last setuptools to have it.
.venv-peers/installed:
	@echo "installing into .venv-peers ..."
	@$(PYTHON) -m venv .venv-peers
	@$(PEERS)/python -m pip install -q --disable-pip-version-check torch==2.15.0 k-diffusion==0.1.1 diffusers==0.42.1 \
	  azula==0.11.1 'setuptools<81'
	@touch $@
