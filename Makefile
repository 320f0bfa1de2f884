# make demo    the whole road on rendered scenes: label, train, evaluate, report
# make test    everything the tests prove
# make check   ruff, pyright, import-linter
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: demo test check constraints clean
demo: .venv/installed
	$(BIN)/python -m pipeline.demo

test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

constraints: .venv/installed-dev
	(head -1 constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' | grep -v -E '^(setuptools|pip|wheel)==') > constraints.new
	mv constraints.new constraints.txt

clean:
	rm -rf .venv demo

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
