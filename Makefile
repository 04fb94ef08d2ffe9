# Each target sets up .venv first; safe to repeat.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The releases that CI has; they are of this Python alone.
LOCK := $(if $(filter python3.11,$(notdir $(PYTHON))),--constraint .ci/constraints.txt)
# A shell that forbids this makes each of the suite's commands compile the whole package anew.
export PYTHONDONTWRITEBYTECODE =
# Most of the time of the suite is spent waiting for real parts, so more workers than cores.
WORKERS ?= 3

.PHONY: help demo quick test chaos mutate cluster check lock clean system-packages test-packages

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

$(STAMP): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(LOCK) --editable '.[local,train,dev]'
	touch $@

system-packages:
	.ci/system-packages

test-packages:
	.ci/system-packages test

demo: system-packages $(STAMP)  ## run the main job on this machine: two servers, nginx, Prometheus, eight workers
	$(BIN)/exatrkx-hpc demo

quick: $(STAMP)  ## run the tests that need no server and no other part: a minute on two cores
	$(BIN)/python -m pytest -n 2 -m "not part and not slow" $(or $(ARGS),tests/project tests/unit)

test: test-packages $(STAMP)  ## run the whole test suite
	$(BIN)/python -m pytest -n $(WORKERS) --no-loadscope-reorder $(ARGS)

chaos: test-packages $(STAMP)  ## disturb a farm under load in every way that we know (root, half an hour); ARGS='--only kill'
	$(BIN)/python benchmarks/steady.py $(ARGS)

mutate: test-packages $(STAMP)  ## change one thing at a time in a copy, and show what no test noticed; ARGS='--count 30'
	$(BIN)/python tests/support/mutate.py $(ARGS)

cluster: test-packages $(STAMP)  ## a shell in a Slurm cluster on this machine (root); ARGS='-c "sinfo"' runs one command
	@PYTHONPATH=tests/support $(BIN)/python -m cluster $(ARGS)

check: $(STAMP)  ## run the linters: ruff, mypy, shellcheck
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/shellcheck jobs/*.sh benchmarks/*.sh tests/support/cluster/anchor.sh .ci/run .ci/lock .ci/other-pythons .ci/system-packages
	$(BIN)/python -m pytest -q tests/unit/launch/test_rendered_scripts.py -k shellcheck

lock:  ## renew .ci/constraints.txt, the releases that demo and test install
	.ci/lock $(PYTHON)

clean:  ## remove what the other targets made
	rm -rf $(VENV) $(VENV)-3.* demo-results dist build .pytest_cache .mypy_cache .ruff_cache
