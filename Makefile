# Heliostat: `make demo` is the main job, `make test` the tests. Each sets up all it needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check lock prove faults setup format clean

demo: $(READY)
	$(BIN)/python -m heliostat.demo cluster/laptop.yaml $(if $(KEEP),--keep)

# What needs no cluster runs side by side; clusters run one after the other, since two would share the cores.
test: $(READY)
	$(BIN)/pytest -n 2 -m "not cluster"
	$(BIN)/pytest -m cluster

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/audit.py

# Writes the locks anew from pyproject.toml and constraints.txt.
lock: $(READY)
	PATH="$(BIN):$$PATH" $(BIN)/python tests/lock.py

prove: $(READY)
	$(BIN)/python tests/prove.py

faults: $(READY)
	$(BIN)/python tests/benchmarks/faults.py $(if $(ONLY),--only "$(ONLY)") --times $(or $(TIMES),1) --seed $(or $(SEED),0)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

# Nothing comes in that is not in the locks, to the byte: a torch without CUDA where pip knows an index that has one,
# else the one with CUDA and the libraries that it asks for.
$(READY): pyproject.toml $(wildcard requirements*.lock)
	@echo "installing what the locks name into $(VENV): some minutes and 3 GB, more with CUDA's libraries"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements-cpu.lock 2>/dev/null || true
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
	if $(BIN)/python -m pip show torch | grep -q '^Requires:.*nvidia'; then \
	  $(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements-cuda.lock; fi
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $(READY)

clean:
	rm -rf $(VENV) build dist platform/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
