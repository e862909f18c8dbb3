# Two commands do everything: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help setup check test test-slow demo docs clean

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(READY)  ## make .venv with everything pinned

# torch first and alone: a range would let pip choose a newer build with gigabytes of GPU libraries
$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

check: $(READY)  ## formatting, lint, types, import layers, generated docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/make_docs.py --check

# a thread for each of two workers: torch's own two would fight over the same cores
test: $(READY)  ## every test of the default suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(READY)  ## the long tests, which CI runs too
	$(BIN)/python -m pytest -m slow

demo: $(READY)  ## the whole journey, offline: hub, native checkpoint, Int4, parity, card, publish
	$(BIN)/ferry run recipes/demo.toml

docs: $(READY)  ## write the generated pages again
	$(BIN)/python scripts/make_docs.py

clean:  ## remove what the demo made
	rm -rf build
