# make demo: see it work. make test: everything that must hold. Needs Python 3.11 or newer; the rest is installed here.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= out/demo

.PHONY: demo test fuzz check format clean

demo: $(VENV)/.installed
	$(BIN)/wan-ray init-debug $(DEMO)
	$(BIN)/wan-ray render $(DEMO)/config.yaml

test: check
	$(BIN)/pytest

# Ten minutes of requests that schemathesis makes up; make test has less than one.
fuzz: $(VENV)/.installed-dev
	$(BIN)/pytest tests/serving/test_fuzz.py --fuzz-seconds 600 --timeout 900 -s

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) out
