# Two commands: `make run` (the demo, end to end) and `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/demo

.PHONY: run test lint types clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade pip
	$(VENV)/bin/pip install --quiet --editable .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --editable '.[test]'
	touch $@

run: $(VENV)/installed
	$(VENV)/bin/sbm-jax run --out $(OUT)

test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/installed-test
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache .jax_cache
