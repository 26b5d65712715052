# Everything a newcomer needs: `make demo` and `make test`. Both set up a private environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow check format clean

demo: $(STAMP)
	$(BIN)/fewfire demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
