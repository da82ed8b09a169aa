# Heliostat: `make demo` is the main job, `make test` the tests. Each sets up all it needs.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check prove faults setup format clean

demo: $(READY)
	$(BIN)/python -m heliostat.demo cluster/laptop.yaml $(if $(KEEP),--keep)

# What needs no cluster runs side by side; clusters run one after the other, since two would share the cores.
test: $(READY)
	$(BIN)/pytest -n 2 --ignore=tests/faults --ignore=tests/real
	$(BIN)/pytest tests/faults tests/real

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

prove: $(READY)
	$(BIN)/python tests/prove.py

faults: $(READY)
	$(BIN)/python tests/benchmarks/faults.py $(if $(ONLY),--only "$(ONLY)") --times $(or $(TIMES),1) --seed $(or $(SEED),0)

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[laptop,recipes,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) build dist platform/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
