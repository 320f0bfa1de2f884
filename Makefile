# make demo      the whole pipeline on rendered scenes: label, train, evaluate, report
# make test      what the tests prove, each promise once
# make campaign  the proofs that take long: Ray's processes, machines and disks in trouble, kills at random moments
# make explore   the property tests with examples that nobody has tried: finds new faults, so it is no gate
# make check     ruff, pyright, import-linter
PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED := 0
export PYTHONDONTWRITEBYTECODE :=
# Not compiled: of some 18,000 files 3,000 are ever imported, which Python compiles then, where the environment lets it.
# What pip says is shown where it fails, and only then.
INSTALL = set -e; echo "Installing into .venv; the first time that takes minutes."; said=$$(mktemp); \
	$(BIN)/pip install --progress-bar off --no-compile --constraint constraints.txt $(1) > $$said 2>&1 || \
	{ cat $$said; rm $$said; exit 1; }; rm $$said

.PHONY: demo test campaign explore check constraints clean
demo: .venv/installed
	@$(BIN)/python -m pipeline.demo

test: .venv/installed-dev
	$(BIN)/python -m pytest -m "not campaign" --numprocesses 2 --dist loadfile

campaign: .venv/installed-dev
	$(BIN)/python -m pytest -m campaign --numprocesses 2 --dist loadfile
	timeout 1200 $(BIN)/python -m tests.faults.campaign --kills 20 --seed 0
	timeout 1200 $(BIN)/python -m tests.faults.train_campaign --kills 3 --seed 0

explore: .venv/installed-dev
	$(BIN)/python -m pytest -m "hypothesis and not campaign" --hypothesis-profile new-examples

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
	@$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	@$(call INSTALL,--editable .)
	@touch $@

.venv/installed-dev: .venv/installed
	@$(call INSTALL,--editable ".[dev]")
	@touch $@
