# One command for each thing that CI does; `make ci` is CI itself.
PYTHON ?= .venv/bin/python
BIN := $(dir $(PYTHON))

.PHONY: install lint types rooms test fast ci format

install:
	python3 -m venv .venv && .venv/bin/pip install -e '.[test]'

format:
	$(BIN)ruff check --fix . && $(BIN)ruff format .

lint:
	$(BIN)ruff check . && $(BIN)ruff format --check .

types:
	$(BIN)mypy

rooms:
	$(BIN)lint-imports

test:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadgroup

# The tests that start no Ray cluster, train no model for long and need no server: about two minutes.
fast:
	$(PYTHON) -m pytest -m "not slow and not ray" tests/request tests/data tests/run_dir tests/verdict tests/schedule tests/report tests/search_spaces

ci:
	bash .ci/run
