# make demo    a real language model, compiled and talking, from a clean clone
# make test    every test but the long proofs
# make exhaustive  the long proofs: every family of models compiled, every part of them replayed for sm90, a real Gemma 3 beside transformers; an hour or more
# make check   format, lint, types, layering, layout: what CI runs first
# make docs    the tables of docs/api.md, from the types of requests
# make clean   everything that these made
#
# PYTHON=python3.12    the Python (3.11 to 3.13) to make .venv from
# TORCH_INDEX=URL      an index with CPU builds of torch, where the default index has only CUDA ones
# ARGS="-k tune"       more arguments of pytest

PYTHON ?= python3
# Without this the repository root would come first on sys.path, and other packages would import our `kernels/` as theirs.
export PYTHONSAFEPATH = 1
BIN = .venv/bin

.PHONY: demo test exhaustive check format docs clean
.DELETE_ON_ERROR:

demo: .venv/.installed-build
	$(BIN)/python tools/demo.py

test: .venv/.installed-dev
	$(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

exhaustive: .venv/.installed-dev
	$(BIN)/pytest --numprocesses logical --maxprocesses 2 --dist load -m exhaustive $(ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy -p engine
	$(BIN)/lint-imports
	$(BIN)/pytest -q tests/test_layout.py

format: .venv/.installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

docs: .venv/.installed-dev
	$(BIN)/python tools/api_tables.py

.venv/.installed-build: pyproject.toml tools/install.py
	$(PYTHON) tools/install.py --extras build
	@touch $@

.venv/.installed-dev: pyproject.toml tools/install.py
	$(PYTHON) tools/install.py --extras build,dev
	@touch $@ .venv/.installed-build

clean:
	rm -rf .venv .demo build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
