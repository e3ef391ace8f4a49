# Two commands do all the set-up on a fresh machine: `make lift` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

TIERS ?=

.PHONY: setup lift test lint format bench tiers coverage nightly clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[sim,pusht,vq,fast,lerobot-video,diffusion,hub,export,dev]"
# robomimic without its dependencies: torchvision does not load beside a CPU torch, and breaks what looks for it (docs/policies.md)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation --no-deps robomimic
	@touch $@

lift: setup
	@start=$$(date +%s); \
	$(BIN)/python scripts/train_action_vae.py --dataset lift --overwrite && \
	$(BIN)/python scripts/distill_policy.py --dataset lift --overwrite && \
	$(BIN)/python scripts/evaluate.py --dataset lift && \
	echo "make lift took $$(( $$(date +%s) - start )) s after installation; see runs/lift/report.html"

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python scripts/benchmark.py train --preset mnist --batch-size 256
	$(BIN)/python scripts/benchmark.py train --preset mnist --batch-size 64
	$(BIN)/python scripts/benchmark.py train --preset chunk16 --batch-size 256
	$(BIN)/python scripts/benchmark.py train --preset chunk32 --batch-size 32 --steps 8
	$(BIN)/python scripts/benchmark.py train --preset cifar10 --batch-size 32 --steps 8

# Each extra, and the oldest and newest packages, in environments of their own: make tiers, or make tiers TIERS="core vq oldest"
tiers:
	$(PYTHON) -m tests.tiers $(TIERS)

coverage: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov=daps_robot --cov=envs --cov-report=term:skip-covered $(TESTS)

# docs/trust.md
nightly: setup
	$(BIN)/python -m tests.fuzz --inputs 20000
	$(BIN)/python -m tests.kills --ranks

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
