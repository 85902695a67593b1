# Everything runs in .venv, which is made once and made anew when pyproject.toml or constraints.txt change.

PYTHON ?=
ARGS ?=
WORKERS ?= 2
# A file's tests run in one process, which makes what they share once; conftest.py puts long files first.
SHARED := --dist loadfile --no-loadscope-reorder

PY := .venv/bin/python
INSTALLED := .venv/.installed

# pip reads both from the environment, for the packages and for the tools that build them (newer pip: the second).
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup train test test-heavy lint wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## make .venv with the pinned packages (PYTHON=python3.12 picks the Python)
	@:

train: $(INSTALLED) ## set up, then train; ARGS="norm=post lora.rank=8" overrides the config
	@$(PY) train.py $(ARGS)

test: $(INSTALLED) ## set up, then run the test suite; ARGS="tests/test_packaging.py -x" narrows it
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) $(SHARED) --timeout 600 $(ARGS)

test-heavy: $(INSTALLED) ## set up, then run the tests that `make test` leaves out: more strategies and moments, half an hour
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) $(SHARED) --timeout 1200 -m heavy $(ARGS)

lint: $(INSTALLED) ## set up, then check style, format and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

wheel: $(INSTALLED) ## set up, then build dist/*.whl
	@$(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove .venv, builds and caches; runs stay
	@rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache

# The stamp is written last and removed first, so an interrupted install is started again from an empty .venv.
$(INSTALLED): pyproject.toml constraints.txt
	$(eval FOUND := $(shell sh scripts/find_python.sh "$(PYTHON)"))
	$(if $(filter error:,$(firstword $(FOUND))),$(error $(wordlist 2,99,$(FOUND))))
	@test -f $@ || $(FOUND) -m venv --clear .venv
	@rm -f $@
	@sh scripts/hint_cpu_build.sh $(PY)
	@echo "Installing the pinned packages into .venv: some minutes the first time, nothing after that."
	@$(PY) -m pip install -qq --editable '.[dev]'
	@touch $@
