# Two commands: `make run` (the demo, end to end) and `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/demo

.PHONY: run test parity lint types clean

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

# Two files of tests at a time, in the order of the folders: the longest come early.
test: $(VENV)/installed-test
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The CPU build of torch where an index offers it; else the ordinary one.
parity: $(VENV)/installed-test
	$(VENV)/bin/pip install --quiet 'torch==2.13.0+cpu' || $(VENV)/bin/pip install --quiet 'torch>=2.7'
	$(VENV)/bin/python -m pytest -m parity

lint: $(VENV)/installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/installed-test
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache .jax_cache
