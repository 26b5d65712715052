# Everything a newcomer needs: `make demo` and `make test`. Both set up a private environment in .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := src/fewfire/kernels
LIBRARY := $(VENV)/.library

.PHONY: demo build test test-slow check format clean

demo: $(LIBRARY)
	$(BIN)/fewfire demo

# The compiled kernels, made anew; works without .venv.
build:
	$(PYTHON) -I $(KERNELS)/building.py

test: $(LIBRARY)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(LIBRARY)
	$(BIN)/python -m pytest -m "slow"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt hatch_build.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

# Installing has compiled the kernels; this does when their sources change. Without a compiler there are none.
$(LIBRARY): $(STAMP) $(KERNELS)/building.py $(wildcard $(KERNELS)/csrc/*.cpp $(KERNELS)/csrc/*.h)
	-$(BIN)/python -I $(KERNELS)/building.py --if-changed && touch $(LIBRARY)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
