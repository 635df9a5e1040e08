# The commands of normlab; `make help` lists them. The first that needs it makes .venv.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup sweep test test-ci test-all lint docs tensorboard bench clean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# curvlinops is installed without BackPACK, which it uses in experiments alone and which brings torchvision: PyPI's
# torchvision does not load beside a CPU build of torch, and torchmetrics loads any that it finds.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else f"normlab needs Python 3.11 to 3.13, this is {v[0]}.{v[1]}; try: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --no-deps curvlinops-for-pytorch
	@touch $@

setup: $(READY) ## make .venv and install normlab and its tools into it

sweep: $(READY) ## train with and without BatchNorm, and print the comparison
	$(BIN)/python train.py -m model=bn,nobn

test: $(READY) lint ## check style, types, layers, doctests, and run the fast tests
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'not slow'

test-ci: $(READY) lint ## the same, and a sample of the slow tests: commands, wheel, clusters, browser, documentation
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'not thorough'

test-all: $(READY) lint ## the same, and all tests: killed commands, Monte Carlo, every combination; takes an hour
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY) ## build the documentation into site/, and fail on a broken link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo site/index.html

tensorboard: $(READY) ## show every run in outputs/ in the browser
	$(BIN)/tensorboard --logdir outputs

bench: $(READY) ## measure speed, side by side with plain PyTorch, Lightning as usually set up, and JAX
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/norms.py
	$(BIN)/python benchmarks/probes.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python benchmarks/saving.py
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/population.py

clean: ## remove .venv, site and caches; outputs/ stays
	rm -rf .venv site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
